"""Metrics of predicted numbers, as pure functions of labels and predictions, both (rows,) and within `LARGEST`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.stats import LARGEST

Floats = npt.NDArray[np.floating]


def squared_error(label: Floats, value: Floats) -> npt.NDArray[np.float64]:
    """Squared error of each row. Raises: EvaluationError if there are no rows, or a value is not within `LARGEST`."""
    y, v = _checked(label, value)
    errors: npt.NDArray[np.float64] = (v - y) ** 2
    return errors


def mse(label: Floats, value: Floats) -> float:
    """Mean squared error, in the label's unit squared. Raises: EvaluationError as `squared_error`."""
    return float(squared_error(label, value).mean())


def rmse(label: Floats, value: Floats) -> float:
    """Root mean squared error, in the label's unit. Raises: EvaluationError as `squared_error`."""
    return float(np.sqrt(squared_error(label, value).mean()))


def mae(label: Floats, value: Floats) -> float:
    """Mean absolute error, in the label's unit. Raises: EvaluationError as `squared_error`."""
    y, v = _checked(label, value)
    return float(np.mean(np.abs(v - y)))


def r2(label: Floats, value: Floats) -> float:
    """Share of the labels' variance that is explained: 1 is all, 0 what their mean explains.

    Raises: EvaluationError as `squared_error`, and if all labels are equal.
    """
    y, v = _checked(label, value)
    spread = float(np.mean((y - y.mean()) ** 2))
    if spread == 0.0:
        raise EvaluationError(f"r2 needs labels that differ, got {len(y)} rows of {y[0]}")
    return 1.0 - float(np.mean((v - y) ** 2)) / spread


NUMBER_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "rmse": rmse,
    "mae": mae,
    "r2": r2,
    "mse": mse,
}


def _checked(label: Floats, value: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, v = np.asarray(label, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if y.shape != v.shape or y.ndim != 1 or y.size == 0:
        raise EvaluationError(f"need as many labels as answers and at least one, got {y.shape} and {v.shape}")
    bad = ~((np.abs(y) <= LARGEST) & (np.abs(v) <= LARGEST))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"{int(bad.sum())} of {y.size} rows are no numbers, first {y[first]}, {v[first]} in row {first}"
        )
    return y, v
