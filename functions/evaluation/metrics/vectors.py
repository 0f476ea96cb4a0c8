"""Distances of predicted vectors from label vectors, as pure functions of both, (rows, size) each and finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from toque.functions.evaluation.errors import EvaluationError

Floats = npt.NDArray[np.floating]
_SHORTEST = 1e-12  # a vector of nothing has no direction: it is as far from any other as an unrelated one


def cosine_of(label: Floats, vector: Floats) -> npt.NDArray[np.float64]:
    """Half of 1 − cosine of each pair of rows, without checks: 0 of one direction, one half unrelated, 1 opposite."""
    lengths = np.linalg.norm(label, axis=1) * np.linalg.norm(vector, axis=1)
    cosine = np.where(lengths > _SHORTEST, (label * vector).sum(axis=1) / np.maximum(lengths, _SHORTEST), 0.0)
    distance: npt.NDArray[np.float64] = (1.0 - np.clip(cosine, -1.0, 1.0)) / 2.0
    return distance


def euclidean_of(label: Floats, vector: Floats) -> npt.NDArray[np.float64]:
    """Euclidean distance of each pair of rows, without checks."""
    distance: npt.NDArray[np.float64] = np.linalg.norm(label - vector, axis=1)
    return distance


def cosine_distance(label: Floats, vector: Floats) -> npt.NDArray[np.float64]:
    """Distance of direction of each row, from 0 to 1. Raises: EvaluationError for no rows, or values that are not finite."""
    return cosine_of(*_checked(label, vector))


def mean_cosine_distance(label: Floats, vector: Floats) -> float:
    """Mean distance of direction, from 0 to 1. Raises: EvaluationError as `cosine_distance`."""
    return float(cosine_distance(label, vector).mean())


def mean_euclidean_distance(label: Floats, vector: Floats) -> float:
    """Mean Euclidean distance, in the label's unit. Raises: EvaluationError as `cosine_distance`."""
    return float(euclidean_of(*_checked(label, vector)).mean())


VECTOR_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "cosine_distance": mean_cosine_distance,
    "euclidean_distance": mean_euclidean_distance,
}


def _checked(label: Floats, vector: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, v = np.asarray(label, dtype=np.float64), np.asarray(vector, dtype=np.float64)
    if y.shape != v.shape or y.ndim != 2 or y.size == 0:  # noqa: PLR2004 - rows and their values
        raise EvaluationError(
            f"need as many label vectors as answers, of one size, got {y.shape} and {v.shape}"
        )
    bad = ~(np.isfinite(y) & np.isfinite(v)).all(axis=1)
    if bad.any():
        raise EvaluationError(f"{int(bad.sum())} of {len(y)} rows hold a value that is no finite number")
    return y, v
