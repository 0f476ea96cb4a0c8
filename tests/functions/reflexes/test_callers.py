"""Verdicts of the last minutes where units return: services that call with their own name, tenants, one that is broken."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from tests.conditions.units import ALL, ONE_BROKEN, Units, in_arm, parameters
from tests.functions.reflexes.callers import CANARY, CHAMPION, CallerWorld
from tests.seeds import seeds
from toque.functions.rollout import RolloutPolicy
from toque.functions.rollout.evidence.sums import Evidence
from toque.functions.rollout.judge.guard_rules import not_shown_to_serve
from toque.functions.rollout.judge.verdict import RuleInput

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
AT_ONCE = RolloutPolicy(promote_by="service", canary_min=timedelta(0), ramp_hold=timedelta(0))
SAMPLE = 10  # of the runs, in each test


@pytest.mark.parametrize("tenth", seeds(1, of=50))
def test_a_version_that_fails_30_percent_is_never_promoted_and_soon_gone_whoever_asks(tenth: int) -> None:
    """500 runs in all: none is promoted, and each is rolled back within a minute of 200 failures."""
    for seed in range(SAMPLE * tenth, SAMPLE * (tenth + 1)):
        rng = np.random.default_rng(seed)
        units = Units(
            "callers", int(np.exp(rng.uniform(np.log(2), np.log(500)))), spread=rng.choice([0.0, 1.0])
        )
        world = CallerWorld(
            units, share=rng.choice([0.1, 0.25, 0.5]), per_second=rng.uniform(5, 100), rng=rng, salt=seed + 1
        )
        if not in_arm(np.arange(units.count or 0), world.share, salt=seed + 1).any():
            continue  # nobody meets the canary, so nothing is known of it and nobody is hurt
        world.fails[CHAMPION] = 0.001
        world.serve(rng.uniform(2, 15) * MINUTE)
        turns_bad = rng.random() < 0.5
        world.begin(RolloutPolicy() if turns_bad else AT_ONCE)
        world.serve((rng.uniform(5, 20) if turns_bad else 0) * MINUTE)
        world.failed, world.fails[CANARY] = 0, 0.3
        due = None
        while (decision := world.tick()).action != "roll_back":
            assert decision.action == "hold", (seed, turns_bad, decision.text)
            if world.failed >= 200:
                due = due or world.now + MINUTE
                assert world.now <= due, (seed, units, world.share, world.per_second)
            world.serve()
            if world.now - world.state.started_at > 2 * HOUR:
                break  # of a canary that a handful of requests reach
        assert decision.action == "roll_back" or world.failed < 200


@pytest.mark.parametrize("callers", [1, 2, 3, 5, 12, 40, 150, 500])
@pytest.mark.parametrize("per_second", [1.0, 20.0])
def test_a_champion_that_fails_everything_is_broken_within_a_minute_whoever_asks(
    callers: int, per_second: float
) -> None:
    rng = np.random.default_rng(callers)
    world = CallerWorld(Units("callers", callers), share=0.1, per_second=per_second, rng=rng)
    world.fails[CHAMPION] = 0.001
    world.serve(rng.uniform(71, 72) * MINUTE)
    assert not [finding.text for finding in world.watch() if finding.broken]
    world.fails[CHAMPION] = 1.0
    began = world.now
    while not any(finding.broken for finding in world.watch()):
        assert world.now - began <= MINUTE
        world.serve()


@pytest.mark.parametrize("units", parameters())
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_healthy_canary_stays_while_the_champion_fails_everything_and_a_person_is_asked(
    units: Units, share: float
) -> None:
    world = CallerWorld(units, share=share, per_second=20.0, rng=np.random.default_rng(8))
    world.fails = {CHAMPION: 0.001, CANARY: 0.001}
    world.serve(10 * MINUTE)
    world.begin(RolloutPolicy(promote_by="service", canary_min=timedelta(minutes=1), ramp_hold=HOUR))
    world.serve(10 * MINUTE)
    world.fails[CHAMPION] = 1.0
    for _ in range(24):  # twelve minutes
        world.serve(30 * SECOND)
        decision = world.tick()
        assert decision.action == "hold", decision.text
    world.state = world.state.model_copy(update={"policy": AT_ONCE})
    decision = world.tick()
    assert decision.action == "hold"
    assert any("promote by hand if the challenger serves" in finding.text for finding in decision.findings)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_fault_that_both_versions_share_rolls_no_canary_back(share: float) -> None:
    for units in ALL:
        world = CallerWorld(units, share=share, per_second=50.0, rng=np.random.default_rng(9))
        world.serve(5 * MINUTE)
        world.begin()
        world.serve(6 * MINUTE)
        world.fails = {CHAMPION: 0.6, CANARY: 0.6}
        for _ in range(30):
            world.serve()
            decision = world.tick()
            assert decision.action == "hold", (units.name, decision.text)


def test_a_caller_that_failed_on_the_champion_before_does_not_end_the_canary_that_it_falls_to() -> None:
    """One of four callers is broken; from 1 in 4 on, the canary's requests fail."""
    units = Units("callers", 4, broken=1)
    salt = next(
        salt
        for salt in range(1, 100)
        if in_arm([2], 0.5, salt=salt)[0] and 2 <= in_arm(np.arange(4), 0.5, salt=salt).sum() <= 3
    )
    world = CallerWorld(units, share=0.5, per_second=20.0, rng=np.random.default_rng(10), salt=salt)
    world.serve(30 * MINUTE)
    world.begin()
    for _ in range(360):  # an hour
        world.serve()
        decision = world.tick()
        assert decision.action == "hold", decision.text
    assert world.failed > 10_000
    world.fails[CANARY] = 0.5
    for _ in range(6):
        world.serve()
    assert world.tick().action == "roll_back"  # what is new is seen beside what is usual


def test_one_broken_caller_of_a_hundred_ends_no_canary() -> None:
    ended = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        world = CallerWorld(ONE_BROKEN, share=0.25, per_second=20.0, rng=rng, salt=seed + 1)
        world.begin()  # nothing is known of the minutes before
        for _ in range(12):
            world.serve(2 * MINUTE)
            ended += world.tick().action != "hold"
    assert ended == 0


def shown(rate: float, *, days: int, a_minute: float, seed: int) -> bool:
    """Whether a challenger was shown to serve at any look of a split that lasts; the champion fails nothing."""
    rng = np.random.default_rng(seed)
    world = CallerWorld(Units("callers", 50), share=0.5, per_second=2 * a_minute / 60, rng=rng)
    world.begin(RolloutPolicy(ramp=(0.25, 0.5)))
    world.fails[CANARY] = rate
    for _ in range(days * 48):
        for _ in range(30):
            world.serve(MINUTE)
        gone = min(world.counts, default=0)
        while len(world.counts) > 125:  # Redis forgets
            world.counts.pop(gone, None)
            gone += 1
        evidence = Evidence(champion=CHAMPION, live=world.live())
        if not_shown_to_serve(RuleInput(world.state, evidence, world.state.policy, world.now, None)) is None:
            return True
    return False


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("part", seeds(1, of=5))
def test_asking_again_and_again_whether_it_serves_as_well_spends_one_level(part: int) -> None:
    """A rate at the limit is shown to be below it in at most alpha / 2 of all runs, however long they are asked.

    Of 2 runs of two days, and of 4 of 28 days for each proof, one may pass: P(2 or more of 4 at .025) = .004.
    """
    days, runs = (2, 2) if part == 0 else (28, 4)
    passed = sum(shown(0.01, days=days, a_minute=20, seed=4 * part + run) for run in range(runs))
    assert passed <= (part > 0)


def test_what_comes_slowly_is_shown_in_the_end() -> None:
    """At six requests a minute and arm, two hours hold 720, too few; sums from the split's start are enough in a morning."""
    assert shown(0.0, days=1, a_minute=6, seed=1)
