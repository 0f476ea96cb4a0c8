"""Values of a request as the log holds them: side by side for monitors, and bit for bit where that does not hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from toque.functions.prediction_log.tensors import LoggedTensor
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.versions.in_view import InView

__all__ = ["Held", "held_values", "is_plain", "plain", "vectors"]

MAX_VALUES = 65_536
"""Number of values above which a row is logged without them."""
MAX_REQUEST_VALUES, MAX_REQUEST_TEXTS = 1_048_576, 65_536
"""Numbers and texts of a request above which its rows are logged without them: writing them would delay others."""
MAX_REQUEST_BYTES = 4 * MAX_REQUEST_VALUES
"""Bytes of a request's inputs, or of its outputs, above which they are not kept bit for bit either."""
_FLOAT32 = np.dtype(np.float32)


def _is_logged(tensors: Mapping[str, Array]) -> bool:
    for array in tensors.values():  # noqa: SIM110  # on every request's path: a generator costs twice as much
        if array.size > MAX_REQUEST_VALUES:
            return False
    return True


def _is_float32_matrix(array: Array, rows: int) -> bool:
    return array.dtype == _FLOAT32 and array.ndim == 2 and len(array) == rows  # noqa: PLR2004


class Held(NamedTuple):
    """Values of a record: side by side for monitors, and as they were where that does not hold them."""

    numeric: Array | None
    categorical: Sequence[Sequence[str | None]] | None
    scores: Array | None
    tensors: list[LoggedTensor] | None


def is_plain(inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> bool:
    """Whether the answer has the shape that is signed; a user's class may answer with another one."""
    scores = next(iter(outputs.values()), None)
    return scores is not None and _is_float32_matrix(scores, rows) and _is_logged(inputs)


def plain(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Held:
    """Take the one matrix of each side as it is."""
    return Held(next(iter(inputs.values())), None, next(iter(outputs.values())), None)


def held_values(
    inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int, in_view: InView
) -> Held:
    """Join the tensors of each side, and pack those that this does not hold bit for bit."""
    (numeric, categorical), (scores, texts) = vectors(inputs, rows), vectors(outputs, rows)
    tensors = [
        *_kept(inputs, rows, in_view=in_view.inputs, output=False),
        *_kept(outputs, rows, in_view=in_view.outputs, output=True),
    ]
    return Held(
        numeric, categorical, _lengths(texts) if scores is None and texts else scores, tensors or None
    )


def _kept(
    tensors: Mapping[str, Array], rows: int, *, in_view: Mapping[str, tuple[int, ...]] | None, output: bool
) -> list[LoggedTensor]:
    """Pack the tensors of one side; none if the view holds them as they are, or they are more than is logged."""
    if in_view is not None and _view_is_exact(tensors, rows, in_view):
        return []
    texts = sum(array.size for array in tensors.values() if array.dtype.kind == "O")
    if texts > MAX_REQUEST_TEXTS or sum(array.nbytes for array in tensors.values()) > MAX_REQUEST_BYTES:
        return []
    packed = [LoggedTensor.of(name, array, rows=rows, output=output) for name, array in tensors.items()]
    if None in packed or sum(each.size_bytes for each in packed if each) > MAX_REQUEST_BYTES:
        return []
    return [each for each in packed if each]


def _view_is_exact(tensors: Mapping[str, Array], rows: int, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether float32 and UTF-8 texts side by side hold these tensors: they have the signed shapes, and all were logged."""
    for name, array in tensors.items():
        is_text = array.dtype.kind == "O"
        most = min(MAX_VALUES * rows, MAX_REQUEST_TEXTS if is_text else MAX_REQUEST_VALUES)
        if array.shape != (rows, *shapes[name]) or array.size > most:
            return False
        if array.dtype != _FLOAT32 and not (is_text and _is_text(array)):
            return False
    return True


def _is_text(array: Array) -> bool:
    try:
        for item in array.ravel().tolist():
            if item is not None and not isinstance(item, str):
                item.decode()
    except UnicodeDecodeError:
        return False
    return True


def vectors(
    tensors: Mapping[str, Array], rows: int
) -> tuple[npt.NDArray[np.float32] | None, list[list[str | None]] | None]:
    """Join tensors side by side per row, numbers as float32 (rows, F) and texts as lists of C texts.

    Tensors whose first dimension is not the rows, and those of more values than are logged, are left out (None).
    """
    numbers: list[Array] = []
    texts: list[Array] = []
    for array in tensors.values():
        is_text = array.dtype.kind == "O"
        most = min(MAX_VALUES * rows, MAX_REQUEST_TEXTS if is_text else MAX_REQUEST_VALUES)
        if array.ndim and array.shape[0] == rows and array.size <= most:
            (texts if is_text else numbers).append(array)
    numeric = [_float32(array).reshape(rows, -1) for array in numbers]
    joined = numeric[0] if len(numeric) == 1 else np.hstack(numeric) if numeric else None
    return joined, _texts(texts, rows) if texts else None


def _lengths(texts: Sequence[Sequence[str | None]]) -> npt.NDArray[np.float32]:
    """Length of each text in characters, which stands for a text where a number is logged; NaN for a missing one."""
    return np.array([[np.nan if each is None else len(each) for each in row] for row in texts], np.float32)


def _float32(array: Array) -> Array:
    """Convert to float32; values beyond its range become infinite."""
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _texts(arrays: Sequence[Array], rows: int) -> list[list[str | None]]:
    found: list[list[str | None]] = [[] for _ in range(rows)]
    for array in arrays:
        for row, values in zip(found, array.reshape(rows, -1).tolist(), strict=True):
            row += [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    return found
