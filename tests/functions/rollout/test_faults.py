"""What goes wrong around a rollout, on the real journal and tables: defined, and never a promotion that nobody asked for.

Kills, duplicated ticks, two tickers and changes by hand are in test_controller.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from functions.rollout.controller import TickResult
from functions.rollout.policy import RolloutPolicy, Slo
from registry.models.traffic import Traffic

DAY = timedelta(days=1)
ENDS = ("promoted", "rolled_back", "inconclusive")
POLICY = RolloutPolicy(shadow_min_labels=200, shadow_timeout=6 * DAY, canary_timeout=6 * DAY)


def live(kitchen: Any, days: int, *, requests: int = 200) -> list[TickResult]:
    """Days with a tick each until the rollout ends. requests: 0 is a day on which nobody asks."""
    ticks: list[TickResult] = []
    for _ in range(days):
        if requests:
            kitchen.serve_a_day(requests)
        else:
            kitchen.now += DAY
        ticks.append(kitchen.rollouts().tick())
        if ticks[-1].stage in ENDS:
            break
    return ticks


def start(kitchen: Any, policy: RolloutPolicy = POLICY, *, until: str = "shadow") -> None:
    """Start version 2, and go on until it has come to the stage `until`."""
    kitchen.rollouts().start(2, policy, reason="a try")
    while kitchen.rollouts().history().open.stage != until:
        live(kitchen, 1)


def said(kitchen: Any, rule: str) -> list[str]:
    """What a rule found at each recorded decision."""
    return [
        finding["text"]
        for entry in kitchen.rollouts().entries()
        if entry.body["event"] == "decided"
        for finding in entry.body["decision"]["findings"]
        if finding["rule"] == rule
    ]


def assert_left_out(kitchen: Any, last: TickResult, *, stage: str, rule: str) -> None:
    """It ended so; users get the champion; and every decision comes out again."""
    assert (last.stage, last.rule) == (stage, rule)
    assert kitchen.registry.now.versions == (1,)
    for entry in kitchen.rollouts().entries():
        if entry.body["event"] == "decided":
            assert kitchen.rollouts().explain(entry.number).same


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_a_rollout_without_traffic_ends_inconclusive(kitchen: Any, stage: str) -> None:
    start(kitchen, until=stage)
    ticks = live(kitchen, 8, requests=0)
    assert {tick.action for tick in ticks[:-1]} == {"hold"}
    assert_left_out(kitchen, ticks[-1], stage="inconclusive", rule="timed_out")


def test_a_canary_that_gets_no_traffic_is_not_promoted(kitchen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start(kitchen, until="canary")
    monkeypatch.setattr(Traffic, "assign", lambda traffic, _unit: traffic.champion)
    ticks = live(kitchen, 8)
    assert_left_out(kitchen, ticks[-1], stage="inconclusive", rule="timed_out")
    assert said(kitchen, "better")[-1] == "the canary answered 0 of 20 requests"


def test_a_canary_that_gets_all_traffic_is_not_promoted(
    kitchen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(kitchen, until="canary")
    monkeypatch.setattr(Traffic, "assign", lambda traffic, _unit: traffic.arms[-1])
    ticks = live(kitchen, 8)
    assert_left_out(kitchen, ticks[-1], stage="inconclusive", rule="mismatch")


def test_a_challenger_that_answers_nan_is_stopped_in_the_shadow(kitchen: Any) -> None:
    kitchen.failing = {2: 1.0}
    start(kitchen)
    assert_left_out(kitchen, live(kitchen, 8)[-1], stage="rolled_back", rule="errors")


def test_labels_that_are_nan_are_no_labels(kitchen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    label = kitchen._label
    monkeypatch.setattr(kitchen, "_label", lambda ids, truth, at: label(ids, truth * math.nan, at))
    start(kitchen)
    last = live(kitchen, 8)[-1]
    assert last.labels == 0
    assert_left_out(kitchen, last, stage="inconclusive", rule="timed_out")


def test_a_challenger_that_answers_as_the_champion_does_is_never_judged(kitchen: Any) -> None:
    kitchen.quality = {1: 0.5, 2: 0.5}
    start(kitchen)
    last = live(kitchen, 8)[-1]
    assert last.labels > POLICY.burn_in
    assert (last.lower, last.upper) == (None, None)
    assert_left_out(kitchen, last, stage="inconclusive", rule="timed_out")


@pytest.mark.parametrize("struck", [1, 2])
def test_one_enormous_answer_neither_promotes_nor_stops(
    kitchen: Any, struck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen.quality = {1: 0.5, 2: 0.52}
    row = kitchen._row

    def enormous(name: str, version: int, *args: Any, **kwargs: Any) -> dict[str, Any]:
        made: dict[str, Any] = row(name, version, *args, **kwargs)
        return made | {"outputs": [1e30]} if (name, version) == ("122-7", struck) else made

    monkeypatch.setattr(kitchen, "_row", enormous)
    start(kitchen, POLICY.model_copy(update={"loss": "squared_error"}))
    last = live(kitchen, 14)[-1]
    assert last.lower is not None
    assert last.upper is not None
    assert max(-last.lower, last.upper) > 1  # the answer did count
    assert_left_out(kitchen, last, stage="inconclusive", rule="timed_out")


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_a_label_stream_that_stops_promotes_nothing(kitchen: Any, stage: str) -> None:
    kitchen.quality = {1: 0.5, 2: 0.6}
    start(kitchen, POLICY.model_copy(update={"min_label_share": 0.9}), until=stage)
    kitchen.labelled = 0.0
    ticks = live(kitchen, 8)
    assert_left_out(kitchen, ticks[-1], stage="inconclusive", rule="timed_out")
    assert "90% are needed" in said(kitchen, "better" if stage == "canary" else "shadow_done")[-1]


def test_a_clock_that_goes_back_holds_and_writes_nothing(kitchen: Any) -> None:
    start(kitchen, until="canary")
    entries, began = len(kitchen.rollouts().entries()), kitchen.now
    kitchen.now -= 400 * DAY
    assert kitchen.rollouts().tick().action == "hold"
    assert len(kitchen.rollouts().entries()) == entries
    kitchen.now = began
    assert live(kitchen, 8)[-1].stage == "promoted"


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_a_clock_that_jumps_ahead_promotes_nothing(kitchen: Any, stage: str) -> None:
    start(kitchen, until=stage)
    kitchen.now += 400 * DAY
    assert_left_out(kitchen, kitchen.rollouts().tick(), stage="inconclusive", rule="timed_out")


def test_a_budget_that_burns_under_both_versions_rolls_a_paused_canary_back(kitchen: Any) -> None:
    start(kitchen, POLICY.model_copy(update={"slos": (Slo(name="up", target=0.99),)}), until="canary")
    kitchen.rollouts().pause(reason="nobody is there to look")
    kitchen.failing = {1: 0.4, 2: 0.4}
    last = live(kitchen, 1, requests=2_000)[-1]
    assert_left_out(kitchen, last, stage="rolled_back", rule="budget_burns")


def test_an_improvement_that_is_not_worth_it_ends_inconclusive(kitchen: Any) -> None:
    kitchen.quality = {1: 0.5, 2: 0.52}
    start(kitchen, POLICY.model_copy(update={"min_effect": 0.05}))
    assert_left_out(kitchen, live(kitchen, 8)[-1], stage="inconclusive", rule="too_small")
