"""What the simulations of the statistics say when a bound breaks; their figures are in docs/statistics.md."""

from __future__ import annotations

import math

import pytest

from toque.functions.stats import Effect
from toque.load.benchmarks.statistics import bounds as bench_stats
from toque.load.benchmarks.statistics import peeking as bench_stats_peeking


@pytest.mark.parametrize(("estimate", "code"), [(5.0, 1), (0.0, 0)], ids=["broken", "held"])
def test_means_that_alarm_too_often_end_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], estimate: float, code: int
) -> None:
    monkeypatch.setattr(bench_stats, "RUNS", 20)
    monkeypatch.setattr(
        bench_stats, "NULLS", (("a case", lambda _rng: iter([Effect(estimate, 0.1, 1_000)])),)
    )
    monkeypatch.setattr(bench_stats, "CHECKS", ())
    assert bench_stats.main() == code
    assert ("BROKEN" if code else "held") in capsys.readouterr().out


@pytest.mark.parametrize("alarms", [True, False])
def test_other_tests_that_alarm_too_often_end_with_1(
    monkeypatch: pytest.MonkeyPatch, *, alarms: bool
) -> None:
    monkeypatch.setattr(bench_stats_peeking, "NULLS", (("a case", lambda _rng: alarms, 20),))
    for check in ("_mismatch", "_power_of_groups", "_power_of_the_sequence", "_failures"):
        monkeypatch.setattr(bench_stats_peeking, check, lambda: True)
    assert bench_stats_peeking.main() == int(alarms)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.2])
def test_a_figure_that_is_no_number_breaks_its_bound(value: float) -> None:
    assert not bench_stats.report("a figure", value, 0.1)
    assert bench_stats.report("a figure", 0.1, 0.1)
    assert bench_stats.report("a figure", 0.2, 0.1, at_most=False)
