"""Rollouts end to end on flights: over HTTP, on Serve, with the journal of a store, on an accelerated clock.

One platform serves them one after the other, so that the winner of the last is the champion of all that is left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from datetime import timedelta

import pytest

from registry import Journal, Refused
from tests.ray_apps.bare_rollouts import bare_platform
from tests.ray_apps.flights_kitchen import ENDS, NOISE, POLICY, QUICK, Kitchen
from tests.ray_apps.flights_rollouts import CARRIERS, DAY, MODEL, Delay, Flights, log_loss, platform

_logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.proof, pytest.mark.timeout(1_800)]


@pytest.fixture(scope="module", params=["bare", pytest.param("serve", marks=pytest.mark.ray)])
def kitchen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    """The platform with one server, and whole."""
    start = platform if request.param == "serve" else bare_platform
    with start(tmp_path_factory.mktemp("rollouts")) as driver:
        yield Kitchen(driver)


def worse_by(season: Flights, kitchen: Kitchen, share: float) -> Delay:
    """A version whose log loss over the season is higher by `share` of the champion's."""
    target, low, high = log_loss(kitchen.champion, season) * (1 + share), NOISE, 3.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (
            (low, middle)
            if log_loss(kitchen.make(by_hour=False, noise=middle), season) > target
            else (middle, high)
        )
    found = kitchen.make(by_hour=False, noise=high)
    assert math.isclose(log_loss(found, season), target, rel_tol=1e-4)
    return found


def test_one_that_is_worse_by_two_percent_is_stopped(kitchen: Kitchen) -> None:
    kitchen.start(worse_by(kitchen.season, kitchen, 0.02), POLICY)
    last = kitchen.live(40)[-1]
    _logger.info("worse by 2 %%: %s", last)
    assert (last["stage"], last["rule"]) == ("rolled_back", "worse")
    assert kitchen.settle() == (1,)


def test_an_equal_one_ends_inconclusive(kitchen: Kitchen) -> None:
    kitchen.start(
        kitchen.make(by_hour=False, noise=-NOISE),
        POLICY | {"shadow_timeout": "P14D", "canary_timeout": "P7D"},
    )
    last = kitchen.live(22)[-1]
    _logger.info("equal: %s", last)
    assert (last["stage"], last["rule"]) == ("inconclusive", "timed_out")
    assert kitchen.settle() == (1,)


def test_one_that_fails_in_five_of_a_hundred_answers_is_rolled_back_within_a_minute_though_paused(
    kitchen: Kitchen,
) -> None:
    version = kitchen.start(kitchen.make(by_hour=True, known=CARRIERS - 1), QUICK)
    assert kitchen.live(14, most=60, until=frozenset({*ENDS, "canary"}))[-1]["stage"] == "canary"
    kitchen.driver.function("pause_rollout", model=MODEL, reason="nobody is there to look")
    took, last = kitchen.minutes(unknown=0.05)
    _logger.info("failing: %s %s %s", took, last, kitchen.driver.answers)
    assert (last["stage"], last["rule"]) == ("rolled_back", "errors")
    assert took <= timedelta(minutes=1)
    assert 0 < kitchen.driver.answers["500"] < kitchen.driver.answers[str(version)]
    assert kitchen.settle() == (1,)


def test_a_slow_one_is_rolled_back_within_a_minute(kitchen: Kitchen) -> None:
    kitchen.start(kitchen.make(by_hour=True, labour=8), QUICK | {"slow_ms": 15.0})
    assert kitchen.live(14, most=60, until=frozenset({*ENDS, "canary"}))[-1]["stage"] == "canary"
    took, last = kitchen.minutes()
    _logger.info("slow: %s %s", took, last)
    assert (last["stage"], last["rule"]) == ("rolled_back", "slow")
    assert took <= timedelta(minutes=1)
    assert kitchen.settle() == (1,)


def test_nothing_is_promoted_when_clocks_jump_ticks_double_or_hands_interfere(kitchen: Kitchen) -> None:
    driver = kitchen.driver
    second = kitchen.start(kitchen.make(by_hour=True), POLICY)
    kitchen.live(3)
    assert driver.function("tick_rollout", model=MODEL)["entry"] is None
    began = driver.now
    driver.move(-5 * DAY)
    assert driver.function("tick_rollout", model=MODEL)["action"] == "hold"
    driver.move(began - driver.now)
    third = driver.version(kitchen.champion)
    driver.registry.promote(MODEL, third, reason="by hand")
    ended = driver.function("tick_rollout", model=MODEL)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "champion_changed")
    assert kitchen.settle() == (third,)
    driver.registry.promote(MODEL, 1, reason="by hand again")
    fourth = kitchen.start(kitchen.make(by_hour=True), POLICY)
    kitchen.live(1)
    with pytest.raises(Refused, match="is live"):
        driver.registry.as_actor("bob").reject(MODEL, fourth)
    driver.registry.set_traffic(MODEL, {}, reason="by hand")
    ended = driver.function("tick_rollout", model=MODEL)
    assert (ended["stage"], ended["rule"]) == ("rolled_back", "challenger_unusable")
    assert kitchen.settle() == (1,)
    assert second < third < fourth


def test_a_better_one_goes_through_shadow_and_canary_and_is_promoted(kitchen: Kitchen) -> None:
    version = kitchen.start(kitchen.make(by_hour=True), POLICY)
    ticks = kitchen.live(50)
    _logger.info("better: %d days, %s", len(ticks), ticks[-1])
    assert list(dict.fromkeys(tick["stage"] for tick in ticks)) == ["shadow", "canary", "promoted"]
    assert kitchen.settle() == (version,)
    before = kitchen.driver.answers[str(version)]
    kitchen.driver.ask(kitchen.season.x[:20])
    assert kitchen.driver.answers[str(version)] == before + 20


def test_every_decision_of_all_these_rollouts_is_made_again_bit_for_bit(kitchen: Kitchen) -> None:
    entries = Journal(kitchen.driver.registry.store, f"rollouts/{MODEL}", actor="reader").entries()
    decided = [entry.number for entry in entries if entry.body["event"] == "decided"]
    outcomes = kitchen.driver.function("rollout_status", model=MODEL)["outcomes"]
    _logger.info("%d decisions, %s", len(decided), [(one["stage"], one["rule"]) for one in outcomes])
    assert len(decided) > 5
    for number in decided:
        explained = kitchen.driver.function("explain_rollout", model=MODEL, entry=number)
        assert explained["same"]
        assert explained["recomputed"] == explained["recorded"]
