"""Sequential tests of event counts against one direction: more events than a share or a rate explains, or fewer.

All are mixtures of likelihood ratios with a fixed prior, hence e-values at every look; p is one over them. They take arrays of
counts, so that a simulation asks the function that decides.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]
_NEAR = 5.0  # weight, in events, of the prior around the null share: quick for a moderate excess
_TIMES = np.array(
    [1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0]
)  # alternatives, as multiples of the odds
_PARTS = np.array([0.0, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95])  # alternatives below a rate, as parts of it


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
