"""Reflexes on Serve with the platform's defaults: a bad canary is rolled back and people are told within a minute."""

from __future__ import annotations

import pytest

from load.benchmarks.serving import reflexes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_failing_canary_and_a_slow_one_are_rolled_back_and_told() -> None:
    found = reflexes.main(["--runs", "1", "--fault", "fails", "slow", "--per-minute", "6000"])
    ((failing,), (slow,)) = found["fails"], found["slow"]
    assert failing.rule == "live_errors"
    assert slow.rule == "live_latency"
    for run in (failing, slow):
        assert (
            0 < run.decided_s <= run.paged_s < 120
        )  # its figures are the benchmark's; a busy machine takes its time
