"""Paired losses of callers that come back, few, unequal or many, each with a difference of its own: equal versions, looked at each day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import pytest

from tests.conditions.days import CORRELATED, INDEPENDENT, Days
from tests.conditions.units import FEW, HEAVY_TAILED, ONCE, Units, level_of
from toque.functions.evaluation.realised_loss import Scored
from toque.functions.rollout.evidence.cohort_sums import WholeSums
from toque.functions.rollout.evidence.sums import PairedLoss
from toque.functions.rollout.judge.interval import improvement
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState
from toque.functions.stats import ClusterSums

START = datetime(2027, 1, 4, tzinfo=UTC)
DAYS, LABELS = 28, 200
MANY = Units("many", 200)


@dataclass(frozen=True)
class World:
    """Champion 1 and its shadow 2. own, shock, noise: spread of the difference by caller, day and request; better: its mean."""

    callers: Units
    days: Days = INDEPENDENT
    own: float = 0.2
    shock: float = 0.0
    noise: float = 0.3
    better: float = 0.0

    def season(self, rng: np.random.Generator, run: int) -> list[Scored]:
        shocks = self.days.draw(rng, DAYS, scale=self.shock)
        return [self.day(rng, run, day, shock) for day, shock in enumerate(shocks)]

    def day(self, rng: np.random.Generator, run: int, day: int, shock: float) -> Scored:
        callers = self.callers.draw(rng, LABELS)
        gain = self.better + self.own * level_of(callers, salt=run) + shock
        gain = gain + self.noise * rng.standard_normal(LABELS)
        ids = np.array([f"{day}-{i}" for i in range(LABELS)], dtype=object)
        units = np.array([f"caller-{caller}" for caller in callers], dtype=object)
        none, flags = np.full(2 * LABELS, np.nan), np.zeros(2 * LABELS, dtype=bool)
        losses = np.concatenate([np.full(LABELS, 5.0), 5.0 - gain])
        at = int((START + timedelta(days=day, hours=1)).timestamp()) * 1_000_000
        return Scored(
            id=np.tile(ids, 2), version=np.repeat([1, 2], LABELS), shadow=np.repeat([False, True], LABELS),
            unit=np.tile(units, 2), at=np.full(2 * LABELS, at), latency_ms=none, answered=~flags, label=none,
            told=none, output=none, loss=losses, expected=none, bias=none, outside=flags,
        )  # fmt: skip


def state_of(policy: RolloutPolicy) -> RolloutState:
    return RolloutState(
        rollout=0, champion=1, challenger=2, policy=policy, stage="shadow", started_at=START, stage_since=START,
        traffic_entry=7,
    )  # fmt: skip


def verdicts(world: World, policy: RolloutPolicy, *, runs: int) -> tuple[float, float]:
    """Shares of rollouts that are ever shown better, and ever shown worse, looked at after each of 28 days."""
    rng, state = np.random.default_rng(1), state_of(policy)
    better = worse = 0
    for run in range(runs):
        sums, shown = WholeSums(next_cohort=0), set()
        for day in world.season(rng, run):
            sums = sums.plus(day, state, {})
            gain = improvement(sums.loss, policy)
            if gain is not None:
                shown |= {"better"} if gain.lower > 0 else {"worse"} if gain.upper < 0 else set()
        better, worse = better + ("better" in shown), worse + ("worse" in shown)
    return better / runs, worse / runs


CELLS = [
    pytest.param(callers, dependence, runs, id=f"{callers.name} {dependence} {runs}", marks=marks)
    for callers in (FEW, HEAVY_TAILED, MANY)
    for dependence in ("cohort", "unit")
    for runs, marks in ((20, ()), (150, [pytest.mark.proof, pytest.mark.timeout(1_200)]))
]


# Each direction at most .05 + 3 s.e.: of 20 runs .20, of 150 .10.
@pytest.mark.parametrize(("callers", "dependence", "runs"), CELLS)
def test_equal_versions_are_told_apart_at_most_as_often_as_declared(
    callers: Units, dependence: Literal["cohort", "unit"], runs: int
) -> None:
    policy = RolloutPolicy(dependence=dependence)
    bound = policy.alpha + 3 * np.sqrt(policy.alpha * (1 - policy.alpha) / runs)
    assert max(verdicts(World(callers), policy, runs=runs)) <= bound


# As above; callers and days weigh alike here, so that neither alone is the variance.
@pytest.mark.parametrize("days", [INDEPENDENT, CORRELATED], ids=lambda days: days.name)
@pytest.mark.parametrize(
    "runs", [20, pytest.param(150, marks=[pytest.mark.proof, pytest.mark.timeout(1_200)])]
)
def test_callers_that_come_back_on_days_that_hang_together_are_counted_for_both(
    days: Days, runs: int
) -> None:
    policy = RolloutPolicy()
    bound = policy.alpha + 3 * np.sqrt(policy.alpha * (1 - policy.alpha) / runs)
    world = World(Units("twenty", 20), days, own=0.2, shock=0.2)
    assert max(verdicts(world, policy, runs=runs)) <= bound


@pytest.mark.parametrize("callers", [ONCE, MANY, HEAVY_TAILED], ids=lambda units: units.name)
def test_a_better_version_is_found(callers: Units) -> None:
    better, worse = verdicts(World(callers, own=0.05, better=0.1), RolloutPolicy(), runs=5)
    assert (better, worse) == (1.0, 0.0)


def test_a_caller_that_comes_back_is_one_unit() -> None:
    rng, state = np.random.default_rng(2), state_of(RolloutPolicy())
    sums = WholeSums(next_cohort=0)
    world = World(FEW, noise=0.0)
    for day in world.season(rng, run=3):
        sums = sums.plus(day, state, {})
    units = sums.loss.by_returning_unit
    assert (units.clusters, units.rows, sums.loss.by_unit.clusters) == (8, DAYS * LABELS, 8 * DAYS)
    assert units.total == pytest.approx(sums.loss.by_unit.total)
    levels = 0.2 * level_of(np.arange(8), salt=3)
    by_hand = levels.std(ddof=1) / np.sqrt(8)  # all come about alike
    assert sums.loss.unit_error == pytest.approx(by_hand, rel=0.05)
    assert WholeSums.model_validate_json(sums.model_dump_json()) == sums


def test_one_caller_that_has_nearly_all_requests_is_hardly_more_than_one_observation() -> None:
    n, rows = 5_002, np.array([5_000.0, 1.0, 1.0])
    names = [str(i) for i in range(n)]  # what they were, had they come once
    loss = PairedLoss.of_cohort(np.linspace(1, 2, n), np.zeros(n), names, pairs=n, requests=n)
    policy = RolloutPolicy(dependence="unit", season=timedelta(0))
    once = improvement(loss, policy)
    assert once is not None
    assert once.lower > 1
    units = ClusterSums.of_sums(rows * np.array([1.5, 1.4, 1.6]), rows)
    gain = improvement(loss.model_copy(update={"by_returning_unit": units}), policy)
    assert gain is not None
    assert gain.lower < 0 < gain.upper
