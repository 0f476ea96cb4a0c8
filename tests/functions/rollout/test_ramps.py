"""Rollouts that are judged by their last minutes: ramps, promotion without labels, and counts that are never pooled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from tests.functions.rollout.conftest import MODEL, RolloutPlatform
from toque.functions.live_counts import BINS, ArmTally, Failures, SplitArm, WindowCounts, window_at
from toque.functions.rollout.controller import Rollouts
from toque.functions.rollout.errors import RolloutError
from toque.functions.rollout.policy import RolloutPolicy
from toque.functions.rollout.status import TickResult
from toque.registry.models.traffic import Traffic

MINUTE = timedelta(minutes=1)
RAMP = RolloutPolicy(
    ramp=(0.01, 0.05, 0.25, 0.5), promote_by="service", canary_min=timedelta(0), shadow_min_labels=30
)


class LiveWorld:
    """Counts what both versions would have given their users under the traffic in force, a minute at a time."""

    def __init__(self, platform: RolloutPlatform, per_minute: int = 30_000) -> None:
        self.platform, self.per_minute = platform, per_minute
        self.counts: dict[int, WindowCounts] = {}
        self.fails: dict[int, float] = {}
        self.times: dict[int, float] = {}
        self.rng = np.random.default_rng(7)

    def read(self, model: str, windows: Iterable[int]) -> Mapping[int, WindowCounts]:
        assert model == MODEL
        return {window: self.counts.get(window, WindowCounts()) for window in windows}

    def rollouts(self) -> Rollouts:
        made = self.platform.rollouts()
        made._read_live = self.read
        return made

    def minute(self) -> TickResult:
        """A minute of traffic, and a tick ten seconds after it."""
        traffic: Traffic = self.platform.registry.now
        window = window_at(self.platform.now.timestamp())
        shadows = {
            SplitArm(traffic.entry, version, "shadow", 0.0): self._tally(version, 1.0)
            for version in traffic.shadows
        }
        arms = {
            SplitArm(traffic.entry, arm.version, arm.name, arm.share): self._tally(arm.version, arm.share)
            for arm in traffic.arms
        }
        self.counts[window] = self.counts.get(window, WindowCounts()) + WindowCounts(arms | shadows)
        self.platform.now += MINUTE
        return self.rollouts().tick_live()

    def _tally(self, version: int, share: float) -> ArmTally:
        requests = int(self.rng.poisson(self.per_minute * share))
        errors = int(self.rng.binomial(requests, self.fails.get(version, 0.0)))
        units = self.rng.integers(0, 2**62, errors)
        latency = np.zeros(BINS, dtype=np.int64)
        bins = 80 + np.round(4 * self.rng.normal(size=requests - errors)).astype(int)
        np.add.at(latency, bins + round(8 * np.log2(self.times.get(version, 1.0))), 1)
        return ArmTally(requests, Failures.of(units.tolist()), latency=latency)


@pytest.fixture
def world(platform: RolloutPlatform) -> LiveWorld:
    return LiveWorld(platform)


def begin(world: LiveWorld, policy: RolloutPolicy = RAMP) -> None:
    world.rollouts().start(2, policy, reason="a try")


def share(world: LiveWorld) -> float:
    return sum(arm.share for arm in world.platform.registry.now.arms if arm.version == 2)


def until_the_end(world: LiveWorld, minutes: int) -> tuple[list[float], TickResult]:
    """Minutes until the rollout ends; the shares that it had, and its last tick."""
    shares: list[float] = []
    last = TickResult(model=MODEL)
    for _ in range(minutes):
        last = world.minute()
        if not shares or shares[-1] != share(world):
            shares.append(share(world))
        if world.rollouts().history().open is None:
            break
    return shares, last


def decided(world: LiveWorld) -> list[dict[str, Any]]:
    return [entry.body for entry in world.rollouts().entries() if entry.body["event"] == "decided"]


def test_a_healthy_challenger_without_labels_climbs_the_ramp_to_champion(world: LiveWorld) -> None:
    begin(world)
    shares, last = until_the_end(world, 80)
    assert shares == [0.0, 0.01, 0.05, 0.25, 0.5, 1.0]
    assert (last.stage, last.rule) == ("promoted", "service_done")
    actions = [one["decision"]["action"] for one in decided(world)]
    assert actions == ["advance", "ramp", "ramp", "ramp", "promote"]
    assert world.rollouts().tick_live().rule == "settled"
    for entry in world.rollouts().entries():
        if entry.body["event"] == "decided":
            assert world.rollouts().explain(entry.number).same


def test_each_step_is_held(world: LiveWorld) -> None:
    begin(world)
    until_the_end(world, 80)
    at = [entry.at for entry in world.rollouts().entries() if entry.body["event"] == "decided"]
    assert min(np.diff(at)[1:]) >= RAMP.ramp_hold


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("fault", ["fails", "slow"])
def test_a_challenger_that_breaks_at_any_step_is_rolled_back_within_a_minute(
    world: LiveWorld, step: int, fault: str
) -> None:
    begin(world)
    while share(world) != RAMP.ramp[step]:
        world.minute()
    (world.fails if fault == "fails" else world.times)[2] = 0.05 if fault == "fails" else 2.0
    last = world.minute()
    if step == 0 and fault == "slow":  # 300 requests at one percent
        last = world.minute() if last.stage == "canary" else last
    assert (last.stage, last.rule) == ("rolled_back", "live_errors" if fault == "fails" else "live_latency")
    assert world.platform.registry.now.versions == (1,)


def test_a_shadow_that_fails_is_rolled_back_before_any_user_meets_it(world: LiveWorld) -> None:
    world.fails[2] = 0.05
    begin(world)
    assert (world.minute().rule, share(world)) == ("live_errors", 0.0)


def test_without_traffic_nothing_goes_on_and_it_ends_inconclusive(world: LiveWorld) -> None:
    begin(world)
    while share(world) == 0:
        world.minute()
    world.per_minute = 0
    shares, last = until_the_end(world, 90)
    assert (shares, last.action) == ([0.01], "hold")
    world.platform.now += RAMP.canary_timeout
    last = world.rollouts().tick()
    assert (last.stage, last.rule) == ("inconclusive", "timed_out")


def test_with_labels_the_ramp_stops_at_its_last_step_until_they_tell(world: LiveWorld) -> None:
    policy = RAMP.model_copy(update={"promote_by": "labels", "shadow_min_labels": 200})
    begin(world, policy)
    while world.rollouts().history().current.stage == "shadow":
        world.platform.serve_a_day()
        world.rollouts().tick()
    shares, last = until_the_end(world, 80)
    assert (shares, last.action) == ([0.01, 0.05, 0.25, 0.5], "hold")
    for _ in range(40):
        world.platform.serve_a_day()
        last = world.rollouts().tick()
        if last.stage != "canary":
            break
    assert (last.stage, last.rule) == ("promoted", "better")


def test_labels_that_prove_it_better_at_a_small_step_do_not_skip_the_others(world: LiveWorld) -> None:
    policy = RAMP.model_copy(
        update={"promote_by": "labels", "shadow_min_labels": 200, "canary_min_requests": 1}
    )
    begin(world, policy)
    for _ in range(12):
        world.platform.serve_a_day()
        last = world.rollouts().tick()
    assert last.stage == "canary"
    better = next(one for one in decided(world)[-1]["decision"]["findings"] if one["rule"] == "better")
    assert better["text"] == "step 1 of 4 of the ramp"


def test_errors_of_other_shares_are_not_evidence_at_this_one(world: LiveWorld) -> None:
    """Errors of the ramp's half, pooled with those of its first step, would be far more than one percent of all errors."""
    world.fails, world.per_minute = {1: 0.02, 2: 0.02}, 10_000
    begin(world)
    while share(world) < 0.25:
        world.minute()
    live = (
        world.rollouts()
        ._reader()
        .live(world.rollouts().history().current, world.platform.registry.now, {}, world.platform.now)
        .live
    )
    assert live is not None
    both = live.split_champion.requests + live.split_challenger.requests
    assert both == 0  # nothing was asked since the step
    last = [world.minute() for _ in range(6)][-1]
    assert (last.action, share(world)) == ("hold", 0.25)
    entries = {arm.entry for arm in WindowCounts.sum(world.counts.values()).arms if arm.arm == "canary"}
    assert len(entries) == 3


def test_the_log_s_counts_begin_anew_at_each_step(world: LiveWorld) -> None:
    begin(world)
    while share(world) < 0.25:
        world.minute()
    world.platform.serve_a_day(400)
    evidence = world.rollouts().status()
    canary = next(arm for arm in evidence.arms if arm.version == 2)
    assert 60 <= canary.answers <= 140  # a quarter of the day's requests and none of the steps before


@pytest.mark.parametrize("by_hand", [False, True], ids=["ramp", "by hand"])
def test_a_new_share_reads_no_day_of_the_log_again(world: LiveWorld, *, by_hand: bool) -> None:
    begin(world, RAMP.model_copy(update={"promote_by": "labels", "shadow_min_labels": 1_000}))
    while world.rollouts().history().current.stage == "shadow":
        world.platform.serve_a_day()
        world.rollouts().tick()
    while share(world) < 0.05:
        world.minute()
    if by_hand:
        world.platform.registry.set_traffic(MODEL, {"canary": (2, 0.1)}, shadows=(2,))
        world.minute()
    since: list[timedelta] = []
    rollouts = world.rollouts()
    inner = rollouts._read

    def measured(start: Any, end: Any) -> Any:
        since.append(world.platform.now - start)
        return inner(start, end)

    rollouts._read = measured
    world.platform.serve_a_day()
    rollouts.tick()
    assert max(since) <= 4 * timedelta(
        days=1
    )  # the cohort that is due, and the one before it for what came late


def test_a_share_that_was_changed_by_hand_stays(world: LiveWorld) -> None:
    begin(world)
    while share(world) < 0.05:
        world.minute()
    world.platform.registry.set_traffic(MODEL, {"canary": (2, 0.1)}, shadows=(2,))
    assert world.minute().action == "hold"
    assert share(world) == pytest.approx(0.1)


def test_a_ramp_killed_between_decision_and_traffic_is_finished_by_the_next_tick(world: LiveWorld) -> None:
    begin(world)
    while world.rollouts().history().current.step == 0:
        if world.rollouts().history().current.stage == "canary":
            world.platform.registry.before_change = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        try:
            world.minute()
        except KeyboardInterrupt:
            break
    state = world.rollouts().history().current
    assert (state.step, share(world)) == (1, 0.01)
    world.minute()
    assert share(world) == 0.05
    assert len([one for one in decided(world) if one["decision"]["action"] == "ramp"]) == 1


@pytest.mark.parametrize("ramp", [(0.5, 0.1), (0.1, 0.1)])
def test_a_ramp_must_rise(ramp: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="larger than the one before"):
        RolloutPolicy(ramp=ramp)


def test_a_rollout_of_a_release_without_ramps_is_read_as_one_step(world: LiveWorld) -> None:
    begin(world, RolloutPolicy())
    state = world.rollouts().history().current
    assert (state.canary_share, state.is_last_step) == (0.1, True)
    with pytest.raises(RolloutError):
        world.rollouts().start(1, RolloutPolicy(), reason="the champion itself")
