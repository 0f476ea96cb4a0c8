"""Rows of a table as a model's inputs, by the columns that its signature names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.model_formats.errors import TrainingDataError
from toque.functions.model_formats.matrices import (
    category_matrix,
    is_tensor,
    numeric_matrix,
    tensor_array,
    text_matrix,
)
from toque.registry.models import Signature, TensorSpec


def table_inputs(table: pa.Table, signature: Signature) -> dict[str, npt.NDArray[Any]]:
    """Make the arrays that a program takes, each input from the columns that its spec names; texts are hashed.

    An input that names no columns is the column of its own name, of lists of numbers in its shape.
    Raises: TrainingDataError if a column is absent or of the wrong kind.
    """
    return _inputs(table, signature, category_matrix)


def text_inputs(table: pa.Table, signature: Signature) -> dict[str, npt.NDArray[Any]]:
    """Make the arrays that a model of another format takes: as `table_inputs`, but texts stay texts, None if missing."""
    return _inputs(table, signature, text_matrix)


def input_columns(signature: Signature) -> list[str]:
    """List all columns that the inputs read, in order, each once."""
    return list(dict.fromkeys(name for spec in signature.inputs for name in own_columns(spec)))


def own_columns(spec: TensorSpec) -> list[str]:
    """Columns that an input reads: those it names, perhaps none at all, or else the one of its own name."""
    return [spec.name] if spec.columns is None else spec.columns


def _inputs(
    table: pa.Table, signature: Signature, texts: Callable[[pa.Table, Sequence[str]], npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    inputs: dict[str, npt.NDArray[Any]] = {}
    for spec in signature.inputs:
        if spec.datatype == "BYTES":
            inputs[spec.name] = texts(table, own_columns(spec))
        elif spec.columns is not None:
            inputs[spec.name] = numeric_matrix(table, spec.columns)
        else:
            inputs[spec.name] = _tensor(table, spec)
    return inputs


def _tensor(table: pa.Table, spec: TensorSpec) -> npt.NDArray[Any]:
    """Tensor of the column of an input's name, or of scalars for one number a row."""
    if spec.name not in table.column_names:
        raise TrainingDataError(
            f"input {spec.name!r} names no columns and the table has no column of its name, so it cannot be filled from a "
            f"table: it has {table.column_names}"
        )
    if is_tensor(table.schema.field(spec.name).type):
        return tensor_array(table, spec.name)
    return numeric_matrix(table, [spec.name]).reshape([-1, *spec.shape[1:]])


def first_output(outputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Convert the first output to (rows,) float64. Raises: TrainingDataError if it has several values a row."""
    name, values = next(iter(outputs.items()))
    if values.size != values.shape[0]:
        raise TrainingDataError(
            f"output {name!r} has shape {values.shape}: one probability a row is needed here"
        )
    return values.reshape(-1).astype(np.float64)


def first_text(outputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.object_]:
    """Convert the first output to texts (rows,); bytes that are no UTF-8 are replaced.

    Raises: TrainingDataError if it has several texts a row, or none.
    """
    name, values = next(iter(outputs.items()))
    if values.size != len(values) or not all(isinstance(each, str | bytes) for each in values.ravel()):
        raise TrainingDataError(
            f"output {name!r} has shape {values.shape} of {values.dtype}: one text a row is needed here"
        )
    texts = [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in values.ravel()]
    return np.array([*texts, None], dtype=object)[:-1]
