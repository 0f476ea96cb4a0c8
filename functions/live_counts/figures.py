"""Figures of a model's arms over the last minutes, for people who look: rates, errors and latencies."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel

from toque.functions.live_counts.counts import ArmTally, WindowCounts
from toque.functions.live_counts.latency_bins import quantile_ms
from toque.functions.live_counts.reader import live_reader
from toque.functions.live_counts.windows import WINDOW_S, window_at


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
