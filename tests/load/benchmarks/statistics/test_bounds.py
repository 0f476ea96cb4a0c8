"""What the simulations of the statistics say when a bound breaks; their figures are in docs/statistics.md."""

from __future__ import annotations

import pytest

from toque.functions.stats import Effect
from toque.load.benchmarks.harness import main
from toque.load.benchmarks.statistics import bounds


@pytest.mark.parametrize(("estimate", "passes"), [(5.0, False), (0.0, True)], ids=["broken", "held"])
def test_means_that_alarm_too_often_break_their_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], estimate: float, *, passes: bool
) -> None:
    look = bounds._means(lambda _rng: iter([Effect(estimate, 0.1, 1_000)]))
    monkeypatch.setattr(bounds, "CHECKS", ())
    monkeypatch.setattr(bounds, "NULLS", (("a case", look, 20),))
    with pytest.raises(SystemExit) as end:
        main(bounds.run, arguments=[])
    assert end.value.code == (not passes)
    assert ("held" if passes else "BROKEN") in capsys.readouterr().out


@pytest.mark.parametrize("alarms", [True, False])
def test_other_tests_that_alarm_too_often_break_their_bound(
    monkeypatch: pytest.MonkeyPatch, *, alarms: bool
) -> None:
    monkeypatch.setattr(bounds, "NULLS", (("a case", lambda _rng: alarms, 20),))
    monkeypatch.setattr(bounds, "CHECKS", ())
    with pytest.raises(SystemExit) as end:
        main(bounds.run, arguments=[])
    assert end.value.code == alarms
