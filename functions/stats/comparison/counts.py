"""Sequential tests of event counts: sample-ratio mismatch, and more or fewer events than a share or a rate explains.

All are mixtures of likelihood ratios with a fixed prior, hence e-values at every look; p is one over them. Tests against one
direction take arrays of counts, so that a simulation asks the function that decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from toque.functions.stats.moments import Floats

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
