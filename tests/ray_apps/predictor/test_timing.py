"""Latencies in buckets, and what of a door's traffic is timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.predictor import timing
from ray_apps.predictor.door import JSON, Answer, Door, Message, Receive
from ray_apps.predictor.errors import DeadlineExceeded, NotReady
from ray_apps.predictor.scaling import ANSWERS, LATENCY_MS
from ray_apps.predictor.timing import Latencies, TimedDoor


@given(st.lists(st.floats(2e-5, 600), min_size=1, max_size=300))
def test_a_percentile_is_right_to_five_per_cent(seconds: list[float]) -> None:
    latencies = Latencies()
    for each in seconds:
        latencies.add(each)
    report = latencies.report()
    rank = max(1, int(0.95 * len(seconds)))
    assert report[ANSWERS] == len(seconds)
    assert report[LATENCY_MS] == pytest.approx(np.sort(seconds)[rank - 1] * 1e3, rel=0.051)


def test_one_late_answer_among_a_few_makes_no_percentile_and_one_in_ten_does() -> None:
    latencies = Latencies()
    for each in [0.01] * 9 + [3.0]:
        latencies.add(each)
    assert latencies.report()[LATENCY_MS] == pytest.approx(10, rel=0.051)
    for each in [0.01] * 9 + [3.0]:
        latencies.add(each)
    assert latencies.report()[LATENCY_MS] == pytest.approx(3_000, rel=0.051)


def test_answers_count_in_five_reports_and_are_forgotten_then() -> None:
    latencies = Latencies()
    latencies.add(0.02)
    assert [latencies.report()[ANSWERS] for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    assert latencies.report() == {ANSWERS: 0, LATENCY_MS: 0.0}


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e9])
def test_what_is_beyond_the_buckets_is_counted_in_the_last(seconds: float) -> None:
    latencies = Latencies()
    latencies.add(seconds)
    assert latencies.report()[ANSWERS] == 1


class Within(Door):
    """Does what its test says; reads the whole body first."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        super().__init__(max_in_flight=2)
        self._act = act

    async def answer(self, scope: Message, receive: Receive) -> Answer:  # noqa: ARG002 - the door's
        while (await receive()).get("more_body"):
            pass
        await self._act()
        return 200, [JSON], b"{}"

    async def close(self) -> None: ...


async def nothing() -> None: ...


async def late() -> None:
    raise DeadlineExceeded("deadline: it passed")


async def unready() -> None:
    raise NotReady("no champion")


async def counted(
    act: Callable[[], Awaitable[None]] = nothing, path: str = "/infer", taken: int = 0, **request: Any
) -> dict[str, float]:
    """What a timed door tells after one request."""
    door = TimedDoor(Within(act), Latencies())
    door.in_flight = taken
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://replica") as client:
        await client.post(path, **request)
    return door.figures()


async def test_predictions_and_those_that_came_too_late_are_timed() -> None:
    assert (await counted())[ANSWERS] == 1
    assert (await counted(path="/one/infer"))[ANSWERS] == 1
    assert (await counted(late))[ANSWERS] == 1


async def test_refusals_looks_and_versions_on_trial_are_not() -> None:
    assert (await counted(unready))[ANSWERS] == 0
    assert (await counted(taken=2))[ANSWERS] == 0
    assert (await counted(path="/status"))[ANSWERS] == 0
    assert (await counted(path="/versions/7/infer"))[ANSWERS] == 0


async def test_a_caller_who_hung_up_is_timed() -> None:
    begun = asyncio.Event()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    door = TimedDoor(Within(forever), Latencies())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://replica") as client:
        asked = asyncio.create_task(client.post("/infer"))
        await begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert door.figures()[ANSWERS] == 1


async def test_the_time_that_a_caller_takes_to_send_a_body_is_not_the_door_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        now[0] += 30
        yield b"last"

    async def work() -> None:
        now[0] += 0.02

    assert (await counted(work, content=body()))[LATENCY_MS] == pytest.approx(20, rel=0.051)
    assert (await counted(work, content=b"whole"))[LATENCY_MS] == pytest.approx(20, rel=0.051)


async def test_a_door_that_is_not_timed_has_nothing_to_tell() -> None:
    assert Within(nothing).figures() == {}
