"""Sequential test of a quantile (median delay, 99th percentile of latency) in two arms, valid at every look."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when first used
from scipy import special

from toque.functions.stats.moments import Floats, as_floats


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
    quantiles = [_quantile(arm, q) for arm in arms]
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


def _quantile(ordered: Floats, q: float) -> float:
    """Return the value that a share q lies at or below, NaN for no value."""
    if not len(ordered):
        return math.nan
    return float(ordered[min(math.floor(len(ordered) * q), len(ordered) - 1)])
