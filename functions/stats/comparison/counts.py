"""Sequential tests of counts: sample-ratio mismatch, and excess errors of an arm."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special


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
