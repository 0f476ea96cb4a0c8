from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from toque.functions.rollout.evidence.sums import ArmCounts, Evidence, PairedLoss
from toque.functions.rollout.judge.decide import Decision, decide
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.state import RolloutState
from toque.functions.stats import ClusterSums, SeriesSums

START = datetime(2013, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = RolloutPolicy()


def state(stage: str = "shadow", **changes: Any) -> RolloutState:
    fields: dict[str, Any] = {
        "rollout": 0,
        "champion": 1,
        "challenger": 2,
        "policy": POLICY,
        "stage": stage,
        "started_at": START,
        "stage_since": START,
        "traffic_entry": 7,
    }
    return RolloutState(**(fields | changes))


def cohort(rng: np.random.Generator, mean: float, *, labels: int = 200, spread: float = 0.3) -> PairedLoss:
    difference = rng.normal(mean, spread, labels)
    units = [str(i) for i in range(labels)]
    base = np.full(labels, 0.5)
    return PairedLoss.of_cohort(base + difference, base, units, pairs=labels, requests=labels)


def loss(mean: float, *, cohorts: int = 20, seed: int = 1) -> PairedLoss:
    rng = np.random.default_rng(seed)
    total = PairedLoss()
    for _ in range(cohorts):
        total += cohort(rng, mean)
    return total


BUSY = ArmCounts(champion=1800, challenger=200)


def judge(the_state: RolloutState, evidence: Evidence, *, days: float = 3.0) -> Decision:
    return decide(the_state, evidence, the_state.policy, START + days * DAY)


def test_a_better_challenger_advances_then_is_promoted() -> None:
    evidence = Evidence(
        champion=1, loss=loss(0.05), shadow=ArmCounts(champion=4000, challenger=4000), canary=BUSY
    )
    assert judge(state(), evidence).rule == "shadow_done"
    assert judge(state(), evidence).action == "advance"
    assert judge(state("canary"), evidence).action == "promote"


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_a_worse_challenger_is_rolled_back_even_while_paused(stage: str) -> None:
    evidence = Evidence(champion=1, loss=loss(-0.05), canary=BUSY)
    assert judge(state(stage, paused=True), evidence).rule == "worse"
    assert judge(state(stage, paused=True), evidence).action == "roll_back"


def test_a_paused_rollout_whose_error_guardrail_fires_rolls_back() -> None:
    errors = ArmCounts(champion=900, challenger=100, champion_errors=1, challenger_errors=12)
    decision = judge(state("canary", paused=True), Evidence(champion=1, loss=loss(0.05), canary=errors))
    assert (decision.action, decision.rule) == ("roll_back", "errors")


def test_a_paused_rollout_is_neither_promoted_nor_timed_out() -> None:
    evidence = Evidence(champion=1, loss=loss(0.05), canary=BUSY)
    assert judge(state("canary", paused=True), evidence, days=400).action == "hold"


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_no_traffic_holds_and_then_ends_inconclusive(stage: str) -> None:
    assert judge(state(stage), Evidence(champion=1)).action == "hold"
    late = judge(state(stage), Evidence(champion=1), days=30)
    assert (late.action, late.rule) == ("inconclusive", "timed_out")


@pytest.mark.parametrize("stage", ["shadow", "canary"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_sums_that_are_not_finite_never_promote(stage: str, bad: float) -> None:
    broken = PairedLoss(
        by_unit=ClusterSums(rows=900, clusters=900, total=bad, square=1.0, size_square=900.0),
        by_cohort=SeriesSums(rows=900, clusters=9, total=bad, square=1.0, size_square=90000.0),
        pairs=900,
        requests=900,
    )
    evidence = Evidence(champion=1, loss=broken, canary=BUSY)
    assert judge(state(stage), evidence).action == "hold"
    assert judge(state(stage), evidence, days=30).action == "inconclusive"


def test_differences_that_do_not_vary_are_not_judged() -> None:
    constant = PairedLoss()
    for _ in range(10):
        constant += PairedLoss.of_cohort(
            np.full(100, 0.6), np.full(100, 0.5), [str(i) for i in range(100)], pairs=100, requests=100
        )
    # Sums of 0.1 leave a residual of rounding; what must not happen is a promotion on it by chance of the sign.
    same = PairedLoss.of_cohort(
        np.full(500, 0.5), np.full(500, 0.5), [str(i) for i in range(500)], pairs=500, requests=500
    )
    assert judge(state("canary"), Evidence(champion=1, loss=same + same, canary=BUSY)).action == "hold"


def test_a_canary_without_traffic_is_not_promoted_however_good_the_shadow() -> None:
    for counts in (ArmCounts(champion=2000), ArmCounts(challenger=2000), ArmCounts()):
        assert judge(state("canary"), Evidence(champion=1, loss=loss(0.05), canary=counts)).action == "hold"


def test_a_stopped_label_stream_is_not_promoted() -> None:
    few = loss(0.05).model_copy(update={"pairs": 20_000, "requests": 20_000})
    decision = judge(state("canary"), Evidence(champion=1, loss=few, canary=BUSY))
    assert decision.action == "hold"
    assert any("have a label" in finding.text for finding in decision.findings)


def test_a_shadow_that_skipped_most_requests_is_not_promoted() -> None:
    few = loss(0.05).model_copy(update={"requests": 20_000})
    assert judge(state("canary"), Evidence(champion=1, loss=few, canary=BUSY)).action == "hold"


def test_a_champion_changed_by_hand_ends_the_comparison() -> None:
    for live in (3, 2, None):
        decision = judge(state("canary"), Evidence(champion=live, loss=loss(0.05), canary=BUSY))
        assert (decision.action, decision.rule) == ("inconclusive", "champion_changed")


def test_an_unusable_challenger_is_rolled_back() -> None:
    evidence = Evidence(champion=1, challenger_problem="version 2 was rejected", loss=loss(0.05), canary=BUSY)
    assert judge(state("canary", paused=True), evidence).action == "roll_back"


def test_a_clock_that_went_back_holds() -> None:
    evidence = Evidence(champion=1, loss=loss(0.05), canary=BUSY)
    assert judge(state("canary"), evidence, days=-1).rule == "clock_went_back"


def test_an_improvement_too_small_to_matter_is_inconclusive() -> None:
    policy = RolloutPolicy(min_effect=0.2)
    decision = judge(state("canary", policy=policy), Evidence(champion=1, loss=loss(0.0), canary=BUSY))
    assert (decision.action, decision.rule) == ("inconclusive", "too_small")


def test_within_a_margin_an_equal_one_is_promoted_and_one_proven_worse_is_not() -> None:
    evidence = {effect: Evidence(champion=1, loss=loss(effect), canary=BUSY) for effect in (0.0, -0.05)}
    wide, none = RolloutPolicy(min_effect=-0.2), RolloutPolicy()
    assert judge(state("canary", policy=wide), evidence[0.0]).action == "promote"
    assert judge(state("canary", policy=none), evidence[0.0]).action == "hold"
    assert judge(state("canary", policy=wide), evidence[-0.05]).rule == "worse"


def test_slow_answers_roll_back_in_canary_only() -> None:
    policy = RolloutPolicy(slow_ms=100.0)
    slow = ArmCounts(champion=900, challenger=100, champion_slow=2, challenger_slow=15)
    evidence = Evidence(champion=1, shadow=slow, canary=slow)
    assert judge(state("canary", policy=policy), evidence).rule == "slow"
    assert judge(state("shadow", policy=policy), evidence).action == "hold"
    assert judge(state("canary"), evidence).action == "hold"


def test_a_decision_survives_json_bit_for_bit() -> None:
    evidence = Evidence(champion=1, loss=loss(0.013), canary=BUSY)
    again = Evidence.model_validate_json(evidence.model_dump_json())
    assert again == evidence
    decision = judge(state("canary"), evidence)
    assert (
        judge(state("canary"), again) == decision == Decision.model_validate_json(decision.model_dump_json())
    )


def test_an_ended_rollout_and_a_naive_time_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing left to decide"):
        decide(state("promoted"), Evidence(champion=1), POLICY, START)
    with pytest.raises(ValueError, match="no time zone"):
        decide(state(), Evidence(champion=1), POLICY, datetime(2013, 5, 1))  # noqa: DTZ001
