"""Units that come back, each with a level of its own, and one that is broken: a unit is one observation over the whole split."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pytest

from tests.conditions.units import ONE_BROKEN, Units, in_arm, level_of
from toque.functions.evaluation.realised_loss import Scored
from toque.functions.rollout.evidence.cohort_sums import SplitSums
from toque.functions.rollout.evidence.metrics import ArmUnits, MetricArm, MetricCohort, MetricUnits
from toque.functions.rollout.evidence.sums import Evidence, MetricSums
from toque.functions.rollout.judge.decide import decide
from toque.functions.rollout.judge.guard_rules import not_shown_harmless
from toque.functions.rollout.judge.interval import excess_p_value, metric_change
from toque.functions.rollout.judge.verdict import RuleInput
from toque.functions.rollout.policy import Guardrail, RolloutPolicy
from toque.functions.rollout.state import RolloutState

START = datetime(2027, 1, 4, tzinfo=UTC)
DAY = timedelta(days=1)
DAYS = 28


@dataclass(frozen=True)
class Metric:
    """A metric of which each unit has a level: normal, or lognormal. harm: what the canary loses of each value."""

    units: Units
    lognormal: bool
    harm: float = 0.0

    def values(
        self, rng: np.random.Generator, ids: npt.NDArray[np.uint64], run: int
    ) -> npt.NDArray[np.float64]:
        level = level_of(ids, salt=2 * run) + 0.3 * rng.standard_normal(len(ids))
        return np.exp(level) if self.lognormal else 5.0 + level

    def cohort(self, rng: np.random.Generator, run: int, share: float) -> MetricCohort:
        assert self.units.count is not None
        ids = self.units.draw(rng, self.units.count)
        values, ours = self.values(rng, ids, run), in_arm(ids, share, salt=2 * run + 1)
        arms = (
            MetricArm.of(arm, ids[mine].astype(np.int64))
            for arm, mine in ((values[~ours], ~ours), (values[ours] - self.harm, ours))
        )
        return MetricCohort(*arms, requests=len(ids))


def state_of(policy: RolloutPolicy) -> RolloutState:
    return RolloutState(
        rollout=0, champion=1, challenger=2, policy=policy, stage="canary", started_at=START,
        stage_since=START, canary_since=START, traffic_entry=7,
    )  # fmt: skip


def verdicts(metric: Metric, *, runs: int) -> tuple[float, float]:
    """Shares of canaries that the guardrail ever rolls back, and ever lets through, looked at after each of 28 days."""
    guardrail = Guardrail(name="sales", margin=metric.harm)
    policy = RolloutPolicy(guardrails=(guardrail,))
    state, rng = state_of(policy), np.random.default_rng(1)
    stopped = passed = 0
    for run in range(runs):
        units, sums, ends = MetricUnits(), MetricSums(), set()
        for day in range(1, DAYS + 1):
            cohort = metric.cohort(rng, run, policy.canary_share)
            units = units.plus(cohort)
            sums = units.on(sums + cohort.sums())
            now, evidence = START + day * DAY, Evidence(champion=1, metrics={"sales": sums})
            ends.add(decide(state, evidence, policy, now, rules={"guardrails"}).rule)
            if not_shown_harmless(RuleInput(state, evidence, policy, now, None)) is None:
                ends.add("harmless")
        stopped += "guardrails" in ends
        passed += "harmless" in ends
    return stopped / runs, passed / runs


# Each at most .05 + 3 s.e.: of 40 runs .15, of 200 .10, of 100 .12.
@pytest.mark.parametrize(
    ("users", "kind", "runs"),
    [
        pytest.param(500, "normal", 40, id="few"),
        *(
            pytest.param(
                users, kind, runs, id=f"{users} {kind}", marks=[pytest.mark.proof, pytest.mark.timeout(1_200)]
            )
            for users, runs in ((2_000, 200), (20_000, 100))
            for kind in ("normal", "lognormal")
        ),
    ],
)
def test_a_guardrail_over_users_that_come_back_errs_at_most_as_often_as_declared(
    users: int, kind: str, runs: int
) -> None:
    bound = 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    returning = Units("returning", users, spread=1.0)
    equal, _ = verdicts(Metric(returning, lognormal=kind == "lognormal"), runs=runs)
    assert equal <= bound
    _, at_margin = verdicts(Metric(returning, lognormal=kind == "lognormal", harm=0.1), runs=runs)
    assert at_margin <= bound


@pytest.mark.parametrize("a_day", [60, 600])
def test_plain_harm_is_stopped_within_a_week_whatever_the_days_are_like(a_day: int) -> None:
    """And each day after: that more days ask for another width of neighbours lets no harm through again."""
    guardrail = Guardrail(name="complaints", margin=0.1, better="lower", floor=0, cap=1)
    policy = RolloutPolicy(guardrails=(guardrail,), canary_share=0.45)
    state, rng = state_of(policy), np.random.default_rng(5)
    units, sums, stopped = MetricUnits(), MetricSums(), []
    for day in range(1, DAYS + 1):
        ids = np.arange(day * a_day, (day + 1) * a_day)
        ours = rng.random(a_day) < policy.canary_share
        values = (rng.random(a_day) < np.where(ours, 0.9, 0.05)).astype(float)
        arms = (MetricArm.of(values[mine], ids[mine]) for mine in (~ours, ours))
        cohort = MetricCohort(*arms, requests=a_day, bounds=(0.0, 1.0))
        units = units.plus(cohort)
        sums = units.on(sums + cohort.sums())
        evidence = Evidence(champion=1, metrics={"complaints": sums})
        rule = decide(state, evidence, policy, START + day * DAY, rules={"guardrails"}).rule
        stopped.append(rule == "guardrails")
    assert stopped == sorted(stopped)
    assert sum(stopped) > DAYS - 7


def test_harm_over_users_that_come_back_is_found() -> None:
    users = Units("returning", 2_000)
    guardrail = Guardrail(name="sales", margin=0.0)
    units, sums, rng = MetricUnits(), MetricSums(), np.random.default_rng(2)
    for _ in range(DAYS):
        cohort = Metric(users, lognormal=False, harm=0.5).cohort(rng, 0, 0.5)
        units = units.plus(cohort)
        sums = units.on(sums + cohort.sums())
    change = metric_change(sums, guardrail, RolloutPolicy(), 0.05)
    assert change is not None
    assert change.upper < 0
    assert sums.champion_units + sums.challenger_units == 2_000


def test_the_variance_is_that_of_each_units_whole_contribution() -> None:
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(400), 28)
    values = np.repeat(rng.normal(size=400), 28) + 0.2 * rng.normal(size=400 * 28)
    day, ours = np.tile(np.arange(28), 400), ids % 2 == 1
    units, sums = MetricUnits(), MetricSums()
    for number in range(28):
        arms = (
            MetricArm.of(values[(day == number) & mine], ids[(day == number) & mine])
            for mine in (~ours, ours)
        )
        cohort = MetricCohort(*arms, requests=400)
        units = units.plus(cohort)
        sums = units.on(sums + cohort.sums())
    means = values.reshape(400, 28).mean(axis=1)
    by_hand = means[::2].var(ddof=1) / 200 + means[1::2].var(ddof=1) / 200
    assert sums.unit_noise / sums.difference.rows**2 == pytest.approx(
        by_hand, rel=0.05
    )  # neither arm is taken to vary less than both
    assert sums.unit_noise / sums.noise == pytest.approx(28 / 1.04, rel=0.1)
    assert (sums.champion_units, sums.challenger_units, sums.observations) == (200, 200, 400 * 28)
    assert MetricUnits.model_validate_json(units.model_dump_json()) == units


def test_units_that_never_vary_are_as_uncertain_as_there_are_units_not_days() -> None:
    # 100 users, each day the same, all without the event; one of 100 more might have it every day
    arm = MetricArm.of(np.zeros(100), np.arange(100))
    units = MetricUnits()
    for _ in range(28):
        units = units.plus(MetricCohort(arm, arm, requests=200, bounds=(0.0, 1.0)))
    sums = units.on(MetricSums(requests=5_600))
    assert np.sqrt(sums.unit_noise) / 5_600 == pytest.approx(np.sqrt(2) / 100, rel=0.02)


def test_more_units_than_slots_have_the_same_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    values, ids = rng.normal(size=20_000), rng.integers(2**62, size=20_000)
    whole = ArmUnits().plus(MetricArm.of(values, ids), 40_000.0, ())
    monkeypatch.setattr("toque.functions.rollout.evidence.slots.SLOTS", 1 << 10)
    shared = ArmUnits().plus(MetricArm.of(values, ids), 40_000.0, ())
    assert shared.units <= 1 << 10 < whole.units
    # 1,024 slots estimate a variance to 4.4 %; 3 s.e.
    assert np.square(shared.of_units()).sum() == pytest.approx(np.square(whole.of_units()).sum(), rel=0.14)


def rows_of(ids: npt.NDArray[np.uint64], ours: npt.NDArray[np.bool_]) -> Scored:
    """Requests that fail, of the challenger where `ours`."""
    n = len(ids)
    none, flags = np.full(n, np.nan), np.zeros(n, dtype=bool)
    names = np.array([f"unit-{number}" for number in ids], dtype=object)
    at = np.full(n, int((START + DAY).timestamp()) * 1_000_000)
    return Scored(
        id=names, version=np.where(ours, 2, 1), shadow=flags, unit=names, at=at,
        latency_ms=none, answered=flags, label=none, told=none, output=none, loss=none, expected=none, bias=none,
        outside=flags,
    )  # fmt: skip


def test_a_broken_client_counts_once_however_many_days_it_comes_back() -> None:
    rng, sums, state = np.random.default_rng(5), SplitSums(next_cohort=0), state_of(RolloutPolicy())
    failing = 0
    for _ in range(DAYS):
        ids = ONE_BROKEN.draw(rng, 1_000)
        failed = ids[ONE_BROKEN.fails(ids)]
        failing += len(failed)
        sums = sums.counting(rows_of(failed, np.ones(len(failed), dtype=bool)), state)
    canary = sums.canary
    assert (canary.champion_errors, canary.challenger_errors) == (0, 1)
    assert canary.challenger_unanswered == failing > DAYS
    assert excess_p_value(1, 0, 0.1) > RolloutPolicy().guard_alpha
    assert SplitSums.model_validate_json(sums.model_dump_json()) == sums


# 200 splits of ten broken clients at a tenth: an equal canary is rolled back in at most .05 + 4 s.e. = .112.
def test_broken_clients_that_come_back_stop_an_equal_canary_at_most_as_often_as_declared() -> None:
    rng, state, stopped = np.random.default_rng(6), state_of(RolloutPolicy()), 0
    for _ in range(200):
        clients, ours = np.arange(10, dtype=np.uint64), rng.random(10) < 0.1
        sums, fired = SplitSums(next_cohort=0), False
        for _ in range(DAYS):
            came = rng.random(10) < 0.5
            sums = sums.counting(rows_of(clients[came], ours[came]), state)
            canary = sums.canary
            fired |= (
                excess_p_value(canary.challenger_errors, canary.champion_errors, 0.1)
                < RolloutPolicy().guard_alpha
            )
        stopped += fired
    assert stopped / 200 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


# So many failing units that most slots are taken: an arm with a tenth of them still has a tenth of the count.
def test_units_that_share_a_slot_leave_each_arm_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toque.functions.rollout.evidence.slots.SLOTS", 1 << 10)
    rng, sums, state = np.random.default_rng(7), SplitSums(next_cohort=0), state_of(RolloutPolicy())
    for _ in range(DAYS):
        ids = rng.integers(2**62, size=200, dtype=np.uint64)
        sums = sums.counting(rows_of(ids, rng.random(200) < 0.1), state)
    ours, theirs = sums.canary.challenger_errors, sums.canary.champion_errors
    assert 1_000 < ours + theirs <= 1 << 10
    assert ours / (ours + theirs) == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 1_024))
