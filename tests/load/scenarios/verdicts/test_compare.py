"""Comparison of two runs: no difference where there is none, and the right one where there is."""

import numpy as np
import pytest

from tests.load.scenarios.load_runs import run_of
from toque.load.scenarios.result import LoadRun, compare


def test_two_runs_of_one_thing_differ_seldom():
    # All intervals together hold with 95 %; the bootstrap of 60 windows is a little short of that. 60 pairs: the false alarms
    # stay below 10 % + 3 standard errors = 22 %.
    rng = np.random.default_rng(11)
    alarms = sum(
        any(each.seen for each in compare(run_of(rng), run_of(rng), resamples=400, seed=n)) for n in range(60)
    )
    assert alarms / 60 <= 0.22


def test_a_slower_run_is_seen_with_its_factor():
    rng = np.random.default_rng(5)
    found = {each.figure: each for each in compare(run_of(rng), run_of(rng, slower=1.5, failing=0.05))}
    assert found["p50_ms"].worse
    assert found["p50_ms"].low < 1.5 < found["p50_ms"].high
    assert found["error_share"].worse
    assert found["error_share"].change == pytest.approx(0.05, abs=0.02)
    better = {each.figure: each for each in compare(run_of(rng, slower=2), run_of(rng))}
    assert better["p90_ms"].seen
    assert not better["p90_ms"].worse


def test_what_cannot_be_compared_is_refused():
    rng = np.random.default_rng(1)
    with pytest.raises(ValueError, match="too short to compare"):
        compare(run_of(rng, seconds=10), run_of(rng, seconds=10))
    with pytest.raises(ValueError, match="different shapes"):
        compare(run_of(rng, seconds=30), run_of(rng, seconds=40))


def test_a_run_is_read_as_it_was_written():
    run = run_of(np.random.default_rng(2))
    again = LoadRun.model_validate_json(run.model_dump_json())
    assert again == run
    assert again.metrics()["p99_ms"] == run.measured().latency_ms(0.99)
