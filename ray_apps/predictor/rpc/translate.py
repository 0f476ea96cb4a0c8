"""Between the protocol's two encodings: gRPC messages, and HTTP bodies with binary tensors. Pure.

Raw tensor contents are the binary extension's own layout and are passed on as they are; typed contents are packed.
An answer comes as it was asked: raw contents for a request with raw contents or without tensors, typed contents
for typed ones. Parameters that gRPC cannot hold, `entities`, `request`, `attributes`, `missing`, `explain` and
`explanation`, are JSON texts there.

Source: Open Inference Protocol v2 (gRPC), and the binary tensor data extension of its REST form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from ray_apps.predictor.datatypes import DTYPES, Array, dtype_of, pack, unpack
from ray_apps.predictor.errors import BadRequest
from ray_apps.predictor.rpc.messages import ModelInferResponse, ModelMetadataResponse

__all__ = ["is_typed", "model_path", "read_answer", "read_metadata", "write_request"]

JSON_PARAMETERS = frozenset({"entities", "request", "explain", "attributes"})
_BY_KIND = {"b": "bool_contents", "O": "bytes_contents", "f4": "fp32_contents", "f8": "fp64_contents",
            "i8": "int64_contents", "u8": "uint64_contents", "i": "int_contents", "u": "uint_contents"}  # fmt: skip
_VERSION_DIGITS = 9


def model_path(name: str, version: str) -> str:
    """The HTTP path of a model, or of one version of it.

    version: "" leaves it to the traffic policy. Raises: BadRequest naming the field.
    """
    if not name:
        raise BadRequest("model_name: missing; name the model")
    path = f"/v2/models/{quote(name, safe='')}"
    if not version:
        return path
    if not (version.isascii() and version.isdigit() and len(version) <= _VERSION_DIGITS):
        raise BadRequest(
            f"model_version: versions are numbers, got {version!r:.80}; leave it out for the policy's"
        )
    return f"{path}/versions/{version}"


def is_typed(request: Any) -> bool:
    """Whether a ModelInferRequest carries its tensors as typed contents."""
    return bool(request.inputs) and not request.raw_input_contents


def write_request(request: Any) -> tuple[bytes, int]:
    """A ModelInferRequest as an HTTP body with binary tensors; returns it and the length of its JSON.

    Raises: BadRequest naming the field.
    """
    raw = _contents(request)
    parameters = _parameters(request.parameters) | {"binary_data_output": True}
    document: dict[str, Any] = {
        "parameters": parameters,
        "inputs": [_input(tensor, data) for tensor, data in zip(request.inputs, raw, strict=True)],
    }
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": _without(_parameters(output.parameters), "binary_data")}
            for output in request.outputs
        ]
    head = orjson.dumps(document)
    return b"".join((head, *raw)), len(head)


def _input(tensor: Any, data: bytes) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": _parameters(tensor.parameters) | {"binary_data_size": len(data)},
    }


def _contents(request: Any) -> list[bytes]:
    """The bytes of every input."""
    if is_typed(request) or not request.inputs:
        if request.raw_input_contents:
            raise BadRequest(f"raw_input_contents: {len(request.raw_input_contents)} for no inputs")
        return [_packed(tensor) for tensor in request.inputs]
    raw = list(request.raw_input_contents)
    if len(raw) != len(request.inputs):
        raise BadRequest(
            f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs; send one for each"
        )
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise BadRequest(
                f"inputs.{tensor.name}.contents: the request has raw_input_contents; send one of both"
            )
    return raw


def _packed(tensor: Any) -> bytes:
    """Typed contents as bytes."""
    field = f"inputs.{tensor.name}"
    dtype = dtype_of(tensor.datatype, field)
    wanted = _field_of(dtype)
    if wanted is None:
        raise BadRequest(
            f"{field}.datatype: {tensor.datatype} has no typed contents; send raw_input_contents"
        )
    given = [found.name for found, _ in tensor.contents.ListFields()]
    if given not in ([], [wanted]):
        raise BadRequest(f"{field}.contents: {tensor.datatype} goes into {wanted}, got {', '.join(given)}")
    values = list(getattr(tensor.contents, wanted))
    if dtype.kind == "O":
        items = np.empty(len(values), dtype=object)
        items[:] = values
        return pack(items)
    try:
        return pack(np.array(values, dtype=dtype))
    except OverflowError as error:
        raise BadRequest(f"{field}.contents: out of the range of {tensor.datatype}: {error}") from None


def _field_of(dtype: np.dtype[Any]) -> str | None:
    """The typed contents that a dtype goes into; None for 16-bit floats, which have none."""
    exact = _BY_KIND.get(f"{dtype.kind}{dtype.itemsize}")
    return exact or _BY_KIND.get(dtype.kind)


def _parameters(parameters: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, holder in parameters.items():
        kind = holder.WhichOneof("parameter_choice")
        value = None if kind is None else getattr(holder, kind)
        found[name] = _json(name, value) if name in JSON_PARAMETERS and isinstance(value, str) else value
    return found


def _json(name: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"parameters.{name}: expected JSON in a string: {error}") from None


def _without(parameters: dict[str, Any], name: str) -> dict[str, Any]:
    parameters.pop(name, None)
    return parameters


def read_answer(body: bytes, header_length: int | None, *, typed: bool) -> Any:
    """An HTTP answer with binary tensors as a ModelInferResponse.

    header_length: of the JSON, None if no tensors follow. typed: answer with typed contents where all outputs
    have some (16-bit floats have none).
    """
    document = orjson.loads(body if header_length is None else memoryview(body)[:header_length])
    answer = ModelInferResponse(
        model_name=document["model_name"],
        model_version=document.get("model_version", ""),
        id=document.get("id", ""),
    )
    _set_parameters(answer.parameters, document.get("parameters") or {})
    typed = typed and all(_field_of(DTYPES[tensor["datatype"]]) for tensor in document["outputs"])
    at = len(body) if header_length is None else header_length
    for tensor in document["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        raw = body[at : at + size]
        at += size
        shown = answer.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        if typed:
            array = unpack(raw, tensor["datatype"], tuple(tensor["shape"]), f"outputs.{tensor['name']}")
            _fill(shown.contents, array)
        else:
            answer.raw_output_contents.append(raw)
    return answer


def _fill(contents: Any, array: Array) -> None:
    field = _field_of(array.dtype)
    assert field is not None  # noqa: S101 - asked before
    getattr(contents, field).extend(array.ravel().tolist())


def _set_parameters(holders: Any, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        holder = holders[name]
        if isinstance(value, bool):
            holder.bool_param = value
        elif isinstance(value, int):
            holder.int64_param = value
        elif isinstance(value, float):
            holder.double_param = value
        else:
            holder.string_param = value if isinstance(value, str) else orjson.dumps(value).decode()


def read_metadata(body: bytes) -> Any:
    """The HTTP description of a model as a ModelMetadataResponse."""
    document = orjson.loads(body)
    answer = ModelMetadataResponse(
        name=document["name"], versions=document["versions"], platform=document["platform"]
    )
    for side in ("inputs", "outputs"):
        for tensor in document[side]:
            getattr(answer, side).add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
    return answer
