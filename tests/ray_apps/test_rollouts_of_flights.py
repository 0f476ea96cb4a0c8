"""Rollouts on flights end to end: over HTTP, on Serve, with the journal of a store, on an accelerated clock.

The tests share one platform and run in order: the version that wins the last rollout stays champion.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.ray_apps.flights_driver import CARRIERS, DAY, MODEL, Delay, log_loss, platform
from tests.ray_apps.flights_season import ENDS, NOISE, POLICY, QUICK, FlightSeason
from tests.ray_apps.standalone_platform import standalone_platform
from toque.registry import Journal, Refused

_logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.proof, pytest.mark.timeout(1_800)]


@pytest.fixture(scope="module", params=["standalone", pytest.param("serve", marks=pytest.mark.ray)])
def season(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FlightSeason]:
    """A season on a standalone predictor, and one on the whole platform."""
    start = platform if request.param == "serve" else standalone_platform
    with start(tmp_path_factory.mktemp("rollouts")) as driver:
        yield FlightSeason(driver)


def worse_by(season: FlightSeason, share: float) -> Delay:
    """Make a version whose log loss over the season is higher by `share` of the champion's."""
    target, low, high = log_loss(season.champion, season.flights) * (1 + share), NOISE, 3.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (
            (low, middle)
            if log_loss(season.make(by_hour=False, noise=middle), season.flights) > target
            else (middle, high)
        )
    found = season.make(by_hour=False, noise=high)
    assert math.isclose(log_loss(found, season.flights), target, rel_tol=1e-4)
    return found


def test_a_version_worse_by_two_percent_is_stopped(season: FlightSeason) -> None:
    """Two percent lie below what the days of three weeks can tell apart, as their losses move together: five weeks can."""
    season.start(worse_by(season, 0.02), POLICY | {"shadow_timeout": "P35D"})
    last = season.run_days(40)[-1]
    _logger.info("worse by 2 %%: %s", last)
    assert (last["stage"], last["rule"]) == ("rolled_back", "worse")
    assert season.settle() == (1,)


def test_an_equal_version_ends_inconclusive(season: FlightSeason) -> None:
    season.start(
        season.make(by_hour=False, noise=-NOISE),
        POLICY | {"shadow_timeout": "P14D", "canary_timeout": "P7D"},
    )
    last = season.run_days(22)[-1]
    _logger.info("equal: %s", last)
    assert (last["stage"], last["rule"]) == ("inconclusive", "timed_out")
    assert season.settle() == (1,)


def test_a_version_that_fails_five_of_a_hundred_requests_is_rolled_back_within_a_minute_even_if_paused(
    season: FlightSeason,
) -> None:
    version = season.start(season.make(by_hour=True, known=CARRIERS - 1), QUICK)
    assert season.run_days(14, most=60, until=frozenset({*ENDS, "canary"}))[-1]["stage"] == "canary"
    season.driver.function("pause_rollout", model=MODEL, reason="nobody is there to look")
    took, last = season.run_minutes(unknown=0.05)
    _logger.info("failing: %s %s %s", took, last, season.driver.answers)
    assert (last["stage"], last["rule"]) == ("rolled_back", "errors")
    assert took <= timedelta(minutes=1)
    assert 0 < season.driver.answers["500"] < season.driver.answers[str(version)]
    assert season.settle() == (1,)


def test_a_slow_version_is_rolled_back_within_a_minute(season: FlightSeason) -> None:
    season.start(season.make(by_hour=True, labour=8), QUICK | {"slow_ms": 15.0})
    assert season.run_days(14, most=60, until=frozenset({*ENDS, "canary"}))[-1]["stage"] == "canary"
    took, last = season.run_minutes()
    _logger.info("slow: %s %s", took, last)
    assert (last["stage"], last["rule"]) == ("rolled_back", "slow")
    assert took <= timedelta(minutes=1)
    assert season.settle() == (1,)


def test_nothing_is_promoted_when_clocks_jump_ticks_repeat_or_people_interfere(season: FlightSeason) -> None:
    driver = season.driver
    second = season.start(season.make(by_hour=True), POLICY)
    season.run_days(3)
    assert driver.function("tick_rollout", model=MODEL)["entry"] is None
    began = driver.now
    driver.move(-5 * DAY)
    assert driver.function("tick_rollout", model=MODEL)["action"] == "hold"
    driver.move(began - driver.now)
    third = driver.version(season.champion)
    driver.registry.promote(MODEL, third, reason="by hand")
    ended = driver.function("tick_rollout", model=MODEL)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "champion_changed")
    assert season.settle() == (third,)
    driver.registry.promote(MODEL, 1, reason="by hand again")
    fourth = season.start(season.make(by_hour=True), POLICY)
    season.run_days(1)
    with pytest.raises(Refused, match="is live"):
        driver.registry.as_actor("bob").reject(MODEL, fourth)
    driver.registry.set_traffic(MODEL, {}, reason="by hand")
    ended = driver.function("tick_rollout", model=MODEL)
    assert (ended["stage"], ended["rule"]) == ("rolled_back", "challenger_unusable")
    assert season.settle() == (1,)
    assert second < third < fourth


def test_a_better_version_goes_through_shadow_and_canary_and_is_promoted(season: FlightSeason) -> None:
    version = season.start(season.make(by_hour=True), POLICY)
    ticks = season.run_days(50)
    _logger.info("better: %d days, %s", len(ticks), ticks[-1])
    assert list(dict.fromkeys(tick["stage"] for tick in ticks)) == ["shadow", "canary", "promoted"]
    assert season.settle() == (version,)
    before = season.driver.answers[str(version)]
    season.driver.ask(season.flights.x[:20])
    assert season.driver.answers[str(version)] == before + 20


def test_every_decision_of_these_rollouts_is_reproduced_bit_for_bit(season: FlightSeason) -> None:
    entries = Journal(season.driver.registry.store, f"rollouts/{MODEL}", actor="reader").entries()
    decided = [entry.number for entry in entries if entry.body["event"] == "decided"]
    outcomes = season.driver.function("rollout_status", model=MODEL)["outcomes"]
    _logger.info("%d decisions, %s", len(decided), [(one["stage"], one["rule"]) for one in outcomes])
    assert len(decided) > 5
    for number in decided:
        explained = season.driver.function("explain_rollout", model=MODEL, entry=number)
        assert explained["same"]
        assert explained["recomputed"] == explained["recorded"]
