"""Reflexes on Serve with the platform's defaults: a bad canary is rolled back and people are told within a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from toque.load.benchmarks.serving import reflexes

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(600)]

# A CPU that others take delays the failing one, too; errors alone shall find it.
FAILS, SLOW = ("fails", "live_errors", {"slow_ratio": 100.0}), ("slow", "live_latency", {})


@pytest.mark.parametrize(("fault", "rule", "guards"), [FAILS, pytest.param(*SLOW, marks=pytest.mark.proof)])
def test_a_bad_canary_is_rolled_back_and_told(
    tmp_path: Path, fault: str, rule: str, guards: dict[str, float]
) -> None:
    with reflexes.prepared(tmp_path, ["late"], cpus=4) as bench:
        run = bench.run("late", fault, 6000, {"canary_share": 0.1, **guards})
    assert run.rule == rule, run.why
    # its figures are the benchmark's; a busy machine takes its time
    assert 0 < run.decided_s <= run.paged_s < 120
