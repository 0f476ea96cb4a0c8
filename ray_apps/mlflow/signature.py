"""Converts the tensor signature of an MLmodel file to a signature of the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from registry import Signature

_DATATYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64", "object": "BYTES", "str": "BYTES",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def signature_in(folder: Path) -> Signature | None:
    """Read the signature of the model in `folder`; None if it has no signature, or one of columns instead of tensors."""
    file = folder / "MLmodel"
    content = yaml.safe_load(file.read_text()) if file.is_file() else None
    stored = content.get("signature") if isinstance(content, dict) else None
    if not stored or not stored.get("inputs") or not stored.get("outputs"):
        return None
    inputs, outputs = (_tensors(json.loads(stored[side]), side) for side in ("inputs", "outputs"))
    if inputs is None or outputs is None:
        return None
    return Signature.model_validate({"inputs": inputs, "outputs": outputs})


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
