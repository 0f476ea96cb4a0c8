"""What goes wrong around a rollout, on the real journal and tables: defined, and never a promotion that nobody asked for.

Kills, duplicated ticks, two tickers and changes by hand are in test_controller.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from tests.functions.rollout.conftest import MODEL, RolloutPlatform
from toque.functions.rollout.policy import RolloutPolicy, Slo
from toque.functions.rollout.status import TickResult
from toque.registry.models.traffic import Traffic

DAY = timedelta(days=1)
ENDS = ("promoted", "rolled_back", "inconclusive")
POLICY = RolloutPolicy(shadow_min_labels=200, shadow_timeout=6 * DAY, canary_timeout=6 * DAY)


def live(platform: RolloutPlatform, days: int, *, requests: int = 200) -> list[TickResult]:
    """Days with a tick each until the rollout ends. requests: 0 is a day on which nobody asks."""
    ticks: list[TickResult] = []
    for _ in range(days):
        if requests:
            platform.serve_a_day(requests)
        else:
            platform.now += DAY
        ticks.append(platform.rollouts().tick())
        if ticks[-1].stage in ENDS:
            break
    return ticks


def start(platform: RolloutPlatform, policy: RolloutPolicy = POLICY, *, until: str = "shadow") -> None:
    """Start version 2, and go on until it has come to the stage `until`."""
    platform.rollouts().start(2, policy, reason="a try")
    while platform.rollouts().history().open.stage != until:
        live(platform, 1)


def said(platform: RolloutPlatform, rule: str) -> list[str]:
    """What a rule found at each recorded decision."""
    return [
        finding["text"]
        for entry in platform.rollouts().entries()
        if entry.body["event"] == "decided"
        for finding in entry.body["decision"]["findings"]
        if finding["rule"] == rule
    ]


def assert_left_out(platform: RolloutPlatform, last: TickResult, *, stage: str, rule: str) -> None:
    """It ended so; users get the champion; and every decision comes out again."""
    assert (last.stage, last.rule) == (stage, rule)
    assert platform.registry.now.versions == (1,)
    for entry in platform.rollouts().entries():
        if entry.body["event"] == "decided":
            assert platform.rollouts().explain(entry.number).same


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_a_rollout_without_traffic_ends_inconclusive(platform: RolloutPlatform, stage: str) -> None:
    start(platform, until=stage)
    ticks = live(platform, 8, requests=0)
    assert {tick.action for tick in ticks[:-1]} == {"hold"}
    assert_left_out(platform, ticks[-1], stage="inconclusive", rule="timed_out")


def test_a_canary_that_gets_no_traffic_is_not_promoted(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(platform, until="canary")
    monkeypatch.setattr(Traffic, "assign", lambda traffic, _unit: traffic.champion)
    ticks = live(platform, 8)
    assert_left_out(platform, ticks[-1], stage="inconclusive", rule="timed_out")
    assert said(platform, "better")[-1] == "the canary answered 0 of 20 requests"


def test_a_canary_that_gets_all_traffic_is_not_promoted(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(platform, until="canary")
    monkeypatch.setattr(Traffic, "assign", lambda traffic, _unit: traffic.arms[-1])
    ticks = live(platform, 8)
    assert_left_out(platform, ticks[-1], stage="inconclusive", rule="mismatch")


def test_a_challenger_that_answers_nan_is_stopped_in_the_shadow(platform: RolloutPlatform) -> None:
    platform.failing = {2: 1.0}
    start(platform)
    assert_left_out(platform, live(platform, 8)[-1], stage="rolled_back", rule="errors")


def test_labels_that_are_nan_are_no_labels(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = platform._label
    monkeypatch.setattr(platform, "_label", lambda ids, truth, at: label(ids, truth * math.nan, at))
    start(platform)
    last = live(platform, 8)[-1]
    assert last.labels == 0
    assert_left_out(platform, last, stage="inconclusive", rule="timed_out")


def test_a_challenger_that_answers_as_the_champion_does_is_never_judged(platform: RolloutPlatform) -> None:
    platform.quality = {1: 0.5, 2: 0.5}
    start(platform)
    last = live(platform, 8)[-1]
    assert last.labels > POLICY.burn_in
    assert (last.lower, last.upper) == (None, None)
    assert_left_out(platform, last, stage="inconclusive", rule="timed_out")


@pytest.mark.parametrize("struck", [1, 2])
def test_one_enormous_answer_neither_promotes_nor_stops(
    platform: RolloutPlatform, struck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.quality = {1: 0.5, 2: 0.52}
    row = platform._row

    def enormous(name: str, version: int, *args: Any, **kwargs: Any) -> dict[str, Any]:
        made: dict[str, Any] = row(name, version, *args, **kwargs)
        return made | {"outputs": [1e30]} if (name, version) == ("122-7", struck) else made

    monkeypatch.setattr(platform, "_row", enormous)
    start(platform, POLICY.model_copy(update={"loss": "squared_error"}))
    last = live(platform, 14)[-1]
    assert last.lower is not None
    assert last.upper is not None
    assert max(-last.lower, last.upper) > 1  # the answer did count
    assert_left_out(platform, last, stage="inconclusive", rule="timed_out")


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_a_label_stream_that_stops_promotes_nothing(platform: RolloutPlatform, stage: str) -> None:
    platform.quality = {1: 0.5, 2: 0.6}
    start(platform, POLICY.model_copy(update={"min_label_share": 0.9}), until=stage)
    platform.labelled = 0.0
    ticks = live(platform, 8)
    assert_left_out(platform, ticks[-1], stage="inconclusive", rule="timed_out")
    assert "90% are needed" in said(platform, "better" if stage == "canary" else "shadow_done")[-1]


def test_a_clock_that_goes_back_holds_and_writes_nothing(platform: RolloutPlatform) -> None:
    start(platform, until="canary")
    entries, began = len(platform.rollouts().entries()), platform.now
    platform.now -= 400 * DAY
    assert platform.rollouts().tick().action == "hold"
    assert len(platform.rollouts().entries()) == entries
    platform.now = began
    assert live(platform, 8)[-1].stage == "promoted"


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_a_clock_that_jumps_ahead_promotes_nothing(platform: RolloutPlatform, stage: str) -> None:
    start(platform, until=stage)
    platform.now += 400 * DAY
    assert_left_out(platform, platform.rollouts().tick(), stage="inconclusive", rule="timed_out")


def test_a_budget_that_burns_under_both_versions_rolls_no_canary_back_and_lets_none_through(
    platform: RolloutPlatform,
) -> None:
    start(platform, POLICY.model_copy(update={"slos": (Slo(name="up", target=0.99),)}), until="canary")
    platform.failing = {1: 0.4, 2: 0.4}
    last = live(platform, 1, requests=2_000)[-1]
    assert (last.stage, last.action, last.rule) == ("canary", "hold", "budget_spent")


def test_an_improvement_that_is_not_worth_it_ends_inconclusive(platform: RolloutPlatform) -> None:
    platform.quality = {1: 0.5, 2: 0.52}
    start(platform, POLICY.model_copy(update={"min_effect": 0.05}))
    assert_left_out(platform, live(platform, 8)[-1], stage="inconclusive", rule="too_small")


@pytest.mark.parametrize(("first", "then"), [(0.1, 0.5), (0.5, 0.1)])
def test_a_share_changed_by_hand_begins_its_own_counts(
    platform: RolloutPlatform, first: float, then: float
) -> None:
    platform.failing = {1: 0.05, 2: 0.05}
    policy = RolloutPolicy(shadow_min_labels=200, canary_share=first, canary_min=20 * DAY)
    platform.rollouts().start(2, policy, reason="retrained")
    while platform.registry.now.champion.share == 1.0:
        platform.serve_a_day()
        platform.rollouts().tick()
    for _ in range(3):
        platform.serve_a_day(400)
        assert platform.rollouts().tick().action == "hold"
    platform.registry.set_traffic(MODEL, {"canary": (2, then)}, shadows=[2])
    tick = platform.rollouts().tick()
    assert (tick.action, tick.rule) == ("hold", "split")
    assert f"{then:.2%}" in tick.text
    state = platform.rollouts().history().current
    assert state is not None
    assert (state.split_since, state.split_share) == (platform.now, pytest.approx(then))
    for _ in range(3):
        platform.serve_a_day(400)
        tick = platform.rollouts().tick()
        assert (tick.action, tick.rule) in {("hold", "undecided"), ("promote", "better")}
    evidence = platform.rollouts().entries()[-1].body["evidence"]
    assert evidence["canary"]["champion"] + evidence["canary"]["challenger"] <= 1_200
    assert evidence["loss"]["requests"] > 1_200  # the paired loss is of no split
    assert platform.rollouts().explain(platform.rollouts().entries()[-1].number).same


def test_a_canary_whose_shadow_was_left_out_by_hand_gets_it_back(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, RolloutPolicy(shadow_min_labels=200), reason="retrained")
    while platform.registry.now.champion.share == 1.0:
        platform.serve_a_day()
        platform.rollouts().tick()
    platform.registry.set_traffic(MODEL, {"canary": (2, 0.3)})
    platform.serve_a_day()
    assert platform.rollouts().tick().action == "hold"
    assert platform.registry.now.shadows == (2,)
    assert [arm.share for arm in platform.registry.now.arms[1:]] == [0.3]
