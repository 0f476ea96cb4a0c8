"""Bounds of a paired loss where days resemble their neighbours, follow the week, or hold few units."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import pytest

from tests.conditions import days as conditions
from tests.conditions.days import Days
from toque.functions.rollout.evidence.sums import PairedLoss
from toque.functions.rollout.judge.interval import improvement
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.stats import ClusterSums, SeriesSums

DAYS, LABELS, RUNS = 49, 200, 100
POLICY = RolloutPolicy()


def cohort(difference: npt.NDArray[np.float64], units: npt.NDArray[np.int64]) -> PairedLoss:
    n = len(difference)
    return PairedLoss(
        by_unit=ClusterSums.of(difference, units),
        by_cohort=SeriesSums.one(float(difference.sum()), n),
        pairs=n,
        requests=n,
    )


def season(rng: np.random.Generator, days: Days, scale: float) -> Iterator[PairedLoss]:
    for shock in days.draw(rng, DAYS, scale=scale):
        yield cohort(shock + 0.3 * rng.normal(size=LABELS), np.arange(LABELS))


def two_units(rng: np.random.Generator) -> Iterator[PairedLoss]:
    units = np.repeat([0, 1], LABELS // 2)
    for _ in range(DAYS):
        yield cohort(0.2 * rng.normal(size=2)[units] + 0.2 * rng.normal(size=LABELS), units)


def verdict(policy: RolloutPolicy, cohorts: Iterator[PairedLoss]) -> int:
    """1: shown better, -1: shown worse, 0: neither, looked at after each cohort."""
    loss = PairedLoss()
    for one in cohorts:
        loss += one
        gain = improvement(loss, policy)
        if gain is not None and (gain.lower > 0 or gain.upper < 0):
            return 1 if gain.lower > 0 else -1
    return 0


# 100 equal challengers looked at 49 times: each error at most .05 + 4 s.e. = .137.
@pytest.mark.parametrize(
    "days", conditions.parameters("independent", "correlated", "strongly correlated", "weekly")
)
def test_an_equal_challenger_is_judged_wrongly_at_most_alpha_however_days_hang_together(days: Days) -> None:
    rng = np.random.default_rng(3)
    ended = [verdict(POLICY, season(rng, days, 0.04)) for _ in range(RUNS)]
    bound = POLICY.alpha + 4 * np.sqrt(POLICY.alpha * (1 - POLICY.alpha) / RUNS)
    assert max(ended.count(1), ended.count(-1)) / RUNS <= bound


def test_rows_of_two_units_are_two_observations_a_day() -> None:
    rng, policy = np.random.default_rng(3), RolloutPolicy(dependence="unit")
    ended = [verdict(policy, two_units(rng)) for _ in range(RUNS)]
    bound = POLICY.alpha + 4 * np.sqrt(POLICY.alpha * (1 - POLICY.alpha) / RUNS)
    assert max(ended.count(1), ended.count(-1)) / RUNS <= bound


@pytest.mark.parametrize("dependence", ["cohort", "unit"])
@pytest.mark.parametrize(("season_days", "first"), [(7, 7), (14, 14), (0, 1)])
def test_nothing_is_better_before_a_whole_season_unless_the_policy_says_so(
    dependence: str, season_days: int, first: int
) -> None:
    policy = RolloutPolicy.model_validate({"dependence": dependence, "season": timedelta(days=season_days)})
    rng, loss = np.random.default_rng(4), PairedLoss()
    better: list[bool] = []
    while not any(better):
        loss += cohort(1.0 + 0.01 * rng.normal(size=2_000), np.arange(2_000))
        gain = improvement(loss, policy)
        assert gain is not None
        better.append(gain.lower > 0)
    assert first <= len(better) <= max(first, 4)


def test_days_without_labels_count_towards_the_season_but_not_those_before_the_first() -> None:
    loss = PairedLoss()
    for labels in (0, 0, 200, 0, 0, 200, 200):
        loss += cohort(np.random.default_rng(5).normal(size=labels), np.arange(labels))
    assert (loss.by_cohort.span, loss.by_cohort.clusters) == (5, 3)
