"""How soon a bad canary is rolled back, and how seldom a healthy one, by the code that decides on Serve, at its pace.

Each run has its own phase of the ticker and its own delay of the counts; the reach is a minute at the 95th percentile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.functions.reflexes.simulation import Arm, canary_ticks, seconds_to_roll_back
from toque.functions.rollout import RolloutPolicy

HEALTHY = Arm(fails=0.001)
RUNS = 50


def times(canary: Arm, runs: int = RUNS, **world: Any) -> np.ndarray:
    chosen = {"per_minute": 10_000, "share": 0.1, "seconds": 120} | world
    return np.array(
        [
            seconds_to_roll_back(canary_ticks(HEALTHY, canary, rng=np.random.default_rng(seed), **chosen))
            for seed in range(runs)
        ]
    )


@pytest.mark.parametrize(
    "canary",
    [Arm(fails=0.05), Arm(fails=0.001, missing=0.05), Arm(fails=0.001, median_ms=16.0)],
    ids=["fails 5 %", "leaves 5 % without an answer", "twice as slow"],
)
def test_a_bad_canary_of_1000_requests_a_minute_is_gone_within_a_minute(canary: Arm) -> None:
    assert np.quantile(times(canary), 0.95, method="higher") <= 40  # which leaves twenty seconds for the page


def test_a_canary_that_turns_bad_after_an_hour_is_gone_within_a_minute() -> None:
    late = times(Arm(fails=0.05), runs=3, seconds=3_720, bad_from=3_600)
    assert late.min() > 3_600
    assert late.max() - 3_600 <= 60


def test_a_canary_of_one_percent_is_rolled_back_too() -> None:
    found = times(Arm(fails=0.05), runs=20, share=0.01, seconds=300)
    assert np.median(found) <= 90  # it is sent 100 requests a minute, of which five fail


def test_a_healthy_canary_stays() -> None:
    assert np.isinf(times(HEALTHY, runs=10, seconds=300)).all()


def test_a_canary_of_a_champion_that_fails_as_often_stays() -> None:
    both = Arm(fails=0.2)
    ticks = canary_ticks(both, both, per_minute=3_000, share=0.25, seconds=300, rng=np.random.default_rng(3))
    assert seconds_to_roll_back(ticks) == float("inf")


def test_no_traffic_rolls_nothing_back_and_lets_nothing_through() -> None:
    policy = RolloutPolicy(ramp=(0.01, 0.05), promote_by="service")
    rng = np.random.default_rng(0)
    ticks = canary_ticks(HEALTHY, HEALTHY, per_minute=0.0, share=0.01, seconds=1_800, rng=rng, policy=policy)
    assert {decision.action for _, decision in ticks} == {"hold"}


@pytest.mark.proof
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("share", "per_minute"), [(0.1, 10_000), (0.1, 1_000), (0.5, 1_000), (0.01, 10_000)])
def test_healthy_canaries_are_seldom_rolled_back_in_half_an_hour(share: float, per_minute: float) -> None:
    runs = 50
    false = np.isfinite(times(HEALTHY, runs=runs, share=share, per_minute=per_minute, seconds=1_800)).mean()
    assert false <= 1 / runs
