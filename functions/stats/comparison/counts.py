"""Sequential tests of event counts and of quantiles, such as a median delay or a 99th percentile of latency.

Those of counts, of sample-ratio mismatch and of more or fewer events than a share or a rate explains, are mixtures of likelihood ratios with a fixed prior, hence e-values at every look; p is one over them. Tests against one
direction take arrays of counts, so that a simulation asks the function that decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when first used
from scipy import special

from toque.functions.stats.moments import Floats, as_floats

_NEAR = 5.0  # weight, in events, of the prior around the null share: quick for a moderate excess
# alternatives above a rate, as multiples of the odds
_TIMES = np.array([1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0])
_PARTS = np.array([0.0, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95])  # alternatives below a rate, as parts of it


@dataclass(frozen=True, slots=True)
class SequentialCounts:
    """Result of one look at a sequential count test.

    p: always valid; log_bayes_factor: against the declared shares.
    """

    counts: tuple[int, ...]
    shares: tuple[float, ...]
    p: float
    log_bayes_factor: float
    alpha: float

    @property
    def reject(self) -> bool:
        """Whether the counts contradict the shares."""
        return self.p <= self.alpha

    @property
    def expected(self) -> tuple[float, ...]:
        """Expected counts under the declared shares."""
        return tuple(sum(self.counts) * share for share in self.shares)


def sequential_counts(
    counts: npt.ArrayLike,
    shares: npt.ArrayLike | None = None,
    *,
    concentration: float = 100.0,
    previous_p: float = 1.0,
    alpha: float = 0.05,
) -> SequentialCounts:
    """Test whether events fall on arms by given shares, however often one looks.

    For a sample-ratio mismatch the events are units and the shares those of the experiment. For errors the events are
    errors and the shares those of the traffic: under the null each error is on an arm with that chance, however the
    error rate moves over time.
    counts: so far, (arms,). shares: (arms,), scaled to sum to 1; equal if left out.
    concentration: of the prior around the shares, in events: large finds small deviations late, small large ones soon.
    previous_p: p of an earlier look; the least so far is kept.
    Raises: ValueError if a count is negative or not whole, or a share is not positive.
    Source: Lindon and Malek, Anytime-valid inference for multinomial count data, 2022.
    """
    observed, theta = _checked(counts, shares)
    prior = concentration * theta
    log_bayes = _log_beta(prior + observed) - _log_beta(prior) - float(observed @ np.log(theta))
    p = min(previous_p, math.exp(-max(log_bayes, 0.0)))
    return SequentialCounts(
        counts=tuple(int(count) for count in observed),
        shares=tuple(theta.tolist()),
        p=p,
        log_bayes_factor=log_bayes,
        alpha=alpha,
    )


def _checked(
    counts: npt.ArrayLike, shares: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    observed = np.asarray(counts, dtype=np.float64)
    whole = ((observed >= 0) & (observed == np.floor(observed))).all()
    if observed.ndim != 1 or len(observed) == 1 or not whole or not len(observed):
        raise ValueError(
            f"counts are whole numbers, one for each of at least two arms, got {observed.tolist()}"
        )
    theta = np.full(len(observed), 1.0) if shares is None else np.asarray(shares, dtype=np.float64)
    if theta.shape != observed.shape or not ((theta > 0) & (theta < np.inf)).all():
        raise ValueError(
            f"shares must be positive, one for each of {len(observed)} arms, got {theta.tolist()}"
        )
    return observed, theta / theta.sum()


def _log_beta(alpha: npt.NDArray[np.float64]) -> float:
    """Compute the log of the multivariate beta function."""
    return float(special.gammaln(alpha).sum() - special.gammaln(alpha.sum()))


def excess_p(events: npt.ArrayLike, others: npt.ArrayLike, share: npt.ArrayLike) -> Floats:
    """Compute the always-valid p-value of more of the events on an arm than its share of the traffic explains.

    events: on the arm; others: on the arm that it is compared with; share: the arm's part of both arms' traffic. Under the
    null each event is on the arm with that chance, however the rate of events moves; a smaller chance gives no more.
    Half of the prior lies around the share, half is uniform above it, which is quick where all events are on one arm.
    Source: Lindon and Malek, Anytime-valid inference for multinomial count data, 2022.
    """
    k, m, theta = (np.asarray(each, dtype=np.float64) for each in (events, others, share))
    null = k * np.log(theta) + m * np.log1p(-theta)
    near = _log_beta_above(k + _NEAR * theta, m + _NEAR * (1 - theta), theta) - _log_beta_above(
        _NEAR * theta, _NEAR * (1 - theta), theta
    )
    wide = _log_beta_above(k + 1, m + 1, theta) - np.log1p(-theta)
    log_e = np.logaddexp(near, wide) - np.log(2) - null
    # Up to its share every alternative is less likely than the null: no excess, and an integral too small to compute.
    return _p(np.where(k <= theta * (k + m), 0.0, log_e))


def rate_above_p(events: npt.ArrayLike, trials: npt.ArrayLike, rate: npt.ArrayLike) -> Floats:
    """Compute the always-valid p-value of more events than trials with a chance of at most `rate` each explain.

    The chances may differ and move, as long as none is above `rate`. rate: in (0, 1).
    Source: Ramdas, Grünwald, Vovk and Shafer, Game-theoretic statistics and safe anytime-valid inference, 2023.
    """
    odds = np.asarray(rate, dtype=np.float64) / (1 - np.asarray(rate, dtype=np.float64))
    higher = odds[..., None] * _TIMES
    return _p(_log_mixture(events, trials, rate, higher / (1 + higher)))


def rate_below_p(events: npt.ArrayLike, trials: npt.ArrayLike, rate: npt.ArrayLike) -> Floats:
    """Compute the always-valid p-value of fewer events than trials with a chance of at least `rate` each explain.

    Source: as `rate_above_p`.
    """
    return _p(_log_mixture(events, trials, rate, np.asarray(rate, dtype=np.float64)[..., None] * _PARTS))


def rate_floor(events: int, trials: int, alpha: float) -> float:
    """Compute a lower bound of a rate of events, valid at every look at level `alpha`; 0 where there is none."""
    if not events:
        return 0.0
    low, high = 0.0, events / trials
    for _ in range(30):
        middle = (low + high) / 2
        rejected = middle > 0 and float(rate_above_p(events, trials, middle)) <= alpha
        low, high = (middle, high) if rejected else (low, middle)
    return low


def _log_mixture(
    events: npt.ArrayLike, trials: npt.ArrayLike, rate: npt.ArrayLike, alternatives: Floats
) -> Floats:
    """Average the likelihood ratios of fixed alternatives, (..., A), against `rate`; returns its logarithm."""
    k, n, null = (np.asarray(each, dtype=np.float64)[..., None] for each in (events, trials, rate))
    ratios = (
        special.xlogy(k, alternatives)
        - special.xlogy(k, null)
        + special.xlog1py(n - k, -alternatives)
        - special.xlog1py(n - k, -null)
    )
    mixed: Floats = special.logsumexp(ratios, axis=-1) - np.log(alternatives.shape[-1])
    return mixed


def _log_beta_above(a: Floats, b: Floats, theta: Floats) -> Floats:
    """Compute the log of the integral of x^(a-1) (1-x)^(b-1) from theta to 1."""
    above = np.maximum(special.betaincc(a, b, theta), 1e-300)
    integral: Floats = special.betaln(a, b) + np.log(above)
    return integral


def _p(log_e: Floats) -> Floats:
    p: Floats = np.exp(-np.maximum(log_e, 0.0))
    return p


@dataclass(frozen=True, slots=True)
class QuantileTest:
    """Result of one look at a sequential quantile test.

    p: always valid. control, treatment: the quantiles themselves.
    """

    q: float
    n_control: int
    n_treatment: int
    control: float
    treatment: float
    p: float
    alpha: float

    @property
    def difference(self) -> float:
        """Quantile of the treatment minus that of the control."""
        return self.treatment - self.control

    @property
    def reject(self) -> bool:
        """Whether the test rejects equal quantiles."""
        return self.p <= self.alpha


def quantile_test(
    control: npt.ArrayLike,
    treatment: npt.ArrayLike,
    *,
    q: float = 0.5,
    alpha: float = 0.05,
    t_opt: float = 100.0,
    alpha_opt: float = 0.05,
) -> QuantileTest:
    """Test whether two arms have the same q-quantile, from all their values so far, in any order.

    control, treatment: (n,) each, independent values. An arm without a value gives p = 1.
    q: in (0, 1). t_opt, alpha_opt: number of values and level at which the test is sharpest.
    Raises: ValueError if q is out of range or a value is not finite.
    Source: Howard and Ramdas, Sequential estimation of quantiles with applications to A/B testing and best-arm
        identification, 2022, theorem 5.
    """
    if not 0 < q < 1:
        raise ValueError(f"q must lie in (0, 1), got {q}")
    arms = [
        np.sort(as_floats(values, name)) for values, name in ((control, "control"), (treatment, "treatment"))
    ]
    prior = _prior(q, t_opt, alpha_opt)
    quantiles = [
        float(arm[min(math.floor(len(arm) * q), len(arm) - 1)]) if len(arm) else math.nan for arm in arms
    ]
    p = 1.0
    if min(len(arm) for arm in arms):
        places = np.unique(np.concatenate(arms))
        log_e = float(np.min(sum(_log_e_at(places, arm, q, prior) for arm in arms)))
        p = min(1.0, math.exp(-log_e))
    return QuantileTest(q, len(arms[0]), len(arms[1]), quantiles[0], quantiles[1], p, alpha)


def counted_quantile_p(
    control: npt.ArrayLike,
    treatment: npt.ArrayLike,
    *,
    q: float = 0.5,
    t_opt: float = 100.0,
    alpha_opt: float = 0.05,
) -> float:
    """Compute the p-value of `quantile_test` from values that were counted in bins, without their order within a bin.

    control, treatment: counts in the same (bins,), of increasing values. Each bin is given the evidence of the place in it
    that suits both arms best, so the test errs towards no difference. An arm without a value gives p = 1.
    Raises: ValueError if q is out of range or the bins differ.
    Source: as `quantile_test`.
    """
    if not 0 < q < 1:
        raise ValueError(f"q must lie in (0, 1), got {q}")
    arms = [np.asarray(counts, dtype=np.float64) for counts in (control, treatment)]
    if arms[0].ndim != 1 or arms[0].shape != arms[1].shape:
        raise ValueError(f"both arms need counts in the same bins, got shapes {[arm.shape for arm in arms]}")
    if not min(arm.sum() for arm in arms):
        return 1.0
    prior = _prior(q, t_opt, alpha_opt)
    total = np.zeros(arms[0].shape)
    for arm in arms:
        n = int(arm.sum())
        up_to = np.cumsum(arm)
        suits = np.clip(_best_count(n, q, prior), up_to - arm, up_to)
        total += _log_e(suits, n, q, prior)
    return min(1.0, math.exp(-float(total.min())))


def _prior(q: float, t_opt: float, alpha_opt: float) -> tuple[float, float]:
    """Compute the beta prior of the share below, tuned to be sharpest after t_opt values."""
    log_level = -2 * math.log(alpha_opt)
    rho = t_opt * q * (1 - q) / (log_level + math.log(1 + log_level))
    r = max(rho - q * (1 - q), 1e-3 * q * (1 - q))
    return r / q, r / (1 - q)


def _log_e(below: npt.ArrayLike, n: int, q: float, prior: tuple[float, float]) -> Floats:
    """Compute the log e-value against "a share q lies below" where `below` of n values do."""
    k = np.asarray(below, dtype=np.float64)
    above_prior, below_prior = prior
    log_beta = special.betaln(above_prior + n - k, below_prior + k) - special.betaln(above_prior, below_prior)
    result: Floats = log_beta - k * math.log(q) - (n - k) * math.log1p(-q)
    return result


def _log_e_at(places: Floats, arm: Floats, q: float, prior: tuple[float, float]) -> Floats:
    """Compute the log e-value of one arm against each candidate for its q-quantile."""
    n = len(arm)
    suits = _best_count(n, q, prior)
    low = arm[max(math.ceil(suits), 1) - 1]
    high = arm[min(math.floor(suits), n - 1)]
    at_most = np.searchsorted(arm, places, side="right")
    less = np.searchsorted(arm, places, side="left")
    below = np.where(places < low, at_most, np.where(places > high, less, suits))
    return _log_e(below, n, q, prior)


def _best_count(n: int, q: float, prior: tuple[float, float]) -> float:
    """Find the count below (not necessarily whole) that gives the least evidence against q."""
    above_prior, below_prior = prior
    tilt = math.log1p(-q) - math.log(q)

    def slope(k: float) -> float:
        return float(special.digamma(below_prior + k) - special.digamma(above_prior + n - k) + tilt)

    if slope(0.0) >= 0:
        return 0.0
    if slope(float(n)) <= 0:
        return float(n)
    return float(scipy.optimize.brentq(slope, 0.0, float(n), xtol=1e-12 * n))
