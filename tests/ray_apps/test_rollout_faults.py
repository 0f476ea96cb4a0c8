"""What goes wrong around a rollout, on Serve over HTTP with a store's journal: defined, and never a promotion unasked.

Clocks that go back, ticks that double and a challenger taken out by hand are in test_rollouts_of_flights.
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

from ray_apps.local import processes
from registry import Entry, Journal, Refused
from tests.ray_apps.flights_kitchen import ENDS, NOISE, QUICK, Kitchen
from tests.ray_apps.flights_rollouts import DAY, MODEL, Delay, platform, until

_logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.proof, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

FEW = 60  # flights a day
CANARY = frozenset({*ENDS, "canary"})


@pytest.fixture(scope="module")
def platform_kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    with platform(tmp_path_factory.mktemp("faults")) as driver:
        yield Kitchen(driver)


@pytest.fixture
def kitchen(platform_kitchen: Kitchen) -> Iterator[Kitchen]:
    """The platform with version 1 as champion and no rollout; afterwards every decision of the test is made again."""
    driver, before = platform_kitchen.driver, len(entries(platform_kitchen))
    yield platform_kitchen
    driver.reports = True
    if driver.registry.traffic(MODEL).champion.version != 1:
        driver.registry.promote(MODEL, 1, reason="for the next one")
    for entry in entries(platform_kitchen)[before:]:
        if entry.body["event"] == "decided":
            explained = driver.function("explain_rollout", model=MODEL, entry=entry.number)
            assert explained["same"]


def entries(kitchen: Kitchen) -> list[Entry]:
    return list(Journal(kitchen.driver.registry.store, f"rollouts/{MODEL}", actor="reader").entries())


def tick(kitchen: Kitchen) -> dict[str, Any]:
    found: dict[str, Any] = kitchen.driver.function("tick_rollout", model=MODEL)
    _logger.info("%s", found)
    return found


def to_canary(kitchen: Kitchen, **changes: Any) -> int:
    """Start a better version, and go on until users meet it."""
    version = kitchen.start(kitchen.make(by_hour=True), QUICK | changes)
    assert kitchen.live(14, most=FEW, until=CANARY)[-1]["stage"] == "canary"
    return version


def said(kitchen: Kitchen, rule: str) -> str:
    """What a rule found at the last recorded decision."""
    last = [entry for entry in entries(kitchen) if entry.body["event"] == "decided"][-1]
    return str(next(one["text"] for one in last.body["decision"]["findings"] if one["rule"] == rule))


def users_get(kitchen: Kitchen, version: int) -> bool:
    """Whether all answers are of a version."""
    before = kitchen.driver.answers[str(version)]
    kitchen.driver.ask(kitchen.season.x[:FEW])
    return kitchen.driver.answers[str(version)] == before + FEW


def test_a_champion_changed_by_hand_in_the_middle_stays(kitchen: Kitchen) -> None:
    to_canary(kitchen)
    other = kitchen.driver.version(kitchen.champion)
    kitchen.driver.registry.promote(MODEL, other, reason="by hand")
    kitchen.driver.follow()
    assert users_get(kitchen, other)
    ended = tick(kitchen)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "champion_changed")
    assert kitchen.settle() == (other,)
    assert users_get(kitchen, other)


def test_a_champion_rolled_back_in_the_middle_stays_rolled_back(kitchen: Kitchen) -> None:
    registry = kitchen.driver.registry
    registry.promote(MODEL, kitchen.driver.version(kitchen.champion), reason="by hand")
    kitchen.driver.follow()
    kitchen.start(kitchen.make(by_hour=True), QUICK)
    kitchen.live(1, most=FEW)
    registry.rollback(MODEL, "champion", reason="a customer called")
    ended = tick(kitchen)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "champion_changed")
    assert kitchen.settle() == (1,)
    assert users_get(kitchen, 1)


def test_a_version_deleted_in_the_middle_is_withdrawn_and_no_user_notices(kitchen: Kitchen) -> None:
    version, registry = to_canary(kitchen), kitchen.driver.registry
    with pytest.raises(Refused, match="move that first"):
        registry.delete_version(MODEL, version, reason="a leak")
    registry.set_traffic(MODEL, {}, reason="to delete it")
    registry.delete_version(MODEL, version, reason="a leak")
    assert tick(kitchen)["stage"] == "rolled_back"
    assert said(kitchen, "challenger_unusable") == f"version {version} is deleted"
    assert kitchen.settle() == (1,)
    assert users_get(kitchen, 1)


def test_a_paused_rollout_whose_guardrail_fires_is_rolled_back(kitchen: Kitchen) -> None:
    driver, rng = kitchen.driver, np.random.default_rng(3)
    complaints = {
        "name": "complaints",
        "source": "table",
        "better": "lower",
        "margin": 0.1,
        "floor": 0,
        "cap": 1,
    }
    to_canary(kitchen, guardrails=[complaints], canary_share=0.45)
    driver.function("pause_rollout", model=MODEL, reason="nobody is there to look")
    for _ in range(10):
        first, split = driver.asked, driver.registry.traffic(MODEL)
        ended = kitchen.live(1, most=FEW)[-1]
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
    assert kitchen.settle() == (1,)


def test_a_label_stream_that_stops_promotes_nothing(kitchen: Kitchen) -> None:
    to_canary(kitchen, min_label_share=0.9, canary_timeout="P4D")
    kitchen.driver.reports = False
    ended = kitchen.live(6, most=FEW)[-1]
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert said(kitchen, "better").endswith("pairs have a label; 90% are needed")
    assert kitchen.settle() == (1,)


def test_two_tickers_decide_once(kitchen: Kitchen) -> None:
    kitchen.start(kitchen.make(by_hour=True), QUICK)
    traffic = kitchen.driver.registry.traffic(MODEL)
    stages: list[str] = []
    with ThreadPoolExecutor(4) as tickers:
        while "canary" not in stages:
            kitchen.driver.spend(kitchen.season, kitchen.day, FEW)
            kitchen.day += 1
            before = len(entries(kitchen))
            found = list(tickers.map(tick, [kitchen] * 4))
            written = [one["entry"] for one in found if one["entry"] is not None]
            assert [entry.number for entry in entries(kitchen)[before:]] == written
            assert len(written) <= 1
            stages.append(kitchen.driver.function("rollout_status", model=MODEL)["current"]["stage"])
            assert len(stages) < 14
        assert kitchen.driver.registry.traffic(MODEL).entry == traffic.entry + 1
        kitchen.driver.function("end_rollout", model=MODEL, action="roll_back", reason="seen enough")
        rules = [one["rule"] for one in tickers.map(tick, [kitchen] * 4)]
    assert "settled" in rules
    assert [entry.body["event"] for entry in entries(kitchen)[-2:]] == ["decided", "settled"]
    assert kitchen.driver.registry.traffic(MODEL).versions == (1,)


def test_nobody_asks_and_it_ends_inconclusive(kitchen: Kitchen) -> None:
    kitchen.start(kitchen.make(by_hour=True), QUICK | {"shadow_timeout": "P2D"})
    kitchen.driver.move(DAY)
    assert tick(kitchen)["action"] == "hold"
    kitchen.driver.move(DAY)
    ended = tick(kitchen)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert kitchen.settle() == (1,)


def test_a_canary_that_no_user_meets_is_not_promoted(kitchen: Kitchen) -> None:
    to_canary(kitchen, canary_share=0.0001, canary_timeout="P2D")
    ended = kitchen.live(4, most=FEW)[-1]
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert said(kitchen, "better").startswith("the canary answered 0 of")
    assert kitchen.settle() == (1,)


def test_one_that_answers_nan_is_stopped_in_the_shadow(kitchen: Kitchen) -> None:
    kitchen.start(kitchen.make(by_hour=True, noise=float("nan")), QUICK)
    ended = kitchen.live(4, most=FEW)[-1]
    assert (ended["stage"], ended["rule"]) == ("rolled_back", "errors")
    assert kitchen.driver.answers["500"] == 0
    assert kitchen.settle() == (1,)


def test_one_that_answers_as_the_champion_does_is_never_judged(kitchen: Kitchen) -> None:
    kitchen.start(kitchen.make(by_hour=False, noise=NOISE), QUICK | {"shadow_timeout": "P4D"})
    ended = kitchen.live(6, most=FEW)[-1]
    assert ended["labels"] > QUICK["burn_in"]
    assert (ended["lower"], ended["upper"]) == (None, None)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert kitchen.settle() == (1,)


def test_a_clock_that_jumps_ahead_ends_it_inconclusive(kitchen: Kitchen) -> None:
    to_canary(kitchen)
    kitchen.driver.move(100 * DAY)
    ended = tick(kitchen)
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert kitchen.settle() == (1,)


def test_all_units_in_the_canary_are_a_mismatch(kitchen: Kitchen) -> None:
    to_canary(kitchen)
    driver, split = kitchen.driver, kitchen.driver.registry.traffic(MODEL)
    for _ in range(4):
        for row in kitchen.season.x[: FEW // 2]:
            while split.assign(str(driver.asked)).name != "canary":
                driver.asked += 1
            driver.ask(row[None])
        driver.drain()
        driver.move(DAY)
        ended = tick(kitchen)
        if ended["stage"] in ENDS:
            break
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "mismatch")
    assert kitchen.settle() == (1,)


STRUCK = 7777.0  # a flight number


class Enormous(Delay):
    """Answers one flight with 1e30."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        usual = super().forward(x)
        return torch.where(x[:, 2:] == STRUCK, torch.full_like(usual, 1e30), usual)


def test_one_enormous_answer_neither_promotes_nor_stops(kitchen: Kitchen) -> None:
    driver = kitchen.driver
    kitchen.start(
        Enormous(kitchen.past, by_hour=True), QUICK | {"loss": "squared_error", "shadow_timeout": "P5D"}
    )
    # On the first day: after it the shadow may have labels enough.
    driver.landed += [(str(driver.asked), 1.0)]
    driver.ask(np.array([[*kitchen.season.x[0, :2], STRUCK]], dtype=np.float32))
    ended = kitchen.live(7, most=FEW)[-1]
    assert ended["upper"] - ended["lower"] > 1  # the answer did count
    assert (ended["stage"], ended["rule"]) == ("inconclusive", "timed_out")
    assert kitchen.settle() == (1,)


def test_a_tick_whose_gateway_is_killed_decides_once(kitchen: Kitchen) -> None:
    driver = kitchen.driver
    kitchen.start(kitchen.make(by_hour=True), QUICK)
    lost = 0
    for day in range(14):
        driver.spend(kitchen.season, kitchen.day, FEW)
        kitchen.day += 1
        before = len(entries(kitchen))
        with ThreadPoolExecutor(1) as ticker:
            ticked = ticker.submit(tick, kitchen)
            with contextlib.suppress(TimeoutError):
                ticked.result(0.04 * (day % 5))
            kill_gateway(kitchen)
            lost += isinstance(ticked.exception(), httpx.HTTPError | AssertionError)
        until(lambda: healthy(driver.running.url))
        stage = tick(kitchen)["stage"]
        assert len(entries(kitchen)) - before <= 1
        if stage == "canary":
            break
    assert stage == "canary"
    assert lost
    driver.function("end_rollout", model=MODEL, action="roll_back", reason="seen enough")
    assert kitchen.settle() == (1,)


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.HTTPError:
        return False


def kill_gateway(kitchen: Kitchen) -> None:
    """SIGKILL its replica, and whatever it forks just now, which may be gone before its turn comes."""
    running = kitchen.driver.running
    for each in processes.of_platform(running.settings.home, running.sessions.values()):
        if "ServeReplica:gateway" in each.command:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
