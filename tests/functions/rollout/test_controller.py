from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.rollout.controller import Rollouts
from toque.functions.rollout.errors import NoRollout, RolloutActive, RolloutError
from toque.functions.rollout.explain import explain
from toque.functions.rollout.judge.decide import decide
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.status import TickResult
from toque.registry import TrafficRule, open_store

POLICY = RolloutPolicy(shadow_min_labels=200)


def run(platform: RolloutPlatform, days: int, **serve: int) -> list[TickResult]:
    """Serve and tick daily, each tick by a fresh controller, until a rollout ends or the days are over."""
    ticks: list[TickResult] = []
    for _ in range(days):
        platform.serve_a_day(**serve)
        ticks.append(platform.rollouts().tick())
        if ticks[-1].stage in ("promoted", "rolled_back", "inconclusive"):
            break
    return ticks


def test_a_better_challenger_goes_through_shadow_and_canary_to_champion(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    assert platform.registry.now.shadows == (2,)
    ticks = run(platform, 40)
    stages = list(dict.fromkeys(tick.stage for tick in ticks))
    assert stages == ["shadow", "canary", "promoted"]
    assert platform.registry.now.champion.version == 2
    assert platform.registry.now.shadows == ()
    assert platform.rollouts().tick().rule == "settled"
    assert platform.rollouts().tick().rule == "no_rollout"
    assert [outcome.stage for outcome in platform.rollouts().history().outcomes] == ["promoted"]


def test_a_worse_challenger_is_stopped_and_leaves_the_traffic(platform: RolloutPlatform) -> None:
    platform.quality = {1: 0.9, 2: -0.2}
    platform.rollouts().start(2, POLICY, reason="retrained")
    last = run(platform, 40)[-1]
    assert (last.stage, last.rule) == ("rolled_back", "worse")
    assert platform.registry.now.versions == (1,)


def test_a_canary_that_errs_is_rolled_back_even_while_paused(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    while platform.rollouts().history().current.stage == "shadow":
        run(platform, 1)
    platform.rollouts().pause(reason="looking into it")
    platform.failing = {2: 0.5}
    ticks = run(platform, 3)
    assert (ticks[-1].stage, ticks[-1].rule) == ("rolled_back", "errors")
    assert platform.registry.now.versions == (1,)


def test_no_label_ever_ends_inconclusive(platform: RolloutPlatform) -> None:
    platform.labelled = 0.0
    platform.rollouts().start(
        2, POLICY.model_copy(update={"shadow_timeout": timedelta(days=5)}), reason="retrained"
    )
    last = run(platform, 8, requests=20)[-1]
    assert (last.stage, last.rule) == ("inconclusive", "timed_out")
    assert platform.registry.now.versions == (1,)


def test_every_decision_can_be_made_again_from_the_journal(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    run(platform, 40)
    platform.rollouts().tick()
    decided = [entry for entry in platform.rollouts().entries() if entry.body["event"] == "decided"]
    assert len(decided) > 3
    for entry in decided:
        explained = platform.rollouts().explain(entry.number)
        assert explained.same
        assert explained.recomputed == explained.recorded
        there = platform.store.get(f"rollouts/late/entries/{entry.number:08d}.json")
        again = json.dumps(
            explained.recomputed.model_dump(mode="json"), sort_keys=True, separators=(",", ":")
        )
        assert again.encode() in there  # to the byte, as it lies in the store
    with pytest.raises(RolloutError, match="holds no decision"):
        platform.rollouts().explain(0)
    with pytest.raises(RolloutError, match="no entry 999"):
        platform.rollouts().explain(999)


def test_a_decision_that_was_tampered_with_is_not_made_again(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    last = run(platform, 40)[-1]
    whole = platform.rollouts().entries()
    told = explain(whole, last.entry)
    assert "version 2 against 1, in canary: promote by better: improvement is above" in told.text
    assert told.text.endswith("the same, bit for bit.")
    assert decide(told.state, told.evidence, told.state.policy, told.at) == told.recorded
    body = copy.deepcopy(whole[last.entry].body)
    body["evidence"]["loss"]["by_unit"]["total"] *= 1 + 1e-6
    struck = [*whole[: last.entry], dataclasses.replace(whole[last.entry], body=body)]
    told = explain(struck, last.entry)
    assert not told.same
    assert told.different == ("worse", "better", "too_small")
    assert told.text.endswith("NOT the same: see different.")
    body = copy.deepcopy(whole[last.entry].body)
    body["decision"]["action"] = "hold"
    struck = [*whole[: last.entry], dataclasses.replace(whole[last.entry], body=body)]
    assert not explain(struck, last.entry).same


def test_a_tick_writes_at_most_one_entry_and_a_second_one_none(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    for _ in range(12):
        platform.serve_a_day()
        before = len(platform.rollouts().entries())
        platform.rollouts().tick()
        between = len(platform.rollouts().entries())
        assert between - before <= 1
        if platform.rollouts().history().open is None:
            break
        platform.rollouts().tick()
        assert len(platform.rollouts().entries()) == between


class KilledError(Exception):
    """The process died here."""


class Dying:
    """A registry whose process dies right before, or right after, its change of traffic."""

    def __init__(self, registry: Any, *, after: bool) -> None:
        self._registry = registry
        self._after = after

    def __getattr__(self, name: str) -> Any:
        if name not in {"set_traffic", "promote"}:
            return getattr(self._registry, name)

        def die(*args: Any, **kwargs: Any) -> None:
            if self._after:
                getattr(self._registry, name)(*args, **kwargs)
            raise KilledError

        return die


@pytest.mark.parametrize("after", [False, True])
def test_a_tick_killed_at_any_change_of_traffic_changes_no_decision(
    platform: RolloutPlatform, *, after: bool
) -> None:
    with pytest.raises(KilledError):
        platform.rollouts(Dying(platform.registry, after=after)).start(2, POLICY, reason="retrained")
    platform.rollouts().tick()
    assert platform.registry.now.shadows == (2,)
    stages = []
    for _ in range(40):
        platform.serve_a_day()
        try:
            platform.rollouts(Dying(platform.registry, after=after)).tick()
        except KilledError:
            stages.append(platform.rollouts().history().current.stage)
            platform.rollouts().tick()
        if platform.rollouts().history().open is None:
            break
    assert stages == ["canary", "promoted"]
    assert platform.registry.now.champion.version == 2
    assert platform.registry.now.versions == (2,)


@pytest.mark.parametrize("shadows", [[2], []], ids=["beside the challenger", "clearing the traffic"])
def test_a_champion_changed_by_hand_ends_it_and_is_left_alone(
    platform: RolloutPlatform, shadows: list[int]
) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    platform.serve_a_day()
    platform.registry.by_hand(3, shadows=shadows)
    platform.quality[3] = 0.5
    tick = platform.rollouts().tick()
    assert (tick.stage, tick.rule) == ("inconclusive", "champion_changed")
    assert platform.registry.now.versions == (3,)


def test_a_challenger_taken_out_by_hand_is_not_put_back(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    platform.serve_a_day()
    platform.registry.by_hand(1)
    tick = platform.rollouts().tick()
    assert (tick.stage, tick.rule) == ("rolled_back", "challenger_unusable")
    assert platform.registry.now.versions == (1,)


def test_a_change_by_hand_at_the_very_moment_of_promotion_wins(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    while platform.rollouts().history().current.stage != "canary":
        run(platform, 1)
    platform.registry.before_change = lambda: platform.registry.by_hand(3)
    platform.quality[3] = 0.5
    run(platform, 40)
    assert platform.registry.now.champion.version == 3
    tick = platform.rollouts().tick()
    assert (tick.stage, tick.rule) == ("inconclusive", "settled")
    assert "by hand" in platform.rollouts().history().outcomes[-1].note


def test_a_version_that_the_registry_refuses_in_canary_is_rolled_back(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    platform.registry.refuse = "0 of 1 approvals"
    last = run(platform, 20)[-1]
    assert (last.stage, last.rule) == ("rolled_back", "challenger_unusable")
    assert "approvals" in last.text
    assert platform.registry.now.versions == (1,)


@pytest.mark.parametrize("status", ["REJECTED", "DELETED", None])
def test_a_version_rejected_or_deleted_in_the_middle_is_withdrawn(
    platform: RolloutPlatform, status: str | None
) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    platform.serve_a_day()
    if status is None:
        del platform.registry.statuses[2]
    else:
        platform.registry.statuses[2] = status
    assert platform.rollouts().tick().stage == "rolled_back"
    assert platform.registry.now.versions == (1,)


def test_one_rollout_at_a_time_and_starting_twice_is_once(platform: RolloutPlatform) -> None:
    first = platform.rollouts().start(2, POLICY, reason="retrained")
    assert platform.rollouts().start(2, POLICY, reason="again") == first
    with pytest.raises(RolloutActive, match="version 2 is in shadow"):
        platform.rollouts().start(3, POLICY, reason="another")
    with pytest.raises(RolloutError, match="champion already"):
        platform.rollouts().start(1, POLICY, reason="itself")
    with pytest.raises(RolloutError, match="does not exist"):
        platform.rollouts().start(9, POLICY, reason="nobody")


def test_pause_resume_and_end_by_hand(platform: RolloutPlatform) -> None:
    with pytest.raises(NoRollout):
        platform.rollouts().pause(reason="nothing there")
    platform.rollouts().start(2, POLICY, reason="retrained")
    assert platform.rollouts().pause(reason="holiday").paused
    run(platform, 4)
    assert platform.rollouts().history().current.stage == "shadow"
    assert not platform.rollouts().resume(reason="back").paused
    assert platform.rollouts().tick().stage == "canary"
    assert platform.rollouts().end("roll_back", reason="changed my mind").stage == "rolled_back"
    assert platform.registry.now.versions == (1,)
    entries = platform.rollouts().entries()
    told = platform.rollouts().explain(entries[-1].number)
    assert told.recomputed is None
    assert told.text.endswith(
        "roll_back by hand: changed my mind. test decided, so there is no rule to ask again."
    )
    with pytest.raises(NoRollout, match="ended as rolled_back"):
        platform.rollouts().resume(reason="too late")


def test_slow_answers_of_a_canary_roll_it_back(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY.model_copy(update={"slow_ms": 100.0}), reason="retrained")
    platform.slow = {2: 0.9}
    last = run(platform, 20)[-1]
    assert (last.stage, last.rule) == ("rolled_back", "slow")


def test_two_tickers_decide_once(platform: RolloutPlatform) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    one, other = platform.rollouts(), platform.rollouts()
    platform.serve_a_day()
    platform.serve_a_day()

    class Interleaved:
        def __getattr__(self, name: str) -> Any:
            return getattr(platform.registry, name)

        def find_version(self, model: str, version: int) -> Any:
            other.tick()  # the other ticker runs its whole tick in the middle of ours
            return platform.registry.find_version(model, version)

    ours: Rollouts = platform.rollouts(Interleaved())
    before = len(one.entries())
    assert ours.tick().entry is None
    assert len(one.entries()) == before + 1


def test_a_tick_reads_only_cohorts_that_still_wait_for_labels(platform: RolloutPlatform) -> None:
    platform.quality = {1: 0.5, 2: 0.5}
    read: list[timedelta] = []

    def tick() -> TickResult:
        rollouts = platform.rollouts()
        inner = rollouts._read

        def measured(start: Any, end: Any) -> Any:
            read.append(end - start)
            return inner(start, end)

        rollouts._read = measured
        return rollouts.tick()

    platform.rollouts().start(2, POLICY, reason="equal")
    for _ in range(10):
        platform.serve_a_day(requests=20)
        labels = tick().labels
    assert labels == 180  # of nine days; the tenth still waits
    assert max(read) <= timedelta(days=2)


def test_sums_that_were_lost_are_filled_again_from_the_log(platform: RolloutPlatform) -> None:
    platform.quality = {1: 0.5, 2: 0.5}
    platform.rollouts().start(2, POLICY, reason="equal")
    run(platform, 4, requests=20)
    platform.store.delete("rollouts/late/evidence/00000000.json")
    platform.serve_a_day(requests=20)
    assert platform.rollouts().tick().labels == 80


class DyingStore:
    """A store whose process dies at its `fuse`-th request: before it is made, or right after."""

    def __init__(self, store: Any, fuse: int, *, after: bool) -> None:
        self._store = store
        self._fuse = fuse
        self._after = after

    def __getattr__(self, name: str) -> Any:
        if name not in {"find", "get", "put", "create"}:
            return getattr(self._store, name)

        def request(*args: Any) -> Any:
            self._fuse -= 1
            if self._fuse == 0 and not self._after:
                raise KilledError
            answer = getattr(self._store, name)(*args)
            if self._fuse == 0:
                raise KilledError
            return answer

        return request


def decisions(platform: RolloutPlatform) -> list[tuple[str, str, int]]:
    return [
        (entry.body["stage"], entry.body["decision"]["rule"], entry.body["labels"])
        for entry in platform.rollouts().entries()
        if entry.body["event"] == "decided"
    ]


def season(platform: RolloutPlatform, kill_at: Any) -> list[tuple[str, str, int]]:
    """A whole rollout in which each day's first tick is killed where `kill_at()` says; the next tick is not."""
    platform.rollouts().start(2, POLICY, reason="retrained")
    living = platform.store
    for _ in range(40):
        platform.serve_a_day()
        fuse, after = kill_at()
        if fuse:
            platform.store = DyingStore(living, fuse, after=after)
            with contextlib.suppress(KilledError):
                platform.rollouts().tick()
            platform.store = living
        platform.rollouts().tick()
        if platform.rollouts().history().open is None:
            break
    return decisions(platform)


def test_ticks_killed_at_random_change_no_decision(tmp_path: Any, platform: RolloutPlatform) -> None:
    calm = season(platform, lambda: (0, False))
    assert calm[-1][0] == "promoted"
    rng = np.random.default_rng(5)
    for round_ in range(2):  # fifty kills of a process: test_proofs
        again = type(platform)(open_store(f"file://{tmp_path}/round-{round_}"))
        killed = season(again, lambda: (int(rng.integers(1, 12)), bool(rng.integers(2))))
        assert killed == calm
        assert again.registry.now.versions == (2,)


def test_who_asks_for_the_canary_by_number_or_comes_by_rule_is_no_evidence_on_it(
    platform: RolloutPlatform,
) -> None:
    platform.rollouts().start(2, POLICY, reason="retrained")
    while platform.rollouts().history().current.stage == "shadow":
        run(platform, 1)
    platform.serve_a_day(requests=20)
    platform.pinned(version=2, requests=500)
    platform.pinned(version=2, requests=500, arm="rule:dutch")
    tick = platform.rollouts().tick()
    assert (tick.stage, tick.action) == ("canary", "hold")
    decided = platform.rollouts().entries()[-1].body["evidence"]
    assert decided["canary"]["champion"] + decided["canary"]["challenger"] == 20


def test_rules_of_others_stay_and_those_to_a_challenger_end_with_it(platform: RolloutPlatform) -> None:
    when = ({"attribute": "team", "op": "in", "values": ["eng"]},)
    rules = [
        TrafficRule.model_validate({"name": name, "to": to, "when": when})
        for name, to in (("mine", 2), ("theirs", 3), ("never", "champion"))
    ]
    platform.registry.set_traffic("late", {}, rules=rules)
    platform.rollouts().start(2, POLICY, reason="retrained")
    run(platform, 1)
    assert platform.registry.now.shadows == (2,)
    assert [rule.name for rule in platform.registry.now.rules] == ["mine", "theirs", "never"]
    platform.rollouts().end("roll_back", reason="no")
    assert [rule.name for rule in platform.registry.now.rules] == ["theirs", "never"]
    assert (platform.registry.now.shadows, platform.registry.now.versions) == ((), (1, 3))
