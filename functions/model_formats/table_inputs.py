"""Inputs of a model by the columns that its signature names: of a table's rows, or of another version's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def select_inputs(
    inputs: Mapping[str, npt.NDArray[Any]], given: Signature, wanted: Signature
) -> dict[str, npt.NDArray[Any]]:
    """Make the inputs that `wanted` asks for from those that fit `given`.

    A table-like input is put together column by column; one without columns is taken by its name.
    Raises: TrainingDataError, naming what is not among the given inputs.
    """
    places = {
        (column, spec.datatype == "BYTES"): (spec.name, index)
        for spec in given.inputs
        for index, column in enumerate(spec.columns or ())
    }
    return {spec.name: _selected(inputs, places, spec, given) for spec in wanted.inputs}


def _selected(
    inputs: Mapping[str, npt.NDArray[Any]],
    places: Mapping[tuple[str, bool], tuple[str, int]],
    spec: TensorSpec,
    given: Signature,
) -> npt.NDArray[Any]:
    if spec.columns is None:
        if spec.name not in inputs:
            raise TrainingDataError(f"no input {spec.name!r} is among {[each.name for each in given.inputs]}")
        return inputs[spec.name]
    text = spec.datatype == "BYTES"
    absent = [column for column in spec.columns if (column, text) not in places]
    if absent:
        kind = "texts" if text else "numbers"
        raise TrainingDataError(
            f"input {spec.name!r} needs the {kind} {absent}, and the other version's inputs hold "
            f"{sorted(column for column, is_text in places if is_text is text)}"
        )
    if not spec.columns:
        rows = next((len(array) for array in inputs.values()), 0)
        return np.empty((rows, 0), dtype=object if text else np.float32)
    found = [places[column, text] for column in spec.columns]
    return np.stack([inputs[name][:, index] for name, index in found], axis=1)


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
