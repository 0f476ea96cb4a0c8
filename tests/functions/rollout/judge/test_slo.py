"""Error budgets: counted on what users got, refusing, holding and rolling back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from tests.functions.rollout.conftest import RolloutPlatform
from tests.functions.rollout.judge.test_rollback_rules import BUSY, DAY, START, better_loss, canary
from toque.functions.rollout import Evidence, RolloutError, RolloutPolicy, Slo
from toque.functions.rollout.evidence.sums import SloSums
from toque.functions.rollout.judge.decide import Decision, decide
from toque.functions.rollout.judge.slo import slo_sums

HOUR = timedelta(hours=1)
UP = Slo(name="up", target=0.99, window=7 * DAY)
POLICY = RolloutPolicy(slos=(UP,), canary_timeout=60 * DAY)


def judge(sums: SloSums, *, days: float = 30, **state: Any) -> Decision:
    evidence = Evidence(champion=1, loss=better_loss(), canary=BUSY, shadow=BUSY, slos={"up": sums})
    return decide(canary(POLICY, **state), evidence, POLICY, START + days * DAY)


def sums(*, bad: int, recent_bad: int) -> SloSums:
    """Ten thousand answers a week, and of late six hours of a hundred answers each five minutes."""
    spans = (
        ((1_200, recent_bad), (100, recent_bad // 12)),
        ((7_200, 6 * recent_bad), (600, recent_bad // 2)),
    )
    return SloSums(answers=10_000, bad=bad, recent=spans)


def test_with_room_for_mistakes_a_better_canary_is_promoted() -> None:
    decision = judge(sums(bad=100, recent_bad=12))
    assert (decision.action, decision.rule) == ("promote", "better")


def test_a_spent_budget_holds_until_the_stage_is_over() -> None:
    held = judge(sums(bad=101, recent_bad=0))
    assert (held.action, held.rule) == ("hold", "budget_spent")
    assert "101 of 10000 answers" in held.text
    assert "100.0 are allowed" in held.text
    over = judge(sums(bad=101, recent_bad=0), days=61)
    assert over.rule != "budget_spent"


# 14.4 times 1 % of an hour's 1,200 answers are 173; 6 times 1 % of six hours' 7,200 are 432.
@pytest.mark.parametrize(("recent_bad", "fires"), [(60, False), (74, True), (204, True)])
def test_a_budget_that_burns_in_a_long_and_a_short_window_rolls_a_canary_back(
    recent_bad: int, *, fires: bool
) -> None:
    decision = judge(sums(bad=90, recent_bad=recent_bad), paused=fires)
    assert (decision.rule == "budget_burns") == fires
    assert (decision.action == "roll_back") == fires


@pytest.mark.parametrize("others_bad", [0, 20, 204])
def test_a_canary_is_rolled_back_for_a_budget_that_would_not_burn_without_it(others_bad: int) -> None:
    others = sums(bad=90, recent_bad=others_bad).recent
    burning = sums(bad=90, recent_bad=204).model_copy(update={"without_challenger": others})
    decision = judge(burning)
    if others_bad < 74:
        assert (decision.action, decision.rule) == ("roll_back", "budget_burns")
    else:
        assert (decision.action, decision.rule) == ("hold", "budget_spent")
        assert "by the answers of others than the challenger" in decision.text


@pytest.mark.parametrize(("failing", "to_blame"), [({1: 0.5}, 1), ({2: 0.5}, 2)])
def test_answers_of_a_challenger_are_told_apart_from_the_others(
    platform: RolloutPlatform, failing: dict[int, float], to_blame: int
) -> None:
    platform.rollouts().start(2, RolloutPolicy(shadow_min_labels=30), reason="retrained")
    while platform.rollouts().history().open.stage != "canary":
        platform.serve_a_day(requests=200)
        platform.rollouts().tick()
    platform.failing = failing
    platform.serve_a_day(requests=2_000)
    found = slo_sums((UP,), platform.store, platform.model, platform.now, challenger=2)["up"]
    (answers, bad), (others, others_bad) = found.recent[1][0], found.without_challenger[1][0]
    assert 0 < others < answers
    assert (others_bad == bad > 0) if to_blame == 1 else (others_bad == 0 < bad)


def test_what_burnt_an_hour_ago_is_no_fire_nor_is_a_failure_or_two() -> None:
    past = SloSums(answers=10_000, bad=90, recent=(((1_200, 400), (100, 0)), ((7_200, 400), (600, 0))))
    quiet = SloSums(answers=10_000, bad=90, recent=(((9, 9), (9, 9)), ((9, 9), (9, 9))))
    assert judge(past).rule == judge(quiet).rule == "better"
    shadow = judge(sums(bad=90, recent_bad=204), stage="shadow", canary_since=None)
    assert shadow.rule != "budget_burns"


def test_answers_are_counted_whoever_gave_them_but_shadows(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, RolloutPolicy(shadow_min_labels=200), reason="retrained")
    platform.failing, platform.slow = {1: 0.2, 2: 1.0}, {1: 0.1}
    platform.serve_a_day(requests=200)
    fast = Slo(name="fast", target=0.9, slow_ms=100.0, window=DAY)
    found = slo_sums((UP, fast), platform.store, platform.model, platform.now)
    rows = platform.rollouts()._read(platform.now - DAY, platform.now).to_pylist()
    mine = [row for row in rows if not row["shadow"]]
    assert found["up"].answers == found["fast"].answers == 200
    assert found["up"].bad == sum(row["outputs"][0] != row["outputs"][0] for row in mine) > 20
    assert found["fast"].bad == sum(row["latency_ms"] > 100 for row in mine) > 5
    assert found["up"].recent[0][0][0] == sum(row["predicted_at"] >= platform.now - HOUR for row in mine)


def test_a_rollout_is_not_started_on_a_spent_budget_and_is_explained_with_it(
    platform: RolloutPlatform,
) -> None:
    platform.failing = {1: 0.2}
    platform.serve_a_day(requests=100)
    with pytest.raises(RolloutError, match="error budget of up is spent"):
        platform.rollouts().start(2, POLICY, reason="retrained")
    platform.failing = {}
    platform.now += 8 * DAY
    platform.rollouts().start(2, POLICY, reason="retrained")
    platform.serve_a_day(requests=150)
    platform.serve_a_day(requests=150)
    entry = platform.rollouts().tick().entry
    explained = platform.rollouts().explain(entry)
    assert explained.same
    assert explained.evidence.slos["up"].answers == 300


@pytest.mark.parametrize("change", [{"target": 1.0}, {"window": timedelta(0)}, {"slow_ms": 0.0}])
def test_an_objective_that_cannot_be_kept_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Slo(**({"name": "up"} | change))
