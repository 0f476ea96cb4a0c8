"""Comparisons that are valid at every look, and the effects that they take: estimates with standard errors.

Symbols: N units of both arms together; ρ² sets where the sequence is tightest; t = N·ρ²; S² = Δ²·N/SE².
Every estimate is an `Effect`, from moments that pool: `asymptotic_cs(cuped(control, treatment))`.
A side with fewer than two units gives an effect that is not *sufficient*: an answer, from which nothing follows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when first used
from scipy import special

from toque.functions.stats.moments import Floats, as_comoments, as_floats, as_moments

_FEWEST = 2  # units of an arm from which a variance can be estimated
Alternative = Literal["two-sided", "greater", "less"]


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


@dataclass(frozen=True, slots=True)
class AsymptoticCS:
    """Result of one look at a confidence sequence: valid at this and every other look at once, with probability 1 − alpha.

    threshold: of |estimate| / standard error. p: always valid; the least of all looks so far is valid too.
    e_value: two-sided, the e-value; one-sided, 1/p.
    reject: whether zero lies outside (or on the wrong side). sufficient: False where there was too little to judge;
        then the interval is everything and p is 1.
    """

    estimate: float
    standard_error: float
    n: int
    alpha: float
    alternative: Alternative
    threshold: float
    lower: float
    upper: float
    p: float
    e_value: float
    reject: bool
    sufficient: bool


def asymptotic_cs(
    evidence: Any,
    treatment: Any = None,
    *,
    alpha: float = 0.05,
    n_opt: float = 5_000,
    alternative: Alternative = "two-sided",
    burn_in: int = 30,
) -> AsymptoticCS:
    """Test whether an effect is zero, however often one looks.

    evidence: an `Effect`; or one sample (units,) or its `Moments`, whose mean is tested; or, with `treatment`,
        the control's.
    treatment: the treatment's sample or `Moments`; the effect is treatment minus control.
    alpha: chance that it ever rejects an effect of zero. n_opt: N at which the sequence is tightest.
    alternative: "greater" rejects only effects above zero, "less" only those below.
    burn_in: N below which nothing is concluded; the sequence is asymptotic.
    Raises: ValueError if alpha or n_opt is out of range or a value is not finite.
    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory and asymptotic
        confidence sequences, 2021, equations 14 and 21.
    """
    effect = _effect(evidence, treatment)
    if effect.n < max(burn_in, 1) or not effect.sufficient:
        return _undecided(effect, alpha, alternative)
    threshold = asymptotic_threshold(effect.n, alpha=alpha, n_opt=n_opt, alternative=alternative)
    radius = threshold * effect.standard_error
    z = effect.estimate / effect.standard_error
    t = effect.n * _rho2(alpha, n_opt, alternative)
    log_e = _log_e(-z if alternative == "less" else z, t, alternative)
    lower = -math.inf if alternative == "less" else effect.estimate - radius
    upper = math.inf if alternative == "greater" else effect.estimate + radius
    return AsymptoticCS(
        estimate=effect.estimate,
        standard_error=effect.standard_error,
        n=effect.n,
        alpha=alpha,
        alternative=alternative,
        threshold=threshold,
        lower=lower,
        upper=upper,
        p=min(1.0, math.exp(-log_e)),
        e_value=math.exp(min(log_e, 700.0)),
        reject=lower > 0 or upper < 0,
        sufficient=True,
    )


def asymptotic_threshold(
    n: float, *, alpha: float = 0.05, n_opt: float = 5_000, alternative: Alternative = "two-sided"
) -> float:
    """Compute the threshold of |estimate| / standard error after N units, both arms together.

    Raises: ValueError if n, alpha or n_opt is out of range.
    Source: as `asymptotic_cs`.
    """
    if not n > 0:
        raise ValueError(f"a threshold needs n > 0 units, got {n}")
    t = n * _rho2(alpha, n_opt, alternative)
    if alternative == "two-sided":
        log_term = math.log(math.sqrt(t + 1) / alpha)
    else:
        log_term = math.log(1 + math.sqrt(t + 1) / (2 * alpha))
    return math.sqrt(2 * (t + 1) / t * log_term)


def normal_mixture_bound(
    v: npt.ArrayLike,
    *,
    alpha: float = 0.05,
    v_opt: float = 100.0,
    alpha_opt: float | None = None,
    alternative: Alternative = "two-sided",
) -> Any:
    """Compute the bound that a sum of (sub-)Gaussian increments, less their means, never crosses, as a function of its variance.

    v: intrinsic time, the variance so far; a number or an array. v_opt: where the bound is tightest.
    alpha_opt: the level it is tuned at, `alpha` unless given.
    Returns: a float for a number, an array for an array.
    Raises: ValueError if alpha or v_opt is out of range or a v is negative.
    Source: Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon, Time-uniform, nonparametric, nonasymptotic
        confidence sequences, 2021, equation 14 and proposition 6.
    """
    times = np.asarray(v, dtype=np.float64)
    if not (times >= 0).all():
        raise ValueError(f"intrinsic time is a variance and not negative, got {times.min()}")
    rho = 1 / _rho2(alpha if alpha_opt is None else alpha_opt, v_opt, alternative)
    if alternative == "two-sided":
        bound = np.sqrt((times + rho) * np.log((times + rho) / (rho * alpha**2)))
    else:
        bound = np.vectorize(lambda time: _one_sided_mixture(time, rho, alpha), otypes=[np.float64])(times)
    return float(bound) if bound.ndim == 0 else bound


def _effect(evidence: Any, treatment: Any) -> Effect:
    """Convert the arguments to an effect."""
    if treatment is not None:
        return difference(evidence, treatment)
    if isinstance(evidence, Effect):
        if math.isnan(evidence.standard_error):
            raise ValueError(f"the effect's standard error is NaN: {evidence}")
        return evidence
    sample = as_moments(evidence)
    if sample.n < 2:  # noqa: PLR2004 - one value does not vary
        return Effect(math.nan, math.inf, sample.n)
    return Effect(sample.mean, sample.standard_error, sample.n)


def _undecided(effect: Effect, alpha: float, alternative: Alternative) -> AsymptoticCS:
    """Return the look at which nothing is known yet."""
    everything = {"lower": -math.inf, "upper": math.inf, "threshold": math.inf, "p": 1.0, "e_value": 1.0}
    return AsymptoticCS(
        estimate=effect.estimate,
        standard_error=effect.standard_error,
        n=effect.n,
        alpha=alpha,
        alternative=alternative,
        reject=False,
        sufficient=False,
        **everything,
    )


def _rho2(alpha: float, n_opt: float, alternative: Alternative) -> float:
    """Compute the ρ² that makes the sequence tightest at n_opt."""
    if not 0 < alpha < 0.5:  # noqa: PLR2004 - a one-sided test uses 2 alpha
        raise ValueError(f"alpha must lie in (0, 0.5), got {alpha}")
    if not n_opt > 0:
        raise ValueError(f"the size at which a bound is tightest must be positive, got {n_opt}")
    level = alpha if alternative == "two-sided" else 2 * alpha
    return (-2 * math.log(level) + math.log(1 - 2 * math.log(level))) / n_opt


def _log_e(z: float, t: float, alternative: Alternative) -> float:
    """Compute the log of the e-value, the reciprocal of the level at which this z would just be rejected."""
    exponent = z * z * t / (2 * (t + 1))
    if alternative == "two-sided":
        return exponent - math.log(t + 1) / 2
    if z <= 0:
        return 0.0
    log_expm1 = exponent + math.log(-math.expm1(-exponent)) if exponent > 0 else -math.inf
    return max(0.0, math.log(2) + log_expm1 - math.log(t + 1) / 2)


def _one_sided_mixture(v: float, rho: float, alpha: float) -> float:
    """Solve for the sum at which the one-sided mixture reaches 1/alpha."""

    def excess(s: float) -> float:
        scale = math.sqrt(v + rho)
        log_mixture = math.log(4 * rho / (v + rho)) / 2 + s * s / (2 * (v + rho))
        return float(log_mixture + special.log_ndtr(s / scale) + math.log(alpha))

    upper = math.sqrt(v + rho)
    while excess(upper) < 0:
        upper *= 2
    return float(scipy.optimize.brentq(excess, 0.0, upper, xtol=1e-12 * upper))
