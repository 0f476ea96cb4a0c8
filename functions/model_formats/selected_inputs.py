"""Inputs of one version made from those of another, by the names of their columns: a challenger may read fewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from toque.functions.model_formats.errors import TrainingDataError
from toque.registry.models import Signature, TensorSpec

Arrays = Mapping[str, npt.NDArray[Any]]


def select_inputs(inputs: Arrays, given: Signature, wanted: Signature) -> dict[str, npt.NDArray[Any]]:
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
    inputs: Arrays, places: Mapping[tuple[str, bool], tuple[str, int]], spec: TensorSpec, given: Signature
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
