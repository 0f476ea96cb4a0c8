"""Several challengers against one champion, and alpha over a year."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.rollout import Evidence, PairedLoss, RolloutError, RolloutPolicy, decide
from toque.functions.rollout.evidence.sums import ArmCounts
from toque.functions.rollout.state import AlphaSpent, History, RolloutState, budget
from toque.functions.stats import ClusterSums, SeriesSums

START = datetime(2013, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = RolloutPolicy(shadow_timeout=60 * DAY, canary_timeout=60 * DAY, shadow_min_labels=400)
DAYS = 40


def shadow(arms: int, policy: RolloutPolicy = POLICY) -> RolloutState:
    versions = tuple(range(2, 2 + arms))
    return RolloutState(
        rollout=0, champion=1, challenger=2, rivals=versions[1:], entered=versions if arms > 1 else (),
        policy=policy, stage="shadow", started_at=START, stage_since=START, traffic_entry=0,
    )  # fmt: skip


def cohort(rng: np.random.Generator, means: dict[int, float], shock: float) -> dict[int, PairedLoss]:
    """One day of 200 labels on which all challengers are judged; a part of each loss is common to them."""
    common = rng.normal(0, 0.2, 200)
    return {
        version: paired(mean + shock * rng.normal() + common + rng.normal(0, 0.2, 200))
        for version, mean in means.items()
    }


def paired(difference: np.ndarray) -> PairedLoss:
    n = len(difference)
    return PairedLoss(
        by_unit=ClusterSums.of_sums(difference, np.ones(n)),
        by_cohort=SeriesSums.one(float(difference.sum()), n),
        pairs=n,
        requests=n,
    )


def rollout(rng: np.random.Generator, means: dict[int, float], shock: float = 0.0) -> tuple[str, int]:
    """A whole rollout, looked at daily: how it ended, and for which version."""
    state, canary = shadow(len(means)), ArmCounts()
    losses = {version: PairedLoss() for version in means}
    for day in range(1, DAYS + 1):
        for version, new in cohort(rng, means, shock).items():
            losses[version] += new
        if state.stage == "canary":
            canary += ArmCounts(champion=180, challenger=20)
        rivals = {version: Evidence(champion=1, loss=losses[version]) for version in state.rivals}
        evidence = Evidence(champion=1, loss=losses[state.challenger], canary=canary, rivals=rivals)
        now = START + day * DAY
        decision = decide(state, evidence, POLICY, now)
        if decision.action == "drop":
            left = [version for version in state.alive if version not in decision.dropped]
            state = state.model_copy(update={"challenger": left[0], "rivals": tuple(left[1:])})
        elif decision.action == "advance":
            chosen = decision.chosen or state.challenger
            state = state.model_copy(
                update={"challenger": chosen, "rivals": (), "stage": "canary", "stage_since": now}
            )
        elif decision.action != "hold":
            return decision.action, state.challenger
    return "open", state.challenger


# 150 runs of four equal challengers, looked at daily, days differing: any promoted in at most .05 + 4 s.e. = .121.
def test_the_best_of_equal_challengers_is_promoted_at_most_alpha() -> None:
    rng = np.random.default_rng(1)
    ended = [rollout(rng, dict.fromkeys(range(2, 6), 0.0), 0.04)[0] for _ in range(150)]
    assert ended.count("promote") / 150 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 150)


def test_the_better_one_of_three_wins_and_the_worse_leaves_early() -> None:
    rng = np.random.default_rng(2)
    ended = [rollout(rng, {2: -0.05, 3: 0.0, 4: 0.08}) for _ in range(20)]
    assert ended.count(("promote", 4)) >= 19


def test_each_challenger_is_judged_at_its_part_of_alpha_also_alone_in_the_canary() -> None:
    rng = np.random.default_rng(3)
    losses = [cohort(rng, {2: 0.03, 3: 0.02}, 0.0) for _ in range(5)]
    one, two = (sum((day[v] for day in losses), PairedLoss()) for v in (2, 3))
    decision = decide(
        shadow(2), Evidence(champion=1, loss=one, rivals={3: Evidence(champion=1, loss=two)}), POLICY, START
    )
    assert (decision.action, decision.chosen) == ("advance", 2)
    assert {finding.arm for finding in decision.findings} == {2, 3}
    assert "estimated improvement" in decision.text
    later = shadow(2).model_copy(update={"rivals": (), "stage": "canary"})
    worse = next(
        f for f in decide(later, Evidence(champion=1, loss=one), POLICY, START).findings if f.rule == "worse"
    )
    assert "at level 0.025" in worse.text


def test_one_that_is_unusable_leaves_and_the_last_one_ends_it() -> None:
    broken = Evidence(champion=1, challenger_problem="version 2 was rejected")
    decision = decide(
        shadow(2), broken.model_copy(update={"rivals": {3: Evidence(champion=1)}}), POLICY, START
    )
    assert (decision.action, decision.dropped) == ("drop", (2,))
    assert "version 2 leaves by challenger_unusable" in decision.text
    both = broken.model_copy(update={"rivals": {3: broken}})
    assert decide(shadow(2), both, POLICY, START).action == "roll_back"


def test_what_concerns_all_concerns_all() -> None:
    nothing = Evidence(champion=1, rivals={3: Evidence(champion=1)})
    assert decide(shadow(2), nothing, POLICY, START).action == "hold"
    assert decide(shadow(2), nothing, POLICY, START + 61 * DAY).rule == "timed_out"
    paused = shadow(2).model_copy(update={"paused": True})
    assert decide(paused, nothing, POLICY, START + 61 * DAY).rule == "paused"
    changed = Evidence(champion=9, rivals={3: Evidence(champion=9)})
    assert decide(shadow(2), changed, POLICY, START).rule == "champion_changed"


def test_three_challengers_share_the_shadow_and_the_best_becomes_champion(platform: RolloutPlatform) -> None:
    platform.registry.statuses[4] = "READY"
    platform.quality = {1: 0.5, 2: -0.3, 3: 0.9, 4: 0.5}
    policy = RolloutPolicy(shadow_min_labels=1_600)
    platform.rollouts().start(2, policy, reason="three windows", rivals=(3, 4))
    assert platform.registry.now.shadows == (2, 3, 4)
    assert platform.rollouts().start(2, policy, reason="again", rivals=(3, 4)).rivals == (3, 4)
    seen = []
    for _ in range(45):
        platform.serve_a_day()
        tick = platform.rollouts().tick()
        seen.append((tick.action, platform.registry.now.shadows))
        if platform.rollouts().history().open is None:
            break
    actions = [action for action, _ in seen]
    assert ("drop", (3, 4)) in seen
    assert actions.index("drop") < actions.index("advance") < actions.index("promote")
    assert platform.registry.now.versions == (3,)
    decided = [entry for entry in platform.rollouts().entries() if entry.body["event"] == "decided"]
    assert all(platform.rollouts().explain(entry.number).same for entry in decided)


def test_a_rival_taken_out_by_hand_leaves_alone(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="two", rivals=(3,))
    platform.quality[3] = 0.5
    platform.serve_a_day(requests=20)
    platform.registry.by_hand(1, shadows=[2])
    tick = platform.rollouts().tick()
    assert (tick.action, tick.stage) == ("drop", "shadow")
    assert platform.registry.now.shadows == (2,)
    assert platform.rollouts().end("inconclusive", reason="enough").stage == "inconclusive"
    assert platform.registry.now.versions == (1,)
    with pytest.raises(RolloutError, match="twice"):
        platform.rollouts().start(2, POLICY, reason="twice", rivals=(2,))


def test_alpha_is_given_out_of_a_years_budget_which_never_runs_dry() -> None:
    policy = RolloutPolicy(alpha=0.05, wrong_promotions_a_year=0.5)
    history, given = History(), []
    for week in range(60):
        now = START + week * 7 * DAY
        given.append(budget(history, policy, now).alpha)
        history = history.model_copy(update={"spent": (*history.spent, AlphaSpent(at=now, alpha=given[-1]))})
    assert given[:7] == pytest.approx([0.05] * 7)  # until a quarter of what is left is less
    assert min(given) > 0
    for first in range(8):
        assert sum(given[first : first + 52]) <= 0.5  # any 52 weeks
    assert budget(history, RolloutPolicy(), START + 60 * 7 * DAY).left is None


def test_a_start_takes_the_alpha_that_is_left_and_a_spent_budget_refuses(platform: RolloutPlatform) -> None:
    tight = RolloutPolicy(wrong_promotions_a_year=0.04)
    state = platform.rollouts().start(2, tight, reason="first")
    assert state.policy.alpha == 0.01
    found = platform.rollouts().budget(tight)
    assert (found.rollouts, found.spent, found.left) == (1, 0.01, pytest.approx(0.03))
    platform.rollouts().end("inconclusive", reason="over")
    with pytest.raises(RolloutError, match="is spent: 1 rollouts of the past year"):
        platform.rollouts().start(2, RolloutPolicy(wrong_promotions_a_year=0.01), reason="second")
    platform.now += timedelta(days=366)
    assert platform.rollouts().start(2, tight, reason="a year later").policy.alpha == 0.01
