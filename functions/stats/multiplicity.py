"""Corrections for multiple testing: which of many p-values to reject."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def benjamini_hochberg(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return q-values (Benjamini–Hochberg): rejecting those at or below alpha keeps the expected share of false rejections within alpha.

    p_values: (tests,), independent or positively dependent. With no true effect at all, the chance of any rejection
        is within alpha too.
    Raises: ValueError if one is not in [0, 1].
    Source: Benjamini and Hochberg, Controlling the false discovery rate, 1995.
    """
    p = np.asarray(p_values, dtype=np.float64).reshape(-1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {p[~((p >= 0) & (p <= 1))][:3].tolist()}")
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return adjusted p-values that bound the chance of any false rejection, under any dependence.

    Raises: ValueError if one is not in [0, 1].
    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    p = np.asarray(p_values, dtype=np.float64).reshape(-1)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values lie in [0, 1], got {p[~((p >= 0) & (p <= 1))][:3].tolist()}")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def k_of_n(flags: Sequence[bool], *, k: int, n: int) -> bool:
    """Say whether at least `k` of the last `n` windows were flagged; with fewer than `k` windows it is no.

    Raises: ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k of n windows needs 1 <= k <= n, got k={k}, n={n}")
    return sum(flags[-n:]) >= k
