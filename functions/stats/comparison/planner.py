"""Planner of comparisons: the units and days that one needs, before it starts, and the bounds of a few planned looks.

Everything scales: with the effect measured in standard errors at the size of a single fixed test, when a sequential
test stops does not depend on the metric. So one simulation of that standard problem answers for every metric.
Group sequential tests share alpha among a few planned looks, at almost the power of a single test.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when first used
from scipy import special

from toque.functions.stats.comparison.sequential import asymptotic_threshold
from toque.functions.stats.moments import Floats

_RUNS = 4_000  # simulated experiments: 1.3 % standard error of the power, the same on every call
_LOOKS = 400  # of a simulated experiment
_LONGEST = 40.0  # times the units of a fixed test
_NODES = 400  # of the integration over the paths that have not stopped
_FAR = 9.0  # standard deviations beyond which nothing is left, where a side has no bound
_Paths = tuple[Floats, Floats]
"""Points (nodes,) on the scale of the sum, and the probability mass there of paths that have not stopped."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Plan of a comparison: units (both arms together) and days that it needs to find an effect.

    n_fixed: of a test that looks once. n_expected, n_worst: of the asymptotic confidence sequence: on average, and to
    have the stated power. n_opt: what to give `asymptotic_cs`.
    """

    effect: float
    alpha: float
    power: float
    n_fixed: int
    n_expected: int
    n_worst: int
    n_opt: int
    days_expected: float
    days_worst: float


def plan_run(
    standard_deviation: float,
    effect: float,
    *,
    units_per_day: float,
    treatment_share: float = 0.5,
    alpha: float = 0.05,
    power: float = 0.8,
) -> RunPlan:
    """Plan a two-sided comparison of means that may be looked at all the time.

    standard_deviation: of the metric, a unit; √(p(1 − p)) for a rate. effect: smallest difference worth finding.
    units_per_day: of both arms together. treatment_share: of those; a tenth needs 2.8 times the units of a half.
    Raises: ValueError if a parameter is out of range.
    Source: simulation of `asymptotic_cs` as Brownian motion with drift; fixed size after Cohen, 1988.
    """
    if not standard_deviation > 0 or not abs(effect) > 0 or not units_per_day > 0:
        raise ValueError(
            "a plan needs a standard deviation, an effect and traffic above 0, "
            f"got {standard_deviation}, {effect} and {units_per_day}"
        )
    fixed = _fixed_units(standard_deviation, effect, treatment_share, alpha, power)
    expected, worst = (fixed * times for times in _standard_run(alpha, power))
    return RunPlan(
        effect=effect,
        alpha=alpha,
        power=power,
        n_fixed=math.ceil(fixed),
        n_expected=math.ceil(expected),
        n_worst=math.ceil(worst),
        n_opt=math.ceil(fixed),
        days_expected=expected / units_per_day,
        days_worst=worst / units_per_day,
    )


def minimum_detectable_effect(
    standard_deviation: float,
    n: float,
    *,
    treatment_share: float = 0.5,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Compute the smallest effect that the confidence sequence finds with this power within n units, both arms together.

    Raises: ValueError if a parameter is out of range.
    """
    if not n > 0 or not standard_deviation > 0:
        raise ValueError(f"need units and a standard deviation above 0, got {n} and {standard_deviation}")
    _, worst = _standard_run(alpha, power)
    return math.sqrt(_fixed_units(standard_deviation, 1.0, treatment_share, alpha, power) * worst / n)


def _fixed_units(sd: float, effect: float, share: float, alpha: float, power: float) -> float:
    if not 0 < share < 1 or not 0 < alpha < power < 1:
        raise ValueError(f"need 0 < share < 1 and 0 < alpha < power < 1, got {share}, {alpha} and {power}")
    return (_drift(alpha, power) * sd / effect) ** 2 / (share * (1 - share))


def _drift(alpha: float, power: float) -> float:
    """Compute the mean of z at the size where a fixed two-sided test has the power."""
    return float(special.ndtri(1 - alpha / 2) + special.ndtri(power))


@functools.cache
def _standard_run(alpha: float, power: float) -> tuple[float, float]:
    """Return mean and worst size, in sizes of the fixed test, at which the confidence sequence stops."""
    times = np.geomspace(0.02, _LONGEST, _LOOKS)
    stops = stopping_times(times, drift=_drift(alpha, power), alpha=alpha)
    worst = float(np.quantile(stops, power))
    return float(np.minimum(stops, worst).mean()), worst


def stopping_times(times: npt.NDArray[np.float64], *, drift: float, alpha: float) -> npt.NDArray[np.float64]:
    """Simulate when the confidence sequence, tightest at 1, first rejects; infinity for never.

    times: (looks,) at which it is looked at, rising. drift: mean of z at time 1. Returns: (runs,), same every call.
    """
    rng = np.random.default_rng(20_130_101)
    steps = np.diff(times, prepend=0.0)
    paths = np.cumsum(rng.standard_normal((_RUNS, len(times))) * np.sqrt(steps) + drift * steps, axis=1)
    thresholds = np.array([asymptotic_threshold(time, alpha=alpha, n_opt=1.0) for time in times])
    crossed = np.abs(paths) / np.sqrt(times) >= thresholds
    return np.where(crossed.any(axis=1), times[crossed.argmax(axis=1)], np.inf)


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
