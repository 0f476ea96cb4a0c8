"""How late the answers of the last seconds were: counted as they leave, told to Serve once a second.

Only a replica that is scaled by latency has any of this; the others' doors stay as they are.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque

from ray_apps.predictor.door import Answer, Door, Message, Receive
from ray_apps.predictor.errors import DeadlineExceeded
from ray_apps.predictor.scaling import ANSWERS, LATENCY_MS

__all__ = ["Latencies", "TimedDoor"]

LEAST_S, GROWTH, BUCKETS = 1e-5, 1.1, 192
"""Buckets a tenth wide, from 10 µs to a quarter of an hour: a percentile is right to 5 %."""
REPORTS = 5
QUANTILE = 0.95
_PER_BUCKET = 1 / math.log(GROWTH)
_ON_TRIAL = re.compile(r"/versions/[0-9]+/infer$")


class Latencies:
    """Latencies of answers, counted in buckets. Belongs to one event loop."""

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self._before: deque[list[int]] = deque(maxlen=REPORTS - 1)

    def add(self, latency_s: float) -> None:
        """Count one answer."""
        bucket = int(math.log(latency_s / LEAST_S) * _PER_BUCKET) if latency_s > LEAST_S else 0
        self._counts[bucket if bucket < BUCKETS else -1] += 1

    def report(self) -> dict[str, float]:
        """How many answers there were since the fifth report before this one, and their 95th percentile in ms.

        Zeros if there were none: a figure of before would count on otherwise. One late answer among less than twenty
        does not make the percentile.
        """
        counts = [sum(column) for column in zip(self._counts, *self._before, strict=True)]
        self._before.append(self._counts)
        self._counts = [0] * BUCKETS
        answers = sum(counts)
        return {ANSWERS: answers, LATENCY_MS: _quantile_ms(counts, answers) if answers else 0.0}


def _quantile_ms(counts: list[int], answers: int) -> float:
    """The middle of the bucket that holds the answer of rank 0.95 n, rounded down."""
    left = max(1, int(QUANTILE * answers))
    for bucket, count in enumerate(counts):  # noqa: B007 - where it stopped is the result
        left -= count
        if left <= 0:
            break
    return LEAST_S * math.pow(GROWTH, bucket + 0.5) * 1e3


class TimedDoor(Door):
    """Another door, whose predictions are timed from the moment that a request is whole.

    What is refused is not timed, or a crowded door would look fast; what ran out of its caller's time is. Nor is a
    version asked for by number: somebody tries it out, and it may have to be loaded first.
    """

    def __init__(self, door: Door, latencies: Latencies) -> None:
        super().__init__(max_in_flight=door.max_in_flight)
        self._door, self._latencies = door, latencies

    def opened(self) -> None:
        """As the door within."""
        self._door.opened()

    async def close(self) -> None:
        """Close the door within."""
        await self._door.close()

    async def answer(self, scope: Message, receive: Receive) -> Answer:
        """What the door within answers. Raises: PredictorError."""
        path = scope["path"]
        if not path.endswith("/infer") or _ON_TRIAL.search(path):
            return await self._door.answer(scope, receive)
        begin, in_pieces = time.perf_counter(), False

        async def read() -> Message:
            nonlocal begin, in_pieces
            message = await receive()
            if in_pieces:  # how long a caller takes to send a large body is not ours
                begin = time.perf_counter()
            in_pieces = message.get("more_body", False)
            return message

        try:
            answer = await self._door.answer(scope, read)
        except (DeadlineExceeded, asyncio.CancelledError):
            self._latencies.add(time.perf_counter() - begin)
            raise
        self._latencies.add(time.perf_counter() - begin)
        return answer

    def figures(self) -> dict[str, float]:
        """Of the last seconds; called once a second."""
        return self._latencies.report()
