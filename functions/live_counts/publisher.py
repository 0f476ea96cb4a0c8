"""Tallies of this process's requests, and the thread that sends to Redis, once a second, what has changed.

The event loop counts; only that thread waits for Redis.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from hashlib import blake2b
from typing import Any

import numpy as np
from redis import RedisError

from toque.clusters.redis_clients import open_redis
from toque.functions.live_counts.counts import (
    BINS,
    KEPT_S,
    WINDOW_S,
    ArmTally,
    ClockCheck,
    Failures,
    SplitArm,
    bin_of,
    counts_key,
    encode,
    models_key,
)

EVERY_S = 1.0
TIMEOUT_S = 1.0
_QUIET_S = 60.0  # between two warnings
_logger = logging.getLogger(__name__)
MAX_UNITS = 2_048
"""Units of a window that met an error, no answer or a refusal, and are counted; then a process counts no further ones, for all arms alike."""
_OUR_ERRORS = 500
_UNANSWERED = (499, 504)  # the caller hung up; the deadline passed


class LivePublisher:
    """Sends the tallies of one process. Each is sent whole under a field of its own, so sending twice counts once.

    While Redis is away the counts of the running window are kept, and those of older windows are lost.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._process = uuid.uuid4().hex
        self._tallies: list[tuple[str, str, str, weakref.ref[Tally]]] = []
        self._made = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._told_at = float("-inf")
        self._check = ClockCheck(client)

    def tally(self, workspace: str, model: str) -> Tally:
        """Make the tally of a model, sent from now on for as long as somebody holds it."""
        made = Tally()
        with self._lock:
            self._made += 1  # a model that was evicted and came back has another field
            field = f"{self._process}-{self._made}"
            self._tallies.append((workspace, model, field, weakref.ref(made)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="live-counts", daemon=True)
                self._thread.start()
        return made

    def send(self) -> None:
        """Send what has changed since the last call. Raises: RedisError; OSError; it is sent again next time."""
        self._check.look(time.time())
        with self._lock:
            self._tallies = [each for each in self._tallies if each[-1]() is not None]
            known = list(self._tallies)
        for workspace, model, field, reference in known:
            tally = reference()
            taken = tally.take() if tally is not None else {}
            if tally is None or not taken:
                continue
            try:
                self._send(workspace, model, field, taken)
            except (RedisError, OSError):
                tally.put_back(set(taken))
                raise

    def _send(
        self, workspace: str, model: str, field: str, taken: Mapping[int, Mapping[SplitArm, ArmTally]]
    ) -> None:
        pipe = self._client.pipeline(transaction=False)
        for window, arms in taken.items():
            key = counts_key(workspace, model, window)
            pipe.hset(key, field, encode(arms))
            pipe.expire(key, KEPT_S)
        pipe.zadd(models_key(workspace), {model: time.time()})
        pipe.execute()

    def _run(self) -> None:
        waiting = threading.Event()
        while not waiting.wait(EVERY_S):
            try:
                self.send()
            except Exception as error:  # noqa: BLE001 - the thread must outlive any fault of Redis
                now = time.monotonic()
                if now - self._told_at > _QUIET_S:
                    self._told_at = now
                    _logger.warning("live counts are sent later: %s", error)


@cache
def live_publisher(redis_url: str) -> LivePublisher:
    """Return this process's publisher to a Redis."""
    client = open_redis(redis_url, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, patience_s=0.0)
    return LivePublisher(client)


class End(Enum):
    """End of a request: answered; by an error of ours; without a usable answer; refused by a version that it does not fit."""

    ANSWERED = "answered"
    ERROR = "error"
    MISSING = "missing"
    REFUSED = "refused"


_BAD = (End.ERROR, End.MISSING, End.REFUSED)  # in the order of the fields of `ArmTally`


def end_of(status: int) -> End:
    """Classify a failed request by its HTTP status."""
    if status in _UNANSWERED:
        return End.MISSING
    return End.ERROR if status >= _OUR_ERRORS else End.REFUSED


class _Cell:
    """Counts of one split arm that are still growing; fields as of `ArmTally`, and the units of the running second."""

    __slots__ = ("failed", "latency", "requests", "second", "seen", "units")

    def __init__(self) -> None:
        self.requests = 0
        self.failed: Counter[End] = Counter()
        self.units: dict[End, Counter[int]] = {end: Counter() for end in _BAD}
        self.latency: Counter[int] = Counter()
        self.second = 0
        self.seen: set[str] = set()

    def frozen(self) -> ArmTally:
        """Copy the counts as they are now."""
        bins = np.zeros(BINS, dtype=np.int64)
        for index, count in self.latency.items():
            bins[index] = count
        errors, missing, refused = (Failures(self.failed[end], dict(self.units[end])) for end in _BAD)
        return ArmTally(self.requests, errors, missing, refused, bins)


class Tally:
    """Counts of one model in this process, by window.

    clock: seconds since the epoch; of the machine, whose skew matters little since all arms share it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[int, dict[SplitArm, _Cell]] = {}
        self._full: set[int] = set()
        self._changed: set[int] = set()

    def count(self, arm: SplitArm, unit: str, end: End, latency_ms: float) -> None:
        """Count how one request ended. unit: whom the split assigned; the request's id where it named none."""
        with self._lock:
            self._count(arm, unit, end, latency_ms, self._clock())

    def _count(self, arm: SplitArm, unit: str, end: End, latency_ms: float, now: float) -> None:
        window = int(now // WINDOW_S)
        cells = self._windows.setdefault(window, {})
        cell = cells.get(arm)
        if cell is None:
            cell = cells[arm] = _Cell()
        cell.requests += 1
        self._changed.add(window)
        if end is not End.ANSWERED:
            cell.failed[end] += 1
            self._count_unit(window, cell.units[end], unit)
        if end is End.ERROR or end is End.REFUSED:
            return  # how fast it failed says nothing about how fast it answers
        second = int(now)
        if second != cell.second:
            cell.second, cell.seen = second, set()
        if unit not in cell.seen:
            cell.seen.add(unit)
            cell.latency[bin_of(latency_ms)] += 1

    def _count_unit(self, window: int, units: Counter[int], name: str) -> None:
        unit = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
        is_new = unit not in units
        if is_new and window in self._full:
            return
        units[unit] += 1
        cells = self._windows[window].values()
        if is_new and sum(len(known) for cell in cells for known in cell.units.values()) >= MAX_UNITS:
            self._full.add(window)

    def take(self) -> dict[int, dict[SplitArm, ArmTally]]:
        """Return the windows that changed since the last call, each whole; older ones are forgotten."""
        with self._lock:
            changed, self._changed = self._changed, set()
            taken = {
                window: {arm: cell.frozen() for arm, cell in self._windows[window].items()}
                for window in changed
            }
            newest = max(self._windows, default=0)
            self._windows = {window: cells for window, cells in self._windows.items() if window == newest}
            self._full &= {newest}
        return taken

    def put_back(self, windows: set[int]) -> None:
        """Mark windows that could not be sent as changed, where they are still known."""
        with self._lock:
            self._changed |= windows & self._windows.keys()


def is_usable(values: np.ndarray) -> bool:
    """Whether an answer holds only finite numbers; texts always do."""
    if values.dtype.kind != "f":
        return True
    if values.size == 1:
        return math.isfinite(values.item())
    return bool(np.isfinite(values).all())
