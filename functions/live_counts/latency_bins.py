"""Bins of latency: eight to a doubling, from 8 µs to 131 s, so that a bin is 9 % wide and tallies add exactly."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

PER_DOUBLING = 8
_LOWEST = -7 * PER_DOUBLING  # 2^-7 ms
BINS = 24 * PER_DOUBLING


def bin_of(ms: float) -> int:
    """Return the bin of a latency; those beyond the ends, and NaN, count in the outermost."""
    if not ms > 0.0:
        return 0 if ms <= 0.0 else BINS - 1
    if ms == math.inf:
        return BINS - 1
    return min(max(math.floor(math.log2(ms) * PER_DOUBLING) - _LOWEST, 0), BINS - 1)


def lower_edge_ms(index: int) -> float:
    """Return the lower edge of a bin."""
    edge: float = 2.0 ** ((index + _LOWEST) / PER_DOUBLING)
    return edge


def quantile_ms(counts: npt.NDArray[np.int64], q: float) -> float:
    """Return the q-quantile of binned latencies, as the middle of its bin; NaN without a value."""
    total = int(counts.sum())
    if not total:
        return math.nan
    index = int(np.searchsorted(np.cumsum(counts), math.floor(total * q), side="right"))
    middle: float = lower_edge_ms(min(index, BINS - 1)) * 2.0 ** (0.5 / PER_DOUBLING)
    return middle


def slower(counts: npt.NDArray[np.int64], factor: float) -> npt.NDArray[np.int64]:
    """Return the bins of latencies that are `factor` times as long, rounded down to whole bins; factor: 1 or more."""
    by = math.floor(math.log2(factor) * PER_DOUBLING + 1e-9)
    if not by:
        return counts
    moved = np.zeros_like(counts)
    moved[by:] = counts[:-by]
    moved[-1] += counts[-by:].sum()
    return moved
