"""Figures of tensors, such as images, by which their drift is seen: no pixel means anything by itself.

Mean, standard deviation and norm of each row's values show another brightness, contrast or scale; projections on a few directions,
drawn once for a model and tensor, show what keeps those, such as other objects.

Source: Johnson and Lindenstrauss, Extensions of Lipschitz mappings into a Hilbert space, 1984, for the projections.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
PROJECTIONS = 4
_FIGURES = ("mean", "std", "norm", *(f"projection {place}" for place in range(1, PROJECTIONS + 1)))


def summary_names(tensor: str) -> tuple[str, ...]:
    """Names of the figures of a tensor, as drift findings and alarms name them."""
    return tuple(f"{tensor} {figure}" for figure in _FIGURES)


def summaries(model: str, tensor: str, values: npt.NDArray[np.floating]) -> dict[str, Floats]:
    """Compute the figures (rows,) of a tensor's values (rows, size) by name; NaN for a row with a missing value.

    model: whose name, with the tensor's, is the seed of the directions.
    """
    held = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    size = held.shape[1]
    seed = int.from_bytes(hashlib.sha256(f"{model}/{tensor}".encode()).digest()[:8], "big")
    directions = np.random.default_rng(seed).normal(size=(size, PROJECTIONS)) / np.sqrt(size)
    figures = (held.mean(axis=1), held.std(axis=1), np.linalg.norm(held, axis=1), *(held @ directions).T)
    return dict(zip(summary_names(tensor), figures, strict=True))
