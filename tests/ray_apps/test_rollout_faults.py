"""Faults during a rollout, on Serve over HTTP with a store's journal: each ends as defined, never in a promotion.

Clocks that go back, repeated ticks and a challenger removed by hand are in test_rollouts_of_flights.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.ray_apps.flights_driver import DAY, MODEL, Delay, platform
from tests.ray_apps.flights_season import ENDS, NOISE, QUICK, FlightSeason
from tests.waiting import until
from toque.ray_apps.local import processes
from toque.registry import Entry, Journal, Refused

_logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.proof, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

FEW = 60  # flights a day
CANARY = frozenset({*ENDS, "canary"})


@pytest.fixture(scope="module")
def module_season(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlightSeason]:
    with platform(tmp_path_factory.mktemp("faults")) as driver:
        yield FlightSeason(driver)


@pytest.fixture
def season(module_season: FlightSeason) -> Iterator[FlightSeason]:
    """A season with version 1 as champion and no rollout; afterwards every decision of the test is reproduced."""
    driver, before = module_season.driver, len(entries(module_season))
    yield module_season
    driver.reports = True
    if driver.registry.traffic(MODEL).champion.version != 1:
        driver.registry.promote(MODEL, 1, reason="for the next one")
    for entry in entries(module_season)[before:]:
        if entry.body["event"] == "decided":
            explained = driver.function("explain_rollout", model=MODEL, entry=entry.number)
            assert explained["same"]


def entries(season: FlightSeason) -> list[Entry]:
    return list(Journal(season.driver.registry.store, f"rollouts/{MODEL}", actor="reader").entries())


def tick(season: FlightSeason) -> dict[str, Any]:
    found: dict[str, Any] = season.driver.function("tick_rollout", model=MODEL)
    _logger.info("%s", found)
    return found


def to_canary(season: FlightSeason, **changes: Any) -> int:
    """Start a rollout of a better version, and run days until it is a canary."""
    version = season.start(season.make(by_hour=True), QUICK | changes)
    assert season.run_days(14, most=FEW, until=CANARY)[-1]["stage"] == "canary"
    return version


def finding(season: FlightSeason, rule: str) -> str:
    """Get the text of a rule's finding at the last recorded decision."""
    last = [entry for entry in entries(season) if entry.body["event"] == "decided"][-1]
    return str(next(one["text"] for one in last.body["decision"]["findings"] if one["rule"] == rule))


def all_answers_are_of(season: FlightSeason, version: int) -> bool:
    """Whether all responses come from a version."""
    before = season.driver.answers[str(version)]
    season.driver.ask(season.flights.x[:FEW])
    return season.driver.answers[str(version)] == before + FEW


def test_a_champion_changed_by_hand_during_a_rollout_stays(season: FlightSeason) -> None:
    to_canary(season)
    other = season.driver.version(season.champion)
    season.driver.registry.promote(MODEL, other, reason="by hand")
    season.driver.follow()
    assert all_answers_are_of(season, other)
    ended = tick(season)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "champion_changed")
    assert season.settle() == (other,)
    assert all_answers_are_of(season, other)


def test_a_champion_rolled_back_during_a_rollout_stays_rolled_back(season: FlightSeason) -> None:
    registry = season.driver.registry
    registry.promote(MODEL, season.driver.version(season.champion), reason="by hand")
    season.driver.follow()
    season.start(season.make(by_hour=True), QUICK)
    season.run_days(1, most=FEW)
    registry.rollback(MODEL, "champion", reason="a customer called")
    ended = tick(season)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "champion_changed")
    assert season.settle() == (1,)
    assert all_answers_are_of(season, 1)


def test_a_version_deleted_during_its_rollout_is_withdrawn_without_a_failed_request(
    season: FlightSeason,
) -> None:
    version, registry = to_canary(season), season.driver.registry
    with pytest.raises(Refused, match="move that first"):
        registry.delete_version(MODEL, version, reason="a leak")
    registry.set_traffic(MODEL, {}, reason="to delete it")
    registry.delete_version(MODEL, version, reason="a leak")
    assert tick(season)["stage"] == "rolled_back"
    assert finding(season, "challenger_unusable") == f"version {version} is deleted"
    assert season.settle() == (1,)
    assert all_answers_are_of(season, 1)


def test_a_paused_rollout_whose_guardrail_fires_is_rolled_back(season: FlightSeason) -> None:
    driver, rng = season.driver, np.random.default_rng(3)
    complaints = {
        "name": "complaints",
        "source": "table",
        "better": "lower",
        "margin": 0.1,
        "floor": 0,
        "cap": 1,
    }
    to_canary(season, guardrails=[complaints], canary_share=0.45)
    driver.function("pause_rollout", model=MODEL, reason="nobody is there to look")
    for _ in range(10):
        first, split = driver.asked, driver.registry.traffic(MODEL)
        ended = season.run_days(1, most=FEW)[-1]
        if ended["stage"] in ENDS:
            break
        names = [str(n) for n in range(first, driver.asked)]
        often = {name: 0.9 if split.assign(name).name == "canary" else 0.05 for name in names}
        values = [
            {
                "prediction_id": name,
                "value": float(rng.random() < share),
                "observed_at": driver.now.isoformat(),
            }
            for name, share in often.items()
        ]
        assert driver.function("record_metric", name="complaints", values=values) == FEW
    assert (ended["stage"], ended["rule"]) == ("rolled_back", "guardrails")
    assert season.settle() == (1,)


def test_a_label_stream_that_stops_promotes_nothing(season: FlightSeason) -> None:
    to_canary(season, min_label_share=0.9, canary_timeout="P4D")
    season.driver.reports = False
    ended = season.run_days(6, most=FEW)[-1]
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert finding(season, "better").endswith("pairs have a label; 90% are needed")
    assert season.settle() == (1,)


def test_two_tickers_decide_once(season: FlightSeason) -> None:
    season.start(season.make(by_hour=True), QUICK)
    traffic = season.driver.registry.traffic(MODEL)
    stages: list[str] = []
    with ThreadPoolExecutor(4) as tickers:
        while "canary" not in stages:
            season.driver.run_day(season.flights, season.day, FEW)
            season.day += 1
            before = len(entries(season))
            found = list(tickers.map(tick, [season] * 4))
            written = [one["entry"] for one in found if one["entry"] is not None]
            assert [entry.number for entry in entries(season)[before:]] == written
            assert len(written) <= 1
            stages.append(season.driver.function("rollout_status", model=MODEL)["current"]["stage"])
            assert len(stages) < 14
        assert season.driver.registry.traffic(MODEL).entry == traffic.entry + 1
        season.driver.function("end_rollout", model=MODEL, action="roll_back", reason="seen enough")
        rules = [one["rule"] for one in tickers.map(tick, [season] * 4)]
    assert "settled" in rules
    assert [entry.body["event"] for entry in entries(season)[-2:]] == ["decided", "settled"]
    assert season.driver.registry.traffic(MODEL).versions == (1,)


def test_a_rollout_without_requests_ends_inconclusive(season: FlightSeason) -> None:
    season.start(season.make(by_hour=True), QUICK | {"shadow_timeout": "P2D"})
    season.driver.move(DAY)
    assert tick(season)["action"] == "hold"
    season.driver.move(DAY)
    ended = tick(season)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert season.settle() == (1,)


def test_a_canary_without_requests_is_not_promoted(season: FlightSeason) -> None:
    to_canary(season, canary_share=0.0001, canary_timeout="P2D")
    ended = season.run_days(4, most=FEW)[-1]
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert finding(season, "better").startswith("the canary answered 0 of")
    assert season.settle() == (1,)


def test_a_version_that_predicts_nan_is_stopped_as_a_shadow(season: FlightSeason) -> None:
    season.start(season.make(by_hour=True, noise=float("nan")), QUICK)
    ended = season.run_days(4, most=FEW)[-1]
    assert (ended["stage"], ended["rule"]) == ("rolled_back", "errors")
    assert season.driver.answers["500"] == 0
    assert season.settle() == (1,)


def test_a_version_that_predicts_as_the_champion_does_ends_inconclusive(season: FlightSeason) -> None:
    season.start(season.make(by_hour=False, noise=NOISE), QUICK | {"shadow_timeout": "P4D"})
    ended = season.run_days(6, most=FEW)[-1]
    assert ended["labels"] > QUICK["burn_in"]
    assert (ended["lower"], ended["upper"]) == (None, None)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert season.settle() == (1,)


def test_a_clock_that_jumps_ahead_ends_the_rollout_inconclusive(season: FlightSeason) -> None:
    to_canary(season)
    season.driver.move(100 * DAY)
    ended = tick(season)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert season.settle() == (1,)


def test_all_units_in_the_canary_are_a_mismatch(season: FlightSeason) -> None:
    to_canary(season)
    driver, split = season.driver, season.driver.registry.traffic(MODEL)
    for _ in range(4):
        for row in season.flights.x[: FEW // 2]:
            while split.assign(str(driver.asked)).name != "canary":
                driver.asked += 1
            driver.ask(row[None])
        driver.drain()
        driver.move(DAY)
        ended = tick(season)
        if ended["stage"] in ENDS:
            break
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "mismatch")
    assert season.settle() == (1,)


OUTLIER = 7777.0  # a flight number


class OutlierModel(Delay):
    """A model that predicts 1e30 for one flight number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        usual = super().forward(x)
        return torch.where(x[:, 2:] == OUTLIER, torch.full_like(usual, 1e30), usual)


def test_one_enormous_prediction_neither_promotes_nor_stops(season: FlightSeason) -> None:
    driver = season.driver
    season.start(
        OutlierModel(season.past, by_hour=True), QUICK | {"loss": "squared_error", "shadow_timeout": "P5D"}
    )
    # On the first day, as the shadow may have enough labels after it.
    driver.landed += [(str(driver.asked), 1.0)]
    driver.ask(np.array([[*season.flights.x[0, :2], OUTLIER]], dtype=np.float32))
    ended = season.run_days(7, most=FEW)[-1]
    assert ended["upper"] - ended["estimate"] > 0.5  # the answer did count
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert season.settle() == (1,)


def test_a_tick_whose_gateway_is_killed_decides_once(season: FlightSeason) -> None:
    driver = season.driver
    season.start(season.make(by_hour=True), QUICK)
    lost = 0
    for day in range(14):
        driver.run_day(season.flights, season.day, FEW)
        season.day += 1
        before = len(entries(season))
        with ThreadPoolExecutor(1) as ticker:
            ticked = ticker.submit(tick, season)
            with contextlib.suppress(TimeoutError):
                ticked.result(0.04 * (day % 5))
            kill_gateway(season)
            lost += isinstance(ticked.exception(), httpx.HTTPError | AssertionError)
        until(lambda: healthy(driver.running.url))
        stage = tick(season)["stage"]
        assert len(entries(season)) - before <= 1
        if stage == "canary":
            break
    assert stage == "canary"
    assert lost
    driver.function("end_rollout", model=MODEL, action="roll_back", reason="seen enough")
    assert season.settle() == (1,)


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.HTTPError:
        return False


def kill_gateway(season: FlightSeason) -> None:
    """Kill the gateway's replica, and the processes it has just forked, which may have ended already."""
    running = season.driver.running
    for each in processes.of_platform(running.settings.home, running.sessions.values()):
        if "ServeReplica:gateway" in each.command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
