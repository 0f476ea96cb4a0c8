"""Histogram of latencies over a high dynamic range: microseconds to an hour, each known to 1.6 %.

Bins as HdrHistogram lays them out, 64 for each power of two, so that a histogram has one size whatever it holds and two add up
by adding counts. On numpy arrays instead of that library: comparing two runs resamples thousands of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "Counts", "bin_of", "counts_of", "quantile_ms", "upper_ms"]

Counts = npt.NDArray[np.int64]

_SUB_BITS = 6  # 64 bins for each power of two
_SUB = 1 << _SUB_BITS
_LONGEST_US = (1 << 32) - 1  # 71 minutes
BINS = (32 - _SUB_BITS) * _SUB + _SUB
"""Number of bins of every histogram."""


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
