"""Whole rollouts simulated through `decide`, looked at after every cohort."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pytest

from toque.functions.rollout.evidence.sums import ArmCounts, Evidence, PairedLoss
from toque.functions.rollout.judge.decide import decide
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState

START = datetime(2013, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
RUNS = 300
LONG = RolloutPolicy(shadow_timeout=60 * DAY, canary_timeout=60 * DAY)


class Ended(NamedTuple):
    action: str
    labels: int


class World(NamedTuple):
    """mean: improvement a label; spread: of one label; shock: of a day's mean; tail: degrees of freedom."""

    mean: float = 0.0
    spread: float = 0.3
    shock: float = 0.0
    tail: float = 0.0
    rows_a_unit: int = 1
    labels: int = 200

    def day(self, rng: np.random.Generator) -> PairedLoss:
        n = self.labels // self.rows_a_unit
        noise = (
            rng.standard_t(self.tail, n) / np.sqrt(self.tail / (self.tail - 2))
            if self.tail
            else rng.normal(size=n)
        )
        difference = np.repeat(self.mean + self.shock * rng.normal() + self.spread * noise, self.rows_a_unit)
        units = np.repeat(np.arange(n), self.rows_a_unit).astype(str).tolist()
        zero = np.zeros(len(difference))
        return PairedLoss.of_cohort(difference, zero, units, pairs=len(difference), requests=len(difference))


def rollout(rng: np.random.Generator, world: World, policy: RolloutPolicy = LONG, days: int = 60) -> Ended:
    state = RolloutState(
        rollout=0,
        champion=1,
        challenger=2,
        policy=policy,
        stage="shadow",
        started_at=START,
        stage_since=START,
        traffic_entry=0,
    )
    loss, canary = PairedLoss(), ArmCounts()
    for day in range(1, days + 1):
        loss += world.day(rng)
        if state.stage == "canary":
            canary += ArmCounts(champion=180, challenger=20)
        now = START + day * DAY
        action = decide(state, Evidence(champion=1, loss=loss, canary=canary), policy, now).action
        if action == "advance":
            state = state.model_copy(update={"stage": "canary", "stage_since": now})
        elif action != "hold":
            return Ended(action, loss.labels)
    return Ended("open", loss.labels)


def runs(world: World, *, seed: int, policy: RolloutPolicy = LONG, count: int = RUNS) -> list[Ended]:
    rng = np.random.default_rng(seed)
    return [rollout(rng, world, policy) for _ in range(count)]


def share(ended: list[Ended], action: str) -> float:
    return sum(run.action == action for run in ended) / len(ended)


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(), marks=pytest.mark.proof, id="plain"),
        pytest.param(World(tail=3.0), marks=pytest.mark.proof, id="heavy tails"),
        pytest.param(World(shock=0.04), marks=pytest.mark.proof, id="days differ"),
        pytest.param(World(rows_a_unit=10), marks=pytest.mark.proof, id="ten rows a unit"),
        pytest.param(World(labels=20, shock=0.1), id="few labels a day"),
    ],
)
def test_an_equal_challenger_is_promoted_or_stopped_at_most_alpha(world: World) -> None:
    # 300 null runs looked at 60 times each: each error <= alpha + 4 s.e. = .05 + 4 * sqrt(.05 * .95 / 300)
    bound = LONG.alpha + 4 * np.sqrt(LONG.alpha * (1 - LONG.alpha) / RUNS)
    ended = runs(world, seed=8)
    assert share(ended, "promote") <= bound
    assert share(ended, "roll_back") <= bound


def test_rows_of_a_day_taken_as_independent_would_promote_equals() -> None:
    # The reason why dependence="cohort" is the default: the same world, judged by unit, fails its level.
    careless = LONG.model_copy(update={"dependence": "unit"})
    assert share(runs(World(shock=0.04), seed=8, policy=careless, count=100), "promote") > 0.2


def test_a_challenger_better_by_a_twentieth_is_promoted_within_four_thousand_labels() -> None:
    # Ten days were enough while days were taken as independent of each other.
    ended = runs(World(mean=0.05), seed=9, count=100)
    assert share(ended, "promote") == 1.0
    assert np.median([run.labels for run in ended]) <= 2_400
    assert np.quantile([run.labels for run in ended], 0.95) <= 4_000


def test_a_challenger_better_on_most_days_is_promoted() -> None:
    # Days differ as much as the improvement itself; median about two weeks and a half, nine in ten within five.
    ended = runs(World(mean=0.05, shock=0.04), seed=10, count=100)
    assert share(ended, "promote") >= 0.98
    assert np.quantile([run.labels for run in ended], 0.9) <= 35 * 200


@pytest.mark.parametrize("mean", [-0.02, -0.05])
def test_a_worse_challenger_is_stopped_and_never_promoted(mean: float) -> None:
    ended = runs(World(mean=mean), seed=11, count=100)
    assert share(ended, "promote") == 0.0
    assert share(ended, "roll_back") >= 0.95


def errors_found_after(rng: np.random.Generator, challenger_rate: float, *, minutes: int = 60) -> int | None:
    """Minutes until the guardrail fires at 1,000 requests a minute, a tenth of them to the canary."""
    policy = RolloutPolicy(canary_timeout=30 * DAY)
    state = RolloutState(
        rollout=0,
        champion=1,
        challenger=2,
        policy=policy,
        stage="canary",
        started_at=START,
        stage_since=START,
        traffic_entry=0,
    )
    counts = ArmCounts()
    for minute in range(1, minutes + 1):
        ours = rng.binomial(1_000, 0.1)
        counts += ArmCounts(
            champion=1_000 - ours,
            challenger=ours,
            champion_errors=rng.binomial(1_000 - ours, 0.005),
            challenger_errors=rng.binomial(ours, challenger_rate),
        )
        decision = decide(
            state, Evidence(champion=1, canary=counts), policy, START + timedelta(minutes=minute)
        )
        if decision.action == "roll_back":
            return minute
    return None


def test_errors_up_from_half_a_percent_to_two_are_found_in_minutes() -> None:
    rng = np.random.default_rng(12)
    found = [errors_found_after(rng, 0.02) for _ in range(100)]
    assert None not in found
    assert np.median([minute for minute in found if minute is not None]) <= 6


def test_equal_error_rates_are_left_alone() -> None:
    # 300 null runs of an hour: rollbacks <= guard_alpha + 4 s.e.; the prior makes it far fewer in fact
    rng = np.random.default_rng(13)
    fired = sum(errors_found_after(rng, 0.005) is not None for _ in range(300)) / 300
    assert fired <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 300)
