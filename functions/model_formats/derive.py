"""Signatures of model files that bring none: read off the file, with the help of an example's rows.

The file is read by its own library in this process: derive only from files of your own, as `toque models register` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from toque.functions.model_formats.errors import ArtifactRefused, TrainingDataError
from toque.functions.model_formats.flavors import SKOPS_FILE, load_answer, open_graph
from toque.functions.model_formats.formats import format_of
from toque.functions.model_formats.load import DESCRIPTION_FILE, check_example, load
from toque.functions.model_formats.matrices import numeric_matrix, text_matrix
from toque.registry.models import Signature, TensorSpec

SIGNATURE_FILE = "signature.json"
Row = Mapping[str, Any]
_ONNX_TYPES = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(int64)": "INT64", "tensor(int32)": "INT32",
    "tensor(bool)": "BOOL", "tensor(string)": "BYTES",
}  # fmt: skip
_REMEDY = "give one with --signature FILE, or rows with --example FILE"


def derive_signature(
    folder: Path, rows: Sequence[Row] = (), *, trusted_types: Sequence[str] = ()
) -> Signature:
    """Find the signature of the model in a folder: its own file, or what the model says of its inputs and outputs.

    rows: example rows by column, which tell numbers from texts and become the signature's example. trusted_types: classes that a
    file of skops may name. The model is loaded with what was found, and answers the example.
    Raises: ArtifactRefused if it has no model that can be served, or nothing tells its inputs.
    """
    for name in (SIGNATURE_FILE, DESCRIPTION_FILE):
        found = _stored(folder / name)
        if found is not None:
            return found
    kind = format_of(folder).file
    if kind not in _READERS:
        raise ArtifactRefused(f"{kind} does not tell its inputs: {_REMEDY}")
    inputs, output = _READERS[kind](folder, _columns(rows), trusted_types)
    signature = Signature(inputs=inputs, outputs=output, example=_example(inputs, rows) if rows else None)
    check_example(load(folder, signature=signature, trusted_types=trusted_types))
    return signature


def _stored(path: Path) -> Signature | None:
    """Read a stored signature, alone or in the description of a model; None if there is none."""
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    try:
        return Signature.model_validate(content.get("signature", content))
    except (ValidationError, AttributeError) as error:
        if path.name == DESCRIPTION_FILE:
            return None  # a file of this name may be another library's
        raise ArtifactRefused(f"{path.name} holds no signature: {error}") from error


def _columns(rows: Sequence[Row]) -> dict[str, bool]:
    """Columns of example rows in their order, and whether each holds texts."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: any(isinstance(row.get(name), str) for row in rows) for name in names}


def table_specs(columns: Mapping[str, bool]) -> list[TensorSpec]:
    """Make the inputs of a table: its numbers, then its texts. columns: whether each holds texts."""
    numbers = [name for name, text in columns.items() if not text]
    texts = [name for name, text in columns.items() if text]
    specs = [
        TensorSpec(name="numeric", datatype="FP32", shape=[-1, len(numbers)], columns=numbers),
        TensorSpec(name="categorical", datatype="BYTES", shape=[-1, len(texts)], columns=texts),
    ]
    return [spec for spec in specs if spec.columns]


def _example(inputs: Sequence[TensorSpec], rows: Sequence[Row]) -> dict[str, Any]:
    example = {}
    table = pa.Table.from_pylist([dict(row) for row in rows])
    for spec in inputs:
        if spec.columns is None:
            raise ArtifactRefused(
                f"input {spec.name!r} names no columns, so rows are no example: leave --example out"
            )
        text = spec.datatype == "BYTES"
        values = (text_matrix if text else numeric_matrix)(table, spec.columns).tolist()
        example[spec.name] = [[value or "" for value in row] for row in values] if text else values
    return example


def _onnx(
    folder: Path, _: Mapping[str, bool], __: Sequence[str]
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    session = open_graph(folder / "model.onnx")

    def spec(node: Any) -> TensorSpec:
        if node.type not in _ONNX_TYPES:
            raise ArtifactRefused(f"the graph's {node.name!r} is {node.type}, which is not served: {_REMEDY}")
        shape = [size if isinstance(size, int) else -1 for size in node.shape]
        return TensorSpec(name=node.name, datatype=_ONNX_TYPES[node.type], shape=shape)

    outputs = [node for node in session.get_outputs() if node.type in _ONNX_TYPES]
    return [spec(node) for node in session.get_inputs()], [spec(node) for node in outputs]


def _xgboost(
    folder: Path, columns: Mapping[str, bool], _: Sequence[str]
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    from xgboost import Booster

    model = Booster()
    model.load_model(folder / "model.ubj")
    learner = json.loads(model.save_config())["learner"]
    classes = int(learner["learner_model_param"]["num_class"])
    inputs = _plain_inputs(model.feature_names, model.num_features(), columns)
    return inputs, [_output(learner["objective"]["name"], classes)]


def _lightgbm(
    folder: Path, columns: Mapping[str, bool], _: Sequence[str]
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    text = (folder / "model.txt").read_text()
    found = dict(re.findall(r"^(objective|num_class|feature_names)=(.*)$", text, re.MULTILINE))
    names = found.get("feature_names", "").split()
    own = None if names == [f"Column_{index}" for index in range(len(names))] else names
    inputs = _plain_inputs(own, len(names), columns)
    return inputs, [_output(found.get("objective", "regression"), int(found.get("num_class", "1")))]


def _plain_inputs(names: Sequence[str] | None, width: int, columns: Mapping[str, bool]) -> list[TensorSpec]:
    """Inputs of a model of numbers: the columns that it learnt, or as many numbers as it takes."""
    if names is None and not columns:
        return [TensorSpec(name="input", datatype="FP32", shape=[-1, width])]
    learnt = list(names or columns)
    if columns and set(learnt) != set(columns):
        raise ArtifactRefused(f"the model learnt the columns {learnt}, the example has {list(columns)}")
    return table_specs({name: columns.get(name, False) for name in learnt})


def _sklearn(
    folder: Path, columns: Mapping[str, bool], trusted_types: Sequence[str]
) -> tuple[list[TensorSpec], list[TensorSpec]]:
    from skops.io import load as read

    probe = TensorSpec(name="value", datatype="FP32", shape=[-1, 1])
    anything = Signature(inputs=[TensorSpec(name="input", datatype="FP32", shape=[-1, 1])], outputs=[probe])
    load_answer(folder, SKOPS_FILE, anything, trusted_types)  # refuses types that nobody trusts
    model = read(folder / SKOPS_FILE, trusted=[*trusted_types, "numpy.dtype"])
    names = getattr(model, "feature_names_in_", None)
    if names is not None and not columns:
        raise ArtifactRefused(
            f"the pipeline learnt the columns {list(names)} and does not tell numbers from texts: give rows with --example FILE"
        )
    width = int(getattr(model, "n_features_in_", len(columns)))
    inputs = _plain_inputs(None if names is None else list(names), width, columns)
    classes = [str(each) for each in getattr(model, "classes_", ())]
    if hasattr(model, "predict_proba") and len(classes) > 2:  # noqa: PLR2004 - of two the second is answered
        shape = [-1, len(classes)]
        return inputs, [TensorSpec(name="probability", datatype="FP32", shape=shape, columns=classes)]
    return inputs, [_output("binary" if hasattr(model, "predict_proba") else "regression", 1)]


def _output(objective: str, classes: int) -> TensorSpec:
    """Answer of an objective: a probability, one for each class, a rate of counts, a score of items, or a value."""
    if classes > 1:
        names = [str(index) for index in range(classes)]
        return TensorSpec(name="probability", datatype="FP32", shape=[-1, classes], columns=names)
    by_word = {"binary": "probability", "poisson": "rate", "rank": "item_score"}  # lambdarank, rank:ndcg
    name = next((name for word, name in by_word.items() if word in objective), "value")
    return TensorSpec(name=name, datatype="FP32", shape=[-1, 1])


_Reader = Callable[[Path, Mapping[str, bool], Sequence[str]], tuple[list[TensorSpec], list[TensorSpec]]]
_READERS: dict[str, _Reader] = {
    "model.onnx": _onnx,
    "model.ubj": _xgboost,
    "model.txt": _lightgbm,
    SKOPS_FILE: _sklearn,
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read example rows from a JSON file: a list of objects by column, or one. Raises: TrainingDataError."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingDataError(f"{path} cannot be read as JSON: {error}") from error
    rows = found if isinstance(found, list) else [found]
    if not rows or not all(isinstance(row, dict) and row for row in rows):
        raise TrainingDataError(f'{path} holds no rows: want [{{"column": value, …}}, …]')
    return rows
