"""Effects of a treatment: estimates with standard errors, from moments that pool.

Every function returns an `Effect`, which any always-valid test takes: `asymptotic_cs(cuped(control, treatment))`.
A side with fewer than two units gives an effect that is not *sufficient*: an answer, from which nothing follows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from toque.functions.stats.moments import Floats, as_comoments, as_floats, as_moments

_FEWEST = 2  # units of an arm from which a variance can be estimated


@dataclass(frozen=True, slots=True)
class Effect:
    """Effect of a treatment: an estimate, its standard error and the number of units behind it, both arms together."""

    estimate: float
    standard_error: float
    n: int

    @property
    def sufficient(self) -> bool:
        """Whether the estimate is a number, and its error finite and not zero."""
        return math.isfinite(self.estimate) and 0 < self.standard_error < math.inf


@dataclass(frozen=True, slots=True)
class CupedEffect(Effect):
    """Effect adjusted by a covariate. variance_ratio: variance left of the unadjusted one, 1 − r²."""

    theta: float
    variance_ratio: float


def difference(control: Any, treatment: Any) -> Effect:
    """Estimate the difference of means, treatment minus control, with unequal variances.

    control, treatment: `Moments`, or samples (units,).
    Raises: ValueError if a value is not finite.
    """
    c, t = as_moments(control), as_moments(treatment)
    if min(c.n, t.n) < _FEWEST:
        return _nothing(c.n + t.n)
    return Effect(t.mean - c.mean, math.hypot(c.standard_error, t.standard_error), c.n + t.n)


def relative_lift(control: Any, treatment: Any) -> Effect:
    """Estimate the relative difference, treatment mean over control mean minus one, by the delta method.

    control, treatment: `Moments`, or samples (units,).
    Raises: ValueError if a value is not finite, or the control's mean is zero.
    Source: Deng, Knoblich and Lu, Applying the delta method in metric analytics, 2018.
    """
    c, t = as_moments(control), as_moments(treatment)
    if min(c.n, t.n) < _FEWEST:
        return _nothing(c.n + t.n)
    if c.mean == 0:
        raise ValueError(
            "relative lift divides by the control's mean, which is 0; use the absolute difference"
        )
    error = math.hypot(t.standard_error, t.mean / c.mean * c.standard_error) / abs(c.mean)
    return Effect(t.mean / c.mean - 1, error, c.n + t.n)


def ratio(numerator: Any, denominator: Any = None) -> Effect:
    """Estimate a ratio of means over units, Σy / Σx, by the delta method: Var(R) = Var(y − R·x) / (n·x̄²).

    numerator, denominator: (units,) each; or `CoMoments` of (y, x) alone.
    Raises: ValueError if a value is not finite, or the denominators sum to zero.
    Source: Deng, Knoblich and Lu, Applying the delta method in metric analytics, 2018.
    """
    pairs = as_comoments(numerator if denominator is None else (numerator, denominator))
    if pairs.n < _FEWEST:
        return _nothing(pairs.n)
    if pairs.x.mean == 0:
        raise ValueError(f"the denominators of {pairs.n} units sum to 0; a ratio over them has no value")
    value = pairs.y.mean / pairs.x.mean
    return Effect(value, pairs.combined(1.0, -value).standard_error / abs(pairs.x.mean), pairs.n)


def ratio_effect(control: Any, treatment: Any) -> Effect:
    """Estimate the difference of two ratios of means (clicks a view, late minutes a flight), units being the sample.

    control, treatment: `CoMoments` of (numerator, denominator), or a pair of arrays (units,) each.
    Raises: ValueError if a value is not finite, or the denominators of an arm sum to zero.
    Source: Deng, Knoblich and Lu, Applying the delta method in metric analytics, 2018.
    """
    arms = [as_comoments(arm) for arm in (control, treatment)]
    if min(arm.n for arm in arms) < _FEWEST:
        return _nothing(sum(arm.n for arm in arms))
    c, t = (ratio(arm) for arm in arms)
    return Effect(t.estimate - c.estimate, math.hypot(c.standard_error, t.standard_error), c.n + t.n)


def cuped(
    control: Any,
    treatment: Any,
    *,
    covariate_until: datetime | None = None,
    exposed_from: datetime | None = None,
) -> CupedEffect:
    """Estimate the difference of means, adjusted by a covariate from before the experiment.

    control, treatment: `CoMoments` of (outcome, covariate), or a pair of arrays (units,) each.
    covariate_until, exposed_from: the last moment that the covariate saw, and the first exposure of any unit. Give
        both and a covariate that the treatment may have touched is refused; without them the caller vouches for it.
    Raises: ValueError if the covariate was measured after exposure, or a value is not finite.
    Source: Deng, Xu, Kohavi and Walker, Improving the sensitivity of online controlled experiments, 2013.
    """
    _refuse_late(covariate_until, exposed_from)
    c, t = as_comoments(control), as_comoments(treatment)
    if min(c.n, t.n) < _FEWEST:
        return CupedEffect(math.nan, math.inf, c.n + t.n, theta=math.nan, variance_ratio=math.nan)
    spread = c.x.m2 + t.x.m2
    theta = (c.cross + t.cross) / spread if spread else 0.0
    adjusted = difference(c.combined(1.0, -theta), t.combined(1.0, -theta))
    raw = difference(c.y, t.y)
    left = (adjusted.standard_error / raw.standard_error) ** 2 if raw.standard_error else 1.0
    return CupedEffect(
        adjusted.estimate, adjusted.standard_error, adjusted.n, theta=theta, variance_ratio=left
    )


def stratified_effect(strata: Sequence[tuple[Any, Any]]) -> Effect:
    """Estimate the difference of means from periods with different splits, compared within each and weighted by its units.

    A ramp that is pooled instead compares the treatment's later users with the control's earlier ones.
    strata: (control, treatment) of each day or stage, `Moments` or samples. One in which an arm has fewer than two
        units says nothing about the effect and is left out.
    Raises: ValueError if a value is not finite.
    Source: Cochran, The planning of observational studies, 1965 (post-stratification).
    """
    arms = [(as_moments(c), as_moments(t)) for c, t in strata]
    usable = [(c, t) for c, t in arms if min(c.n, t.n) >= _FEWEST]
    n = sum(c.n + t.n for c, t in usable)
    if not n:
        return _nothing(sum(c.n + t.n for c, t in arms))
    parts = [(difference(c, t), (c.n + t.n) / n) for c, t in usable]
    estimate = sum(weight * part.estimate for part, weight in parts)
    return Effect(estimate, math.hypot(*(weight * part.standard_error for part, weight in parts)), n)


def winsorize(values: npt.ArrayLike, *, lower: float = -math.inf, upper: float = math.inf) -> Floats:
    """Clip values to limits fixed before the data was seen, which bounds the effect of one outlier.

    Raises: ValueError if lower > upper or a value is NaN.
    Source: Tukey, The future of data analysis, 1962.
    """
    if lower > upper:
        raise ValueError(f"winsorize needs lower <= upper, got {lower} and {upper}")
    array = np.asarray(values, dtype=np.float64)
    return as_floats(np.clip(array, lower, upper))


def block_means(values: npt.ArrayLike, *, size: int) -> Floats:
    """Compute means of consecutive blocks, for values that depend on those before them; a last part block is left out.

    Blocks several times as long as the dependence lasts are nearly independent, and may be tested where the values
    themselves may not: autocorrelated latencies otherwise fail a large share of comparisons of equals.
    values: (n,), in the order of time. size: values in a block. Returns: (n // size,).
    Raises: ValueError if size < 1 or a value is not finite.
    Source: Law and Carson, A sequential procedure for determining the length of a steady-state simulation, 1979.
    """
    if size < 1:
        raise ValueError(f"a block needs a size of at least 1, got {size}")
    array = as_floats(values)
    whole = len(array) // size
    means: Floats = array[: whole * size].reshape(whole, size).mean(axis=1)
    return means


def _nothing(n: int) -> Effect:
    return Effect(math.nan, math.inf, n)


def _refuse_late(covariate_until: datetime | None, exposed_from: datetime | None) -> None:
    if (covariate_until is None) != (exposed_from is None):
        raise ValueError("give both covariate_until and exposed_from, or neither")
    if covariate_until is not None and exposed_from is not None and covariate_until > exposed_from:
        raise ValueError(
            f"the covariate was measured until {covariate_until}, after exposure began at {exposed_from}: the treatment "
            "may have changed it; use what was known before"
        )
