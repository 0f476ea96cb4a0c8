"""Group sequential tests: a few planned looks share alpha, at almost the power of a single test."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are loaded when first used
from scipy import special

from toque.functions.stats.moments import Floats

_NODES = 400  # of the integration over the paths that have not stopped
_FAR = 9.0  # standard deviations beyond which nothing is left, where a side has no bound


@dataclass(frozen=True, slots=True)
class GroupSequentialBounds:
    """Bounds of z at each planned look; |z| at or beyond one rejects. Iterates and indexes as its bounds.

    fractions: share of the planned units at each look. spent: alpha spent up to it.
    """

    bounds: tuple[float, ...]
    fractions: tuple[float, ...]
    spent: tuple[float, ...]
    alpha: float
    sides: int

    def reject(self, look: int, z: float) -> bool:
        """Say whether `z` at this look (the first is 0) rejects. Raises: IndexError beyond the last look."""
        return (abs(z) if self.sides == 2 else z) >= self.bounds[look]  # noqa: PLR2004 - both sides

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, look: int) -> float:
        return self.bounds[look]

    def __iter__(self) -> Iterator[float]:
        return iter(self.bounds)


def group_sequential_bounds(
    looks: int | Sequence[float], *, alpha: float = 0.05, rho: float = 2.0, sides: int = 2
) -> GroupSequentialBounds:
    """Compute the bounds of planned looks, spending alpha·t^rho by the time a share t of the units is in.

    looks: how many, evenly spaced; or the shares t of the planned units at which they fall, rising, at most 1.
    rho: 1 spends evenly, 3 is close to O'Brien and Fleming. sides: 2, or 1 for large values only.
    Raises: ValueError if a parameter is out of range.
    Source: Lan and DeMets, Discrete sequential boundaries for clinical trials, 1983; Kim and DeMets 1987 (power
        family); Armitage, McPherson and Rowe 1969 (the integral over the paths that go on).
    """
    fractions = (
        [n / looks for n in range(1, looks + 1)] if isinstance(looks, int) else [float(t) for t in looks]
    )
    if not fractions or not all(
        a < b for a, b in zip([0.0, *fractions], [*fractions, 1.0 + 1e-9], strict=True)
    ):
        raise ValueError(f"looks fall at rising shares of the units in (0, 1], got {fractions}")
    if not 0 < alpha < 1 or not rho > 0 or sides not in {1, 2}:
        raise ValueError(f"need 0 < alpha < 1, rho > 0 and sides 1 or 2, got {alpha}, {rho} and {sides}")
    spent = [alpha * t**rho for t in fractions]
    bounds, paths, before = [], None, (0.0, 0.0)
    for t, total in zip(fractions, spent, strict=True):
        step = math.sqrt(t - before[0])
        bound = _bound(paths, step, t, total - before[1], sides)
        bounds.append(bound)
        paths = _going_on(paths, step, t, bound, sides)
        before = (t, total)
    return GroupSequentialBounds(tuple(bounds), tuple(fractions), tuple(spent), alpha, sides)


_Paths = tuple[Floats, Floats]
"""Points (nodes,) on the scale of the sum, and the probability mass there of paths that have not stopped."""


def _bound(paths: _Paths | None, step: float, t: float, spend: float, sides: int) -> float:
    """Find the bound of z that stops just `spend` of the paths at this look."""

    def excess(z: float) -> float:
        return _stopping(paths, step, z * math.sqrt(t), sides) - spend

    return float(scipy.optimize.brentq(excess, 0.0 if sides == 2 else -_FAR, 2 * _FAR, xtol=1e-10))  # noqa: PLR2004 - both


def _stopping(paths: _Paths | None, step: float, edge: float, sides: int) -> float:
    """Compute the probability that a path goes beyond the edge at this look, and had not stopped before."""
    places, masses = (np.zeros(1), np.ones(1)) if paths is None else paths
    beyond = special.ndtr((places - edge) / step)
    if sides == 2:  # noqa: PLR2004 - both sides
        beyond = beyond + special.ndtr((-edge - places) / step)
    return float(masses @ beyond)


def _going_on(paths: _Paths | None, step: float, t: float, bound: float, sides: int) -> _Paths:
    """Advance the paths by one look and keep those within the bound, on Gauss–Legendre nodes."""
    high = bound * math.sqrt(t)
    low = -high if sides == 2 else -_FAR * math.sqrt(t)  # noqa: PLR2004 - both sides
    nodes, weights = special.roots_legendre(max(_NODES, math.ceil(12 * (high - low) / step)))
    places = low + (nodes + 1) / 2 * (high - low)
    starts, masses = (np.zeros(1), np.ones(1)) if paths is None else paths
    density = (
        np.exp(-np.square((places[:, None] - starts) / step) / 2) @ masses / (step * math.sqrt(2 * math.pi))
    )
    return places, density * weights / 2 * (high - low)
