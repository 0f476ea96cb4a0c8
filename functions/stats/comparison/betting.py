"""Betting confidence sequences without approximation: for the mean of bounded values, and of paired differences.

For every candidate mean m a gambler bets that values lie above m, and another that they lie below. If m is the mean
neither can expect to gain, so an m against which one has multiplied the stake by 1/alpha is out.
To the interval of paired differences, pairs without a difference cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from toque.functions.stats.moments import Floats, as_floats

_BLOCK = 256  # values taken at a time: a block of them times the grid stays in the cache
_CAUTION = 0.5  # a bet risks at most this share of the capital
_BETS: Final[Floats] = ((np.arange(48) + 0.5) / 48) ** 2
"""Shares of the capital that are bet, small ones denser, for small differences."""
_HALVINGS: Final = 20


@dataclass(frozen=True, slots=True, eq=False)
class BettingCS:
    """Confidence sequence after the values so far; `update(values)` continues it, in batches of any size.

    lower, upper: interval for the mean, never wider than at any earlier look. Where no candidate is left (the values
        did not come from one mean, or a chance of alpha came true) both are NaN.
    candidates, capital, best, sums: the state of the bets, in units of the bounds: candidates (grid,) for the mean,
        log capital (2, grid) of betting on more and on less, the log of the most that either ever had (grid,), and the
        sums of the values and of their squared distances from the mean before them.
    """

    alpha: float
    bounds: tuple[float, float]
    n: int
    mean: float
    lower: float
    upper: float
    candidates: Floats
    capital: Floats
    best: Floats
    sums: tuple[float, float]

    @property
    def empty(self) -> bool:
        """Whether every candidate mean is rejected."""
        return math.isnan(self.lower) and self.n > 0

    def p(self, mean: float) -> float:
        """Always-valid p-value of a mean: of the grid's candidate next to it. Raises: ValueError out of bounds."""
        low, high = self.bounds
        if not low <= mean <= high:
            raise ValueError(f"the mean lies within {self.bounds}, got {mean}")
        at = int(np.argmin(np.abs(self.candidates - (mean - low) / (high - low))))
        return float(min(1.0, math.exp(-self.best[at])))

    def update(self, values: npt.ArrayLike) -> BettingCS:
        """Return the sequence after these values. Raises: ValueError if one is not finite or out of bounds."""
        low, high = self.bounds
        array = as_floats(values)
        if len(array) and not low <= array.min() <= array.max() <= high:
            raise ValueError(f"values must lie within {self.bounds}, got {array.min()} to {array.max()}")
        state: BettingCS = self
        for start in range(0, len(array), _BLOCK):
            state = _after(state, (array[start : start + _BLOCK] - low) / (high - low))
        return _with_interval(state)


def betting_cs(
    values: npt.ArrayLike = (),
    *,
    alpha: float = 0.05,
    bounds: tuple[float, float] = (0.0, 1.0),
    grid: int = 1_000,
) -> BettingCS:
    """Confidence sequence for the mean of independent (or merely conditionally mean-stationary) bounded values.

    values: (n,), in the order in which they came. bounds: the least and greatest possible value.
    grid: steps between candidates for the mean.
    Raises: ValueError if a value is not finite or out of bounds, or a parameter out of range.
    Source: Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2023 (hedged capital,
        predictable plug-in bets, theorem 3).
    """
    if not 0 < alpha < 1 or not bounds[0] < bounds[1] or grid < 2:  # noqa: PLR2004 - two steps have a middle
        raise ValueError(
            f"need 0 < alpha < 1, bounds in order and grid >= 2, got {alpha}, {bounds} and {grid}"
        )
    start = BettingCS(
        alpha=alpha,
        bounds=bounds,
        n=0,
        mean=math.nan,
        lower=bounds[0],
        upper=bounds[1],
        candidates=np.linspace(0.0, 1.0, grid + 1),
        capital=np.zeros((2, grid + 1)),
        best=np.full(grid + 1, -math.log(2)),
        sums=(0.0, 0.0),
    )
    return start.update(values)


def _bets(x: Floats, n: int, sums: tuple[float, float], alpha: float) -> tuple[Floats, tuple[float, float]]:
    """Compute the size of the bet on each value, from those before it alone, and the sums after the block.

    One made-up value of mean 1/2 and variance 1/4 stands before the first.
    """
    t = n + np.arange(1, len(x) + 1)
    totals = np.cumsum(np.concatenate([[sums[0]], x]))[1:]
    centre = (0.5 + totals) / (t + 1)
    squares = np.cumsum(np.concatenate([[sums[1]], np.square(x - centre)]))
    variance = (0.25 + squares[:-1]) / t
    bets = np.sqrt(2 * math.log(1 / alpha) / (t * np.log1p(t) * variance))
    return bets, (float(totals[-1]), float(squares[-1]))


def _after(state: BettingCS, x: Floats) -> BettingCS:
    """Let both gamblers bet on a block of values in [0, 1]."""
    bets, sums = _bets(x, state.n, state.sums, state.alpha / 2)
    with np.errstate(divide="ignore"):
        limits = _CAUTION / np.stack([state.candidates, 1 - state.candidates])  # [2, grid]
    gain = np.minimum(bets[:, None, None], limits) * np.array([[1.0], [-1.0]])
    change = np.log1p(gain * (x[:, None, None] - state.candidates))  # [values, 2, grid]
    paths = np.cumsum(np.concatenate([state.capital[None], change]), axis=0)[1:]
    best = np.maximum(state.best, paths.max(axis=(0, 1)) - math.log(2))
    return replace(state, n=state.n + len(x), capital=paths[-1], best=best, sums=sums)


def _with_interval(state: BettingCS) -> BettingCS:
    low, high = state.bounds
    if not state.n:
        return state
    mean = low + (high - low) * state.sums[0] / state.n
    left = np.flatnonzero(state.best < math.log(1 / state.alpha))
    if not len(left):
        return replace(state, mean=mean, lower=math.nan, upper=math.nan)
    step = state.candidates[1]  # out to the candidates just beyond, which are known to be out
    ends = (
        max(0.0, float(state.candidates[left[0]] - step)),
        min(1.0, float(state.candidates[left[-1]] + step)),
    )
    return replace(state, mean=mean, lower=low + (high - low) * ends[0], upper=low + (high - low) * ends[1])


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
