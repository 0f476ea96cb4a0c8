"""Latency histograms, and which requests of an endpoint are measured."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.ray_apps.predictor.deploy.replica import LatencyMeter, TimedEndpoint, Window
from toque.ray_apps.predictor.deploy.scaling import ANSWERS, IN_FLIGHT, LATENCY_MS
from toque.ray_apps.predictor.http.endpoint import JSON, Answer, Endpoint, Request
from toque.ray_apps.predictor.protocol.errors import DeadlineExceeded, NotReady


class Clock:
    """Stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(st.lists(st.floats(2e-5, 600), min_size=1, max_size=300))
def test_mean_and_percentile_are_right_to_five_per_cent(seconds: list[float]) -> None:
    window = Window()
    for each in seconds:
        window.add(each)
    seen = window.roll()
    rank = max(1, int(0.95 * len(seconds)))
    assert seen.number == len(seconds)
    assert seen.mean_s == pytest.approx(np.mean(seconds), rel=0.051)
    assert seen.p95_s == pytest.approx(np.sort(seconds)[rank - 1], rel=0.051)


def test_one_late_answer_among_a_few_makes_no_percentile_and_one_in_ten_does() -> None:
    window = Window()
    for each in [0.01] * 9 + [3.0]:
        window.add(each)
    assert window.roll().p95_s == pytest.approx(0.01, rel=0.051)
    for each in [0.01] * 9 + [3.0]:
        window.add(each)
    assert window.roll().p95_s == pytest.approx(3.0, rel=0.051)


def test_a_duration_counts_in_five_rolls_and_is_forgotten_then() -> None:
    window = Window()
    window.add(0.02)
    assert [window.roll().number for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    assert window.roll() == (0, 0.0, 0.0)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e-9, 1e9])
def test_a_duration_beyond_the_buckets_counts_in_the_outermost(seconds: float) -> None:
    window = Window()
    window.add(seconds)
    assert window.roll().number == 1


async def test_requests_in_flight_are_averaged_over_time_the_unanswered_too() -> None:
    clock = Clock()
    meter = LatencyMeter(clock=clock)
    first = meter.begin()
    clock.now_s = 1
    meter.begin()  # never answered
    clock.now_s = 2
    meter.end(first, answered=True)
    clock.now_s = 4
    assert meter.autoscaling_metrics()[IN_FLIGHT] == pytest.approx((1 * 1 + 2 * 1 + 1 * 2) / 4)
    for clock.now_s in (5, 6, 7, 8, 9):
        figures = meter.autoscaling_metrics()
    assert figures[IN_FLIGHT] == pytest.approx(1)  # since the call at 4
    assert figures[ANSWERS] == 0
    meter.close()


async def test_a_request_waits_for_the_loop_twice_as_long_as_a_timer_does() -> None:
    """Rounds of 100 ms, ten answers in each that take 10 ms: who comes in one round has his answer in the next."""
    clock = Clock()
    meter = LatencyMeter(clock=clock, chance=random.Random(7))
    meter.autoscaling_metrics()
    for _ in range(10):
        for _ in range(10):
            begin = meter.begin()
            clock.now_s += 0.01
            meter.end(begin, answered=True)
        meter._tick()  # as the loop calls it, once a round
    figures = meter.autoscaling_metrics()
    meter.close()
    assert figures[ANSWERS] == 100
    assert figures[LATENCY_MS] == pytest.approx(190, rel=0.1)
    assert figures[IN_FLIGHT] == pytest.approx(
        10, rel=0.2
    )  # a hundred a second, each there for a tenth of one


async def test_one_caller_of_a_model_on_the_loop_is_one_request_in_flight() -> None:
    clock = Clock()
    meter = LatencyMeter(clock=clock, chance=random.Random(7))
    meter.autoscaling_metrics()
    for _ in range(1_000):
        begin = meter.begin()
        clock.now_s += 0.002
        meter.end(begin, answered=True)
        meter._tick()
    figures = meter.autoscaling_metrics()
    meter.close()
    assert figures[LATENCY_MS] == pytest.approx(2, rel=0.051)
    assert figures[IN_FLIGHT] == pytest.approx(1)


class WrappedEndpoint(Endpoint):
    """Does what its test says; reads the whole body first."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        super().__init__(max_in_flight=2)
        self._act = act

    async def answer(self, request: Request) -> Answer:
        while (await request.receive()).get("more_body"):
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
    act: Callable[[], Awaitable[None]] = nothing,
    path: str = "/infer",
    taken: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    **request: Any,
) -> dict[str, float]:
    """Metrics of a measured endpoint after one request."""
    endpoint = TimedEndpoint(WrappedEndpoint(act), LatencyMeter(clock=clock))
    endpoint.in_flight = taken
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(endpoint), base_url="http://replica"
    ) as client:
        await client.post(path, **request)
    figures = endpoint.autoscaling_metrics()
    await endpoint.close()
    return figures


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

    endpoint = TimedEndpoint(WrappedEndpoint(forever), LatencyMeter())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(endpoint), base_url="http://replica"
    ) as client:
        asked = asyncio.create_task(client.post("/infer"))
        await begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    assert endpoint.autoscaling_metrics()[ANSWERS] == 1
    await endpoint.close()


async def test_the_time_that_a_caller_takes_to_send_a_body_is_not_the_door_s() -> None:
    clock = Clock()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        clock.now_s += 30
        yield b"last"

    async def work() -> None:
        clock.now_s += 0.02

    assert (await counted(work, clock=clock, content=body()))[LATENCY_MS] == pytest.approx(20, rel=0.051)
    assert (await counted(work, clock=clock, content=b"whole"))[LATENCY_MS] == pytest.approx(20, rel=0.051)


async def test_a_door_that_is_not_timed_has_nothing_to_tell() -> None:
    assert WrappedEndpoint(nothing).autoscaling_metrics() == {}
