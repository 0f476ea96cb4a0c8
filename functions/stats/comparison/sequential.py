"""Comparisons that are valid at every look: the asymptotic confidence sequence and the normal mixture.

Symbols: N units of both arms together; ρ² sets where the sequence is tightest; t = N·ρ²; S² = Δ²·N/SE².
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when first used
from scipy import special

from toque.functions.stats.comparison.effects import Effect, difference
from toque.functions.stats.moments import as_moments

Alternative = Literal["two-sided", "greater", "less"]


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
