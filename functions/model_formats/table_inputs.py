"""Rows of a table as a model's inputs, by the columns that its signature names."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from functions.model_formats.errors import TrainingDataError
from functions.model_formats.matrices import category_matrix, numeric_matrix
from registry.models import Signature


def table_inputs(table: pa.Table, signature: Signature) -> dict[str, npt.NDArray[Any]]:
    """Make the arrays for `ScoringModel.predict`, each input from the columns that its spec names.

    Raises: TrainingDataError if an input names no columns, or a column is absent or of the wrong kind.
    """
    inputs: dict[str, npt.NDArray[Any]] = {}
    for spec in signature.inputs:
        if spec.columns is None:
            raise TrainingDataError(
                f"input {spec.name!r} names no columns, so it cannot be filled from a table: call the model with arrays"
            )
        matrix = category_matrix if spec.datatype == "BYTES" else numeric_matrix
        inputs[spec.name] = matrix(table, spec.columns)
    return inputs


def input_columns(signature: Signature) -> list[str]:
    """List all columns that the inputs name, in order, each once."""
    return list(dict.fromkeys(name for spec in signature.inputs for name in spec.columns or ()))


def first_output(outputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Convert the first output to (rows,) float64. Raises: TrainingDataError if it has several values a row."""
    name, values = next(iter(outputs.items()))
    if values.size != values.shape[0]:
        raise TrainingDataError(
            f"output {name!r} has shape {values.shape}: one probability a row is needed here"
        )
    return values.reshape(-1).astype(np.float64)
