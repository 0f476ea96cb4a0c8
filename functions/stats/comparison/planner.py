"""Planner of comparisons: the units and days that one needs, before it starts.

Everything scales: with the effect measured in standard errors at the size of a single fixed test, when a sequential
test stops does not depend on the metric. So one simulation of that standard problem answers for every metric.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from toque.functions.stats.comparison.sequential import asymptotic_threshold

_RUNS = 4_000  # simulated experiments: 1.3 % standard error of the power, the same on every call
_LOOKS = 400
_LONGEST = 40.0  # times the units of a fixed test


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
