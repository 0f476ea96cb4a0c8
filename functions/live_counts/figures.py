"""Live figures of a model's arms over the last minutes, for people who look: rates, errors and latencies."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from threading import Lock
from typing import Any

from cachetools import LRUCache
from pydantic import AwareDatetime, BaseModel

from toque.clusters.redis_clients import open_redis
from toque.functions.live_counts.counts import (
    KEPT_S,
    WINDOW_S,
    ArmTally,
    ClockCheck,
    WindowCounts,
    counts_key,
    decode,
    models_key,
    quantile_ms,
    window_at,
)

TIMEOUT_S = 2.0
_CACHED_WINDOWS = 20_000  # windows that have ended, of all models


class ArmFigures(BaseModel):
    """Figures of one arm over the last minute. errors, missing: requests that met an error, or got no usable answer."""

    arm: str
    version: int
    requests_per_s: float
    requests: int
    errors: int
    missing: int
    p50_ms: float | None
    p99_ms: float | None


class Minute(BaseModel):
    """Requests of one minute by arm; of the running minute those so far."""

    start: AwareDatetime
    requests: dict[str, int]


class LiveFigures(BaseModel):
    """What a model's arms answered in the last minutes, fresh within two seconds. history: oldest first."""

    at: AwareDatetime
    arms: list[ArmFigures]
    history: list[Minute]


def read_figures(redis_url: str, workspace: str, model: str, *, minutes: int = 30) -> LiveFigures:
    """Read the figures of a model over the last minutes, the running one included. Raises: RedisError."""
    reader, now = live_reader(redis_url, workspace), time.time()
    running = window_at(now)
    return figures(reader.windows(model, range(running - minutes + 1, running + 1), now), now)


def figures(counts: dict[int, WindowCounts], now: float) -> LiveFigures:
    """Add up counts of minutes; the last minute is the running one and what of the one before is less than a minute ago.

    counts: by window, the running one included. now: seconds since the epoch.
    """
    running = window_at(now)
    into = (now % WINDOW_S) / WINDOW_S
    last, before = _by_arm(counts[running]), _by_arm(counts.get(running - 1, WindowCounts()))
    arms = [
        _figures(
            arm, version, last.get((arm, version), ArmTally()), before.get((arm, version), ArmTally()), into
        )
        for arm, version in sorted({*last, *before}, key=lambda key: (key[0] != "champion", key))
    ]
    history = [
        Minute(start=datetime.fromtimestamp(window * WINDOW_S, UTC), requests=_requests(found))
        for window, found in sorted(counts.items())
    ]
    return LiveFigures(at=datetime.fromtimestamp(now, UTC), arms=arms, history=history)


def _figures(arm: str, version: int, last: ArmTally, before: ArmTally, into: float) -> ArmFigures:
    left = 1.0 - into  # of the minute before, which is taken to have been even

    def within(now: int, earlier: int) -> int:
        return math.ceil(
            now + left * earlier - 1e-9
        )  # up: the last error of a minute is seen until it is over

    latency = last.latency + before.latency
    return ArmFigures(
        arm=arm,
        version=version,
        requests_per_s=(last.requests + left * before.requests) / WINDOW_S,
        requests=within(last.requests, before.requests),
        errors=within(last.errors.requests, before.errors.requests),
        missing=within(last.missing.requests, before.missing.requests),
        p50_ms=_finite(quantile_ms(latency, 0.5)),
        p99_ms=_finite(quantile_ms(latency, 0.99)),
    )


def _by_arm(counts: WindowCounts) -> dict[tuple[str, int], ArmTally]:
    """Pool the splits of a window by arm and version."""
    found: defaultdict[tuple[str, int], ArmTally] = defaultdict(ArmTally)
    for split, tally in counts.arms.items():
        found[split.arm, split.version] += tally
    return dict(found)


def _requests(counts: WindowCounts) -> dict[str, int]:
    found: defaultdict[str, int] = defaultdict(int)
    for split, tally in counts.arms.items():
        found[split.arm] += tally.requests
    return dict(found)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class LiveReader:
    """Reads the counts of a workspace's models. client: of Redis. Windows that are over are read once.

    A window is over when its writers have come two windows further, whatever the clock here says of it.
    """

    def __init__(self, client: Any, workspace: str) -> None:
        self._client, self._workspace = client, workspace
        self._ended: LRUCache[tuple[str, int], WindowCounts] = LRUCache(_CACHED_WINDOWS)
        self._lock = Lock()
        self._reached: dict[str, int] = {}
        self._check = ClockCheck(client)

    def models(self, now: float, *, within_s: float = 10 * WINDOW_S) -> list[str]:
        """List the models that were asked in the last seconds. now: seconds since the epoch. Raises: RedisError."""
        self._check.look(now)
        key = models_key(self._workspace)
        self._client.zremrangebyscore(key, "-inf", now - KEPT_S)
        return sorted(name.decode() for name in self._client.zrangebyscore(key, now - within_s, "+inf"))

    def windows(self, model: str, windows: Iterable[int], now: float) -> dict[int, WindowCounts]:
        """Read the counts of windows. Raises: RedisError."""
        with self._lock:
            counts = {window: self._ended.get((model, window)) for window in windows}
        read = self._read(model, [window for window, ended in counts.items() if ended is None])
        self._reached[model] = max(
            [self._reached.get(model, 0), *(window for window, one in read.items() if one.arms)]
        )
        # A window gets its last counts a few seconds after its end.
        settled = min(window_at(now - WINDOW_S / 2), self._reached[model] - 1)
        with self._lock:
            self._ended.update(
                {(model, window): one for window, one in sorted(read.items()) if window < settled}
            )
        return {window: read[window] if ended is None else ended for window, ended in counts.items()}

    def _read(self, model: str, windows: list[int]) -> dict[int, WindowCounts]:
        """Read some windows in one round trip."""
        pipe = self._client.pipeline(transaction=False)
        for window in windows:
            pipe.hvals(counts_key(self._workspace, model, window))
        answers = pipe.execute() if windows else []
        return {
            window: WindowCounts.sum(map(decode, fields))
            for window, fields in zip(windows, answers, strict=True)
        }


@cache
def live_reader(redis_url: str, workspace: str) -> LiveReader:
    """Return this process's reader of a workspace's counts; it fails fast, as the next look is seconds away."""
    client = open_redis(redis_url, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, patience_s=0.0)
    return LiveReader(client, workspace)
