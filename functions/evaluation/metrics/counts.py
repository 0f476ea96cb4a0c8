"""Metrics of predicted rates against counts, as pure functions of labels and predictions, both (rows,).

label: integers from 0 on; rate: their mean, not negative. A rate is held above `RATE_FLOOR` before its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.numbers import mae
from toque.functions.stats import LARGEST

Floats = npt.NDArray[np.floating]

RATE_FLOOR = 1e-6
"""Smallest rate that is taken as it is: one event at a rate of nothing costs 26, not infinity."""


def unit_deviance(label: Floats, rate: Floats) -> npt.NDArray[np.float64]:
    """Poisson deviance of each row without checks: twice the log-likelihood lost against a rate that is the label."""
    held = np.maximum(rate, RATE_FLOOR)
    deviance: npt.NDArray[np.float64] = 2.0 * (special.xlogy(label, label / held) - (label - held))
    return deviance


def poisson_deviance(label: Floats, rate: Floats) -> npt.NDArray[np.float64]:
    """Poisson deviance of each row. Raises: EvaluationError for no rows, labels that are no counts, or rates below 0.

    Source: McCullagh and Nelder, Generalized Linear Models, 1989, section 2.3.
    """
    return unit_deviance(*_checked(label, rate))


def deviance(label: Floats, rate: Floats) -> float:
    """Mean Poisson deviance of all rows. Raises: EvaluationError as `poisson_deviance`."""
    return float(poisson_deviance(label, rate).mean())


def calibration_in_the_large(label: Floats, rate: Floats) -> float:
    """Sum of the rates over the sum of the counts: 1 is calibrated, above it rates are too high.

    Raises: EvaluationError as `poisson_deviance`, and if all counts are 0.
    """
    y, mu = _checked(label, rate)
    if not y.sum():
        raise EvaluationError(f"calibration in the large needs an event, got {len(y)} counts of 0")
    return float(mu.sum() / y.sum())


def dispersion(label: Floats, rate: Floats) -> float:
    """Mean squared Pearson residual: 1 where counts vary as Poisson's do, above it they vary more.

    Raises: EvaluationError as `poisson_deviance`.
    Source: McCullagh and Nelder, Generalized Linear Models, 1989, section 4.5.
    """
    y, mu = _checked(label, rate)
    held = np.maximum(mu, RATE_FLOOR)
    return float(np.mean((y - held) ** 2 / held))


COUNT_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "deviance": deviance,
    "mae": mae,
    "calibration": calibration_in_the_large,
    "dispersion": dispersion,
}


def _checked(label: Floats, rate: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, mu = np.asarray(label, dtype=np.float64), np.asarray(rate, dtype=np.float64)
    if y.shape != mu.shape or y.ndim != 1 or y.size == 0:
        raise EvaluationError(f"need as many counts as rates and at least one, got {y.shape} and {mu.shape}")
    strange = ~((y >= 0) & (y == np.floor(y)) & (y <= LARGEST))
    if strange.any():
        raise EvaluationError(
            f"labels must be integers from 0 on, found {np.unique(y[strange])[:5].tolist()}; at most {LARGEST:g}"
        )
    bad = ~((mu >= 0) & (mu <= LARGEST))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"{int(bad.sum())} of {mu.size} rates are no numbers from 0 on, first {mu[first]} in row {first}: "
            "answer with the mean of the count, as by a Poisson objective"
        )
    return y, mu
