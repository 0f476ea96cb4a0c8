"""How late the answers of the last seconds were: counted as they leave, told to Serve once a second.

Only replicas that come and go have any of this; the others' doors stay as they are.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections import deque
from collections.abc import Callable
from operator import mul
from typing import NamedTuple

from ray_apps.predictor.deploy.scaling import ANSWERS, IN_FLIGHT, LATENCY_MS
from ray_apps.predictor.http.endpoint import Answer, Endpoint, Message, Request
from ray_apps.predictor.protocol.errors import DeadlineExceeded

__all__ = ["LatencyMeter", "LatencySummary", "TimedEndpoint", "Window"]

LEAST_S, GROWTH, BUCKETS = 1e-5, 1.1, 192
"""Buckets a tenth wide, from 10 µs to a quarter of an hour: a percentile is right to 5 %."""
REPORTS = 5
QUANTILE = 0.95
PROBES_HZ = 100.0
TIMER_ERROR_S = 1e-3
"""uvloop's timers are good to a millisecond."""
ROUNDS = 2
"""A request is read in one round of the loop and has its turn in the next; a timer waits for the rest of one."""
_PER_BUCKET = 1 / math.log(GROWTH)
_MIDDLES_S = [LEAST_S * math.pow(GROWTH, bucket + 0.5) for bucket in range(BUCKETS)]
_ON_TRIAL = re.compile(r"/versions/[0-9]+/infer$")


class LatencySummary(NamedTuple):
    """Durations in a window: how many, their mean and 95th percentile in seconds; zeros if there were none."""

    number: int
    mean_s: float
    p95_s: float


class Window:
    """Durations of the last five rolls, counted in buckets."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._before: deque[list[int]] = deque(maxlen=REPORTS - 1)

    def add(self, duration_s: float) -> None:
        """Count one."""
        bucket = int(math.log(duration_s / LEAST_S) * _PER_BUCKET) if duration_s > LEAST_S else 0
        self._counts[bucket if bucket < BUCKETS else -1] += 1

    def roll(self) -> LatencySummary:
        """What was added since the fifth roll before this one.

        One late answer among less than twenty does not make the percentile.
        """
        counts = [sum(column) for column in zip(self._counts, *self._before, strict=True)]
        self._before.append(self._counts)
        self._counts = [0] * BUCKETS
        total = sum(counts)
        if not total:
            return LatencySummary(0, 0.0, 0.0)
        mean_s = sum(map(mul, counts, _MIDDLES_S)) / total
        return LatencySummary(total, mean_s, _MIDDLES_S[_bucket_of(max(1, int(QUANTILE * total)), counts)])


def _bucket_of(rank: int, counts: list[int]) -> int:
    for bucket, count in enumerate(counts):
        rank -= count
        if rank <= 0:
            return bucket
    raise ValueError(f"there are not so many: {rank} more are wanted")


class LatencyMeter:
    """What a replica tells Serve of its answers, and of how long a request waits for its event loop.

    The door of a model that answers on the loop sees a request only once its turn has come, and Serve no sooner: what
    it waited before, only the loop knows. So timers are set at random moments, as requests come, and how late they
    are is counted too.
    Belongs to one event loop. now: the moment, in seconds.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.perf_counter, chance: random.Random | None = None
    ) -> None:
        self.now, self._chance = clock, chance or random.Random()
        self._answers, self._delays = Window(), Window()
        self._open, self._changed_at = 0, clock()
        self._request_s = 0.0
        self._rolls: deque[tuple[float, float]] = deque([(clock(), 0.0)], maxlen=REPORTS)
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> float:
        """A request comes in; returns the moment."""
        return self._change(1)

    def end(self, begin: float, *, answered: bool) -> None:
        """It leaves; begin: what it is timed from. answered: whether that says how late answers are."""
        now = self._change(-1)
        if answered:
            self._answers.add(now - begin)

    def _change(self, requests: int) -> float:
        now = self.now()
        self._request_s += self._open * (now - self._changed_at)
        self._changed_at = now
        self._open += requests
        return now

    def autoscaling_metrics(self) -> dict[str, float]:
        """Of the time since the fifth call before this one; to be called once a second, on the event loop.

        Zeros if there were no answers: a figure of before would count on otherwise.
        """
        if self._timer is None:
            self._due = self.now()
            self._tick()
        now = self._change(0)
        then, request_s = self._rolls[0]
        self._rolls.append((now, self._request_s))
        answers, delays = self._answers.roll(), self._delays.roll()
        span_s = max(now - then, 1e-9)
        in_endpoint = (self._request_s - request_s) / span_s
        before_loop = ROUNDS * delays.mean_s * answers.number / span_s
        return {
            ANSWERS: answers.number,
            LATENCY_MS: max(answers.p95_s, ROUNDS * delays.p95_s) * 1e3 if answers.number else 0.0,
            IN_FLIGHT: max(in_endpoint, before_loop),
        }

    def _tick(self) -> None:
        now = self.now()
        while self._due <= now:  # those that were due meanwhile, too: so would requests have been
            self._delays.add(now - self._due - TIMER_ERROR_S)
            self._due += self._chance.expovariate(PROBES_HZ)
        self._timer = asyncio.get_running_loop().call_later(self._due - now, self._tick)

    def close(self) -> None:
        """Set no more timers."""
        if self._timer is not None:
            self._timer.cancel()


class TimedEndpoint(Endpoint):
    """Another door, whose predictions are timed from the moment that a request is whole.

    What is refused is not timed, or a crowded door would look fast; what ran out of its caller's time is. Nor is a
    version asked for by number: somebody tries it out, and it may have to be loaded first.
    """

    def __init__(self, endpoint: Endpoint, meter: LatencyMeter) -> None:
        super().__init__(max_in_flight=endpoint.max_in_flight)
        self._endpoint, self._meter = endpoint, meter

    def on_startup(self) -> None:
        """As the door within."""
        self._endpoint.on_startup()

    def index(self) -> list[dict[str, str]]:
        """The model versions of the door within."""
        return self._endpoint.index()

    async def close(self) -> None:
        """Close the door within."""
        self._meter.close()
        await self._endpoint.close()

    async def answer(self, request: Request) -> Answer:
        """What the door within answers. Raises: PredictorError."""
        if not request.path.endswith("/infer") or _ON_TRIAL.search(request.path):
            return await self._endpoint.answer(request)
        whole_at, in_pieces, answered = self._meter.begin(), False, False
        receive = request.receive

        async def read() -> Message:
            nonlocal whole_at, in_pieces
            message = await receive()
            if in_pieces:  # how long a caller takes to send a large body is not ours
                whole_at = self._meter.now()
            in_pieces = message.get("more_body", False)
            return message

        request.receive = read
        try:
            answer = await self._endpoint.answer(request)
            answered = True
        except (DeadlineExceeded, asyncio.CancelledError):
            answered = True
            raise
        finally:
            self._meter.end(whole_at, answered=answered)
        return answer

    def autoscaling_metrics(self) -> dict[str, float]:
        """Of the last seconds; called once a second."""
        return self._meter.autoscaling_metrics()
