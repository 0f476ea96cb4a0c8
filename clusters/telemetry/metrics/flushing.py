"""Series of hot paths: counted in plain numbers there, and moved to the process's files a few times a second.

An increment of a series in a file takes two microseconds; of a number of the event loop's own, a fiftieth of that.
What was counted since the last flush is lost with the process. `Bounded` holds the number of a label's values down.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from prometheus_client import Counter, Histogram

EVERY_S = 0.5  # from one flush to the next
OTHER = "other"
MOST = 200  # values of a label that count by name
_logger = logging.getLogger(__name__)


class Flushed(Protocol):
    """Owner of numbers that become series."""

    def flush(self) -> None:
        """Move what was counted since the last call to the series; called in a thread, never twice at once."""
        ...


class Rising:
    """Counter that follows a total which somebody else counts."""

    __slots__ = ("_counter", "_moved")

    def __init__(self, counter: Counter, moved: float = 0.0) -> None:
        self._counter, self._moved = counter, moved

    def to(self, total: float) -> None:
        """Count what the total has grown by since the last call; one that fell has begun anew."""
        grown, self._moved = total - self._moved, total
        if grown > 0:
            self._counter.inc(grown)


class Durations:
    """Histogram that one thread observes with next to no cost, and another flushes."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_moved", "_moved_total", "_total")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram: Any = histogram
        self._bounds = tuple(self._histogram._upper_bounds)  # noqa: SLF001  # prometheus_client tells them nowhere else
        self._counts = [0] * len(self._bounds)
        self._moved = [0] * len(self._bounds)
        self._total, self._moved_total = 0.0, 0.0

    def observe(self, seconds: float) -> None:
        """Observe one duration in seconds."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._total += seconds

    def flush(self) -> None:
        """Move what was observed to the histogram's series."""
        counts, total = list(self._counts), self._total
        if counts != self._moved:
            grown = [now - before for now, before in zip(counts, self._moved, strict=True)]
            add_counts(self._histogram, grown, total - self._moved_total)
            self._moved, self._moved_total = counts, total


def observe_all(histogram: Histogram, values: Iterable[float]) -> None:
    """Observe several values at once, for the price of a few."""
    found = Durations(histogram)
    for value in values:
        found.observe(value)
    found.flush()


def add_counts(histogram: Histogram, counts: Sequence[int], total: float) -> None:
    """Add many observations to a histogram at once. counts: by bucket, not cumulated; total: their sum."""
    child: Any = histogram
    for bucket, count in zip(child._buckets, counts, strict=True):  # noqa: SLF001  # it takes one observation at a time
        if count:
            bucket.inc(count)
    child._sum.inc(total)  # noqa: SLF001


class _Flusher:
    """Thread that flushes all owners that live."""

    def __init__(self) -> None:
        self._owners: weakref.WeakSet[Any] = weakref.WeakSet()
        self._guard, self._flushing = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, owner: Flushed) -> None:
        with self._guard:
            self._owners.add(owner)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="series", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        with self._guard:
            owners = list(self._owners)
        with self._flushing:
            for owner in owners:
                try:
                    owner.flush()
                except Exception:  # one owner's fault must not end the thread that flushes all of them
                    _logger.exception("series of %s are flushed later", owner)

    def _run(self) -> None:
        waiting = threading.Event()
        while not waiting.wait(EVERY_S):
            self.flush()


_flusher = _Flusher()


def _begin_anew() -> None:
    global _flusher  # noqa: PLW0603  # a forked child has no such thread
    _flusher = _Flusher()


os.register_at_fork(after_in_child=_begin_anew)


def flush_regularly(owner: Flushed) -> None:
    """Flush an owner's numbers from now on, for as long as somebody holds it."""
    _flusher.add(owner)


def flush_now() -> None:
    """Flush the numbers of all owners, as before a scrape of this process or its end."""
    _flusher.flush()


class Bounded:
    """Values that a label may take in this process. most: after how many a new one is called `other`."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """Return the value, or `other` if too many others came before."""
        if value in self._known:
            return value
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value
