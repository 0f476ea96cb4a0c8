"""Always-valid interval for the mean of paired differences, to which pairs without a difference cost nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from toque.functions.stats.moments import Floats, as_floats

__all__ = ["PairedCS", "paired_cs"]

_BETS: Final[Floats] = ((np.arange(48) + 0.5) / 48) ** 2
"""Shares of the capital that are bet, small ones denser, for small differences."""
_HALVINGS: Final = 20


@dataclass(frozen=True, slots=True)
class PairedCS:
    """Mean of n paired differences and its interval. alpha: chance that it ever misses, at each end of the interval."""

    n: int
    mean: float
    lower: float
    upper: float
    alpha: float


def paired_cs(differences: npt.ArrayLike, *, alpha: float = 0.05) -> PairedCS:
    """Confidence sequence for the mean of independent differences of at most 1, in the order in which they came.

    differences: (n,), each from -1 to 1, such as one version's score of a row minus another's. A gambler bets against every
    mean, all shares of the capital at once; one that he earned 1/alpha by is out, whenever that was. Against a mean of 0 a
    difference of 0 neither costs nor earns.
    Raises: ValueError for no differences, one that is out of bounds, or an alpha that is.
    Source: Orabona and Jun, Tight concentrations and confidence sequences from the regret of universal portfolio, 2024.
    """
    gaps = as_floats(differences)
    if not 0 < alpha < 1 or not len(gaps) or not -1 <= gaps.min() <= gaps.max() <= 1:
        raise ValueError(
            f"need 0 < alpha < 1 and differences from -1 to 1, got {alpha} and {len(gaps)} values"
            + (f" from {gaps.min()} to {gaps.max()}" if len(gaps) else "")
        )
    return PairedCS(
        n=len(gaps),
        mean=float(gaps.mean()),
        lower=-_upper(-gaps, alpha),
        upper=_upper(gaps, alpha),
        alpha=alpha,
    )


def _upper(gaps: Floats, alpha: float) -> float:
    """Greatest mean that is not out; what a bet on less earns grows with the mean that it is against."""
    return _greatest(lambda mean: _most_earned(gaps, mean) < math.log(1 / alpha))


def _most_earned(gaps: Floats, mean: float) -> float:
    """Log of the most that bets on less than a mean ever earned, on average over the bets."""
    earned = np.cumsum(np.log1p(-np.outer((gaps - mean) / (1 - mean), _BETS)), axis=0)  # [n, bets]
    most = earned.max(axis=1, keepdims=True)
    return float((most[:, 0] + np.log(np.exp(earned - most).mean(axis=1))).max())


def _greatest(is_possible: Callable[[float], bool]) -> float:
    low, high = -1.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_possible(middle) else (low, middle)
    return high
