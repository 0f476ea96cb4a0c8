"""Comparison of a program's outputs between two ways to run it, such as CPU and CUDA device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.registry.models import Signature

__all__ = ["difference", "has_open_rows", "rows_are_independent", "samples"]

Arrays = Mapping[str, Array]
TOLERANCES: dict[str, tuple[float, float]] = {
    "float16": (1e-2, 1e-3),
    "float32": (1e-4, 1e-5),
    "float64": (1e-4, 1e-5),  # as a rule fp32's, cast
}
"""Relative and absolute tolerance by dtype; other dtypes must be equal."""


class _Model(Protocol):
    def predict(self, inputs: Mapping[str, Any]) -> Arrays: ...


def has_open_rows(signature: Signature) -> bool:
    """Whether the first dimension of all inputs and outputs is open, so that a request chooses its number of rows."""
    specs = [*signature.inputs, *signature.outputs]
    return bool(signature.inputs) and all(spec.shape[:1] == [-1] for spec in specs)


def samples(example: Arrays, signature: Signature) -> list[Arrays]:
    """Inputs to compare two runs on: the signature's example, and three copies of its rows where rows are open."""
    if not has_open_rows(signature):
        return [example]
    return [example, {name: np.concatenate([array] * 3) for name, array in example.items()}]


def difference(wanted: Arrays, got: Arrays) -> str | None:
    """Describe the first output that differs by more than its tolerance; None if all agree."""
    for name, array in wanted.items():
        other = got[name]
        if (other.shape, other.dtype) != (array.shape, array.dtype):
            return f"output {name!r} is {other.dtype} {other.shape}, not {array.dtype} {array.shape}"
        if array.dtype.kind != "f":
            wrong = int((array != other).sum())
            if wrong:
                return f"output {name!r} differs in {wrong} of {array.size} values"
            continue
        rtol, atol = TOLERANCES[array.dtype.name]
        if not np.allclose(other, array, rtol=rtol, atol=atol, equal_nan=True):
            with np.errstate(invalid="ignore"):  # of infinities
                gaps = np.abs(other.astype(np.float64) - array)
            finite = gaps[np.isfinite(gaps)]
            return f"output {name!r} differs by {finite.max(initial=0.0):.3g}"
    return None


def rows_are_independent(model: _Model, example: Arrays) -> bool:
    """Whether rows of zeros appended to a batch leave the answers of its other rows unchanged.

    Tried with multiples of the example's numbers of either sign: a maximum over rows, say, sees zeros only among
    negatives. example: texts as hashes. False, too, where the model refuses such inputs.
    """
    for factors in ((1.0, 2.0, 0.5), (-1.0, -2.0, -0.5)):
        rows = {name: _multiples(array, factors) for name, array in example.items()}
        padded = {name: np.concatenate([a, np.zeros_like(a), np.zeros_like(a)]) for name, a in rows.items()}
        try:
            wanted, got = model.predict(rows), model.predict(padded)
        except (ValueError, RuntimeError, IndexError):
            return False
        if difference(wanted, {name: got[name][: len(array)] for name, array in wanted.items()}) is not None:
            return False
    return True


def _multiples(array: Array, factors: Sequence[float]) -> Array:
    if array.dtype.kind != "f":  # classes and counts are what they are
        return np.concatenate([array] * len(factors))
    return np.concatenate([array * array.dtype.type(factor) for factor in factors])
