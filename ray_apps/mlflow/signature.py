"""Reads the signature beside a model: ours, or that of an MLmodel file, of tensors or of columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toque.functions.model_formats.mlflow_files import read_mlmodel
from toque.registry import InvalidInput, Signature

SIGNATURE_FILE = "signature.json"
_LARGEST_SIGNATURE_BYTES = 16 << 20

_NUMBERS = {"double", "float", "long", "integer", "boolean"}
_DATATYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "object": "BYTES", "str": "BYTES",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def signature_in(folder: Path) -> Signature | None:
    """Read the signature of the model in `folder`, from `signature.json` or `MLmodel`; None if neither has one.

    Columns become the inputs `numeric` and `categorical`. An output of whole numbers, booleans or texts is taken as classes, for
    which the served model answers the probability of the second; one of fractions as a value.
    Raises: InvalidInput if `signature.json` is not a signature.
    """
    own = folder / SIGNATURE_FILE
    if own.is_file():
        if own.stat().st_size > _LARGEST_SIGNATURE_BYTES:
            raise InvalidInput(
                f"{SIGNATURE_FILE} has {own.stat().st_size:,} bytes: at most {_LARGEST_SIGNATURE_BYTES:,} are read; "
                "give fewer rows as its example"
            )
        try:
            return Signature.model_validate_json(own.read_bytes())
        except ValidationError as error:
            raise InvalidInput(f"{SIGNATURE_FILE}: {error}") from error
    content = read_mlmodel(folder)
    stored = content.get("signature")
    if not stored or not stored.get("inputs") or not stored.get("outputs"):
        return None
    specs = {side: json.loads(stored[side]) for side in ("inputs", "outputs")}
    inputs = _tensors(specs["inputs"], "inputs")
    if inputs is not None and not (
        len(inputs) == 1 and "tensor-spec" in specs["inputs"][0] and _classic(content)
    ):
        outputs = _tensors(specs["outputs"], "outputs")
        return None if outputs is None else Signature.model_validate({"inputs": inputs, "outputs": outputs})
    inputs = inputs if inputs is not None else _tables(specs["inputs"])
    output = _answer(specs["outputs"])
    if inputs is None or output is None:
        return None
    return Signature.model_validate({"inputs": inputs, "outputs": [output]})


def _classic(content: Any) -> bool:
    """Whether the model is of a library whose reader here answers probabilities, whatever its own `predict` does."""
    return bool({"sklearn", "xgboost", "lightgbm"} & set(content.get("flavors", {})))


def _tables(specs: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Convert MLflow columns to the inputs `numeric` and `categorical`; None if one has neither name nor such a type."""
    numbers: list[str] = []
    texts: list[str] = []
    for spec in specs:
        if "name" not in spec or spec.get("type") not in {*_NUMBERS, "string"}:
            return None
        (texts if spec["type"] == "string" else numbers).append(spec["name"])
    inputs = [("numeric", "FP32", numbers), ("categorical", "BYTES", texts)]
    return [
        {"name": name, "datatype": datatype, "shape": [-1, len(columns)], "columns": columns}
        for name, datatype, columns in inputs
        if columns
    ]


def _answer(specs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Convert the one output of a library's model: fractions are a value, other types classes; None for several outputs."""
    if len(specs) != 1:
        return None
    tensor = specs[0].get("tensor-spec")
    kind = tensor["dtype"] if tensor else specs[0].get("type", "")
    if tensor and len(tensor["shape"]) > 1 and tensor["shape"][1] > 1:
        return {"name": "probability", "datatype": "FP32", "shape": [-1, tensor["shape"][1]]}
    name = "value" if kind in {"double", "float", "float32", "float64"} else "probability"
    return {"name": name, "datatype": "FP32", "shape": [-1, 1]}


def _tensors(specs: list[dict[str, Any]], side: str) -> list[dict[str, Any]] | None:
    """Convert MLflow tensor specs to the registry's form; None if a spec is not a tensor. Unnamed ones get the name `input` or `output`."""
    found = []
    for spec in specs:
        tensor = spec.get("tensor-spec")
        datatype = _DATATYPES.get(tensor["dtype"]) if tensor else None
        if tensor is None or datatype is None:
            return None
        found.append({"name": spec.get("name", side[:-1]), "datatype": datatype, "shape": tensor["shape"]})
    return found
