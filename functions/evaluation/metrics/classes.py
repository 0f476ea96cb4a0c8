"""Metrics of probabilities of several classes, as pure functions of labels and predictions.

label: (rows,) class indices; probability: (rows, classes), each row of sum 1. No function returns a number for no rows or
for NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.probabilities import CLIP, ece

_SUM_ATOL = 1e-3  # float32 softmax over a thousand classes
ClassIndices = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]


def class_row_log_loss(label: ClassIndices, probability: Floats) -> npt.NDArray[np.float64]:
    """Log loss of each row, in nats. Raises: EvaluationError for no rows, or labels or probabilities out of range."""
    y, p = _checked(label, probability)
    losses: npt.NDArray[np.float64] = -np.log(np.clip(p[np.arange(len(y)), y], CLIP, 1.0))
    return losses


def class_log_loss(label: ClassIndices, probability: Floats) -> float:
    """Mean log loss, in nats. Raises: EvaluationError as `class_row_log_loss`."""
    return float(class_row_log_loss(label, probability).mean())


def accuracy(label: ClassIndices, probability: Floats) -> float:
    """Share of rows whose likeliest class is the true one. Raises: EvaluationError as `class_row_log_loss`."""
    y, p = _checked(label, probability)
    return float((p.argmax(axis=1) == y).mean())


def top_ece(label: ClassIndices, probability: Floats) -> float:
    """Calibration error of the likeliest class (see `ece`). Raises: EvaluationError as `class_row_log_loss`.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    y, p = _checked(label, probability)
    return ece((p.argmax(axis=1) == y).astype(np.float64), np.clip(p.max(axis=1), 0.0, 1.0))


def class_brier(label: ClassIndices, probability: Floats) -> float:
    """Mean squared distance to the true class, from 0 to 2. Raises: EvaluationError as `class_row_log_loss`."""
    y, p = _checked(label, probability)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean())


CLASS_METRICS: dict[str, Callable[[ClassIndices, Floats], float]] = {
    "log_loss": class_log_loss,
    "accuracy": accuracy,
    "ece": top_ece,
    "brier": class_brier,
}


def _checked(
    label: ClassIndices, probability: Floats
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    y, p = np.asarray(label), np.asarray(probability, dtype=np.float64)
    if p.ndim != 2 or y.shape != p.shape[:1] or y.size == 0:  # noqa: PLR2004 - rows and classes
        raise EvaluationError(
            f"need a label and a row of probabilities for each row and at least one, got {y.shape} and {p.shape}"
        )
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]:
        raise EvaluationError(
            f"labels must be class indices 0 to {p.shape[1] - 1}, found {np.unique(y)[:5].tolist()}"
        )
    bad = ~((p >= 0.0).all(axis=1) & (np.abs(p.sum(axis=1) - 1.0) <= _SUM_ATOL))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"{int(bad.sum())} of {len(p)} rows are no probabilities, first row {first}: {p[first]}"
        )
    return y.astype(np.int64), p
