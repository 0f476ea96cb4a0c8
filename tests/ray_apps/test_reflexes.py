"""Reflexes on Serve with the platform's defaults: a bad canary is rolled back and people are told within a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from load.benchmarks.serving import reflexes

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(600)]

GUARDED_BY = {
    "fails": (
        "live_errors",
        {"slow_ratio": 100.0},
    ),  # a CPU that others take delays it, too; errors alone shall find it
    "slow": ("live_latency", {}),
}


def test_a_failing_canary_and_a_slow_one_are_rolled_back_and_told(tmp_path: Path) -> None:
    with reflexes.prepared(tmp_path, ["late"], cpus=4) as bench:
        for fault, (rule, guards) in GUARDED_BY.items():
            run = bench.run("late", fault, 6000, {"canary_share": 0.1, **guards})
            assert run.rule == rule, run.why
            assert (
                0 < run.decided_s <= run.paged_s < 120
            )  # its figures are the benchmark's; a busy machine takes its time
