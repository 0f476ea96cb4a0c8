"""Counts of a load by the second in which each request was due, kept by every process and added up by their parent.

Latencies lie in the bins that HdrHistogram has, 64 for each power of two from microseconds to an hour, each known to 1.6 %, so that
a histogram has one size whatever it holds and two add up by adding counts. On numpy arrays instead of that library: comparing two
runs resamples thousands of them at once.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_SUB_BITS = 6  # 64 bins for each power of two
_SUB = 1 << _SUB_BITS
_LONGEST_US = (1 << 32) - 1  # 71 minutes
BINS = (32 - _SUB_BITS) * _SUB + _SUB
"""Number of bins of every histogram."""
_SHOWN = 120  # characters of a problem


@dataclass(slots=True)
class Window:
    """Counts of one second: requests due, and what became of them. bins: of the good answers' latencies.

    failed: answered wrongly or not at all; dropped: never sent. late_ms: how long after it was due one was sent, at most.
    """

    due: int = 0
    answered: int = 0
    failed: int = 0
    dropped: int = 0
    late_ms: float = 0.0
    bins: Counter[int] = field(default_factory=Counter)

    @property
    def pending(self) -> int:
        """Number of requests that have not ended."""
        return self.due - self.answered - self.failed - self.dropped

    def add(self, other: Window) -> None:
        """Add the counts of another window of the same second."""
        self.due += other.due
        self.answered += other.answered
        self.failed += other.failed
        self.dropped += other.dropped
        self.late_ms = max(self.late_ms, other.late_ms)
        self.bins.update(other.bins)

    def document(self) -> dict[str, Any]:
        """Convert the counts to JSON."""
        return {
            "due": self.due, "answered": self.answered, "failed": self.failed, "dropped": self.dropped,
            "late_ms": round(self.late_ms, 3), "bins": {str(at): count for at, count in sorted(self.bins.items())},
        }  # fmt: skip

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Window:
        """Read a window that `document` wrote."""
        bins = Counter({int(at): count for at, count in document["bins"].items()})
        return cls(**{**document, "bins": bins})


class Windows:
    """Counts of one process or of all, second by second; the warm-up's seconds are negative."""

    def __init__(self) -> None:
        self.by_second: defaultdict[int, Window] = defaultdict(Window)
        self.problems: Counter[str] = Counter()

    def due(self, due_s: float) -> None:
        """Count a request that is due."""
        self.by_second[math.floor(due_s)].due += 1

    def dropped(self, due_s: float) -> None:
        """Count a request that found no free connection in time."""
        self.by_second[math.floor(due_s)].dropped += 1

    def ended(self, due_s: float, sent_s: float, end_s: float, problem: str | None) -> None:
        """Count a request that was sent, by its answer or the problem instead."""
        window = self.by_second[math.floor(due_s)]
        window.late_ms = max(window.late_ms, (sent_s - due_s) * 1e3)
        if problem is None:
            window.answered += 1
            window.bins[bin_of(end_s - due_s)] += 1
        else:
            window.failed += 1
            self.problems[problem[:_SHOWN]] += 1

    def changes(self) -> dict[str, Any]:
        """Give what was counted since the last call, as JSON, and forget it."""
        found = {str(second): window.document() for second, window in self.by_second.items()}
        changed = {"windows": found, "problems": dict(self.problems)}
        self.by_second.clear()
        self.problems.clear()
        return changed

    def add(self, changes: Mapping[str, Any]) -> None:
        """Add what a process counted, as its `changes` gives it."""
        for second, document in changes["windows"].items():
            self.by_second[int(second)].add(Window.of(document))
        self.problems.update(changes["problems"])

    def measured(self, first: float = 0, end: float = math.inf) -> Measured:
        """Sum up the seconds [first, end) of it."""
        counted = [second for second in self.by_second if first <= second < end]
        inside = [self.by_second[second] for second in counted]
        seconds = max(counted) + 1 - max(first, min(counted)) if counted else 0
        return Measured.total(inside, seconds=seconds)

    def packed(self, seconds: int) -> list[Window]:
        """List the windows after the warm-up, each of so many seconds, without gaps."""
        last = max((second for second in self.by_second if second >= 0), default=-1)
        packed = [Window() for _ in range(last // seconds + 1)]
        for second, window in self.by_second.items():
            if second >= 0:
                packed[second // seconds].add(window)
        return packed


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of some seconds of load. counts: histogram of the good answers, from when each was due.

    lost: requests that failed, were dropped, or have not ended.
    """

    due: int
    answered: int
    failed: int
    dropped: int
    seconds: float
    late_ms: float
    counts: Counts

    @classmethod
    def total(cls, windows: Iterable[Window], *, seconds: float) -> Measured:
        """Sum up windows of one run."""
        total = Window()
        for window in windows:
            total.add(window)
        counts = counts_of(total.bins.items()) if total.bins else np.zeros(BINS, dtype=np.int64)
        return cls(
            total.due, total.answered, total.failed, total.dropped, seconds, total.late_ms, counts
        )  # fmt: skip

    @property
    def lost(self) -> int:
        """Number of requests without a good answer."""
        return self.due - self.answered

    @property
    def error_share(self) -> float:
        """Share of the requests without a good answer; NaN without a request."""
        return self.lost / self.due if self.due else math.nan

    @property
    def requests_per_s(self) -> float:
        """Good answers a second; NaN without a second."""
        return self.answered / self.seconds if self.seconds else math.nan

    def latency_ms(self, share: float) -> float:
        """Latency that a share of the requests did not exceed; those without a good answer are slower than any."""
        return quantile_ms(self.counts, share, slower=self.lost)


def median_p99_ms(windows: Sequence[Window]) -> float:
    """Median over windows of each one's p99, which a single stall of the machine does not move; NaN without one."""
    of_each = [Measured.total([window], seconds=1).latency_ms(0.99) for window in windows if window.due]
    return float(np.median(of_each)) if of_each else math.nan


def bin_of(seconds: float) -> int:
    """Find the bin of a latency; one above 71 minutes is in the last."""
    us = min(max(0, int(seconds * 1e6)), _LONGEST_US)
    shift = max(0, us.bit_length() - _SUB_BITS - 1)
    return (shift << _SUB_BITS) + (us >> shift)


def upper_ms(at: int) -> float:
    """Upper end of a bin, in milliseconds."""
    if at < 2 * _SUB:
        return (at + 1) / 1e3
    shift = (at >> _SUB_BITS) - 1
    return ((at - (shift << _SUB_BITS) + 1) << shift) / 1e3


def counts_of(sparse: Mapping[str, int] | Iterable[tuple[int, int]]) -> Counts:
    """Make the counts (BINS,) of a histogram from its bins that are not empty."""
    counts = np.zeros(BINS, dtype=np.int64)
    for at, count in sparse.items() if isinstance(sparse, Mapping) else sparse:
        counts[int(at)] += count
    return counts


def quantile_ms(counts: npt.NDArray[np.integer], share: float, *, slower: float = 0) -> float:
    """Latency that a share of the requests did not exceed: NaN without a request, infinite where it is not in the histogram.

    slower: number of requests beside these that never had an answer, and so count as slower than every other.
    """
    cumulated = np.cumsum(counts)
    total = float(cumulated[-1]) + slower
    if total <= 0:
        return math.nan
    wanted = max(1.0, math.ceil(share * total - 1e-9))
    if wanted > cumulated[-1]:
        return math.inf
    return upper_ms(int(np.searchsorted(cumulated, wanted)))
