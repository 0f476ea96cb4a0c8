"""Decodes requests and encodes responses of the Open Inference Protocol v2 over HTTP, JSON and binary tensors mixed.

Without I/O and without knowledge of models. Every refusal is a `BadRequest` that names the field. JSON `null` in a
floating point tensor is NaN, and NaN is written as `null`.

Source: Open Inference Protocol v2 (REST), and the binary tensor data extension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from toque.ray_apps.predictor.protocol.datatypes import (
    MAX_JSON_VALUES,
    SLICE_VALUES,
    SMALL_BYTES,
    Array,
    cast,
    check_json,
    datatype_of,
    dtype_of,
    has_listed_truths,
    joined,
    pack,
    packed,
    refuse_truths,
    unpack,
)
from toque.ray_apps.predictor.protocol.errors import BadRequest, TooLarge, unknown_name

__all__ = [
    "MAX_TENSORS",
    "OWN_PARAMETERS",
    "TENSOR_PARAMETERS",
    "InferRequest",
    "InferResponse",
    "check_identifier",
    "check_names",
    "check_output",
    "check_shape",
    "decode_request",
    "encode_response",
    "is_large",
    "with_decoded",
]

MAX_ELEMENTS = 16_777_216
MAX_TENSORS = 256
MAX_DIMS = 8
JSON_PARAMETERS = frozenset({"entities", "request", "explain", "attributes"})
"""Parameters that are rows or objects, which a client of either protocol may send as JSON text."""
OWN_PARAMETERS = JSON_PARAMETERS | {"unit", "load_test", "at", "timeout", "binary_data_output"}
"""Parameters of a request that mean something here."""
TENSOR_PARAMETERS = frozenset({"binary_data", "binary_data_size", "classification"})
"""Parameters of an input or of a requested output that mean something here."""
CLIENT_PARAMETERS = frozenset(
    {
        "binary_data", "binary_data_output", "binary_data_size", "classification", "columns", "content_type", "headers",
        "priority", "sequence_end", "sequence_id", "sequence_start", "shared_memory_byte_size", "shared_memory_offset",
        "shared_memory_region", "timeout",
    }
)  # fmt: skip
"""Parameters that the protocol, its extensions and the clients of Triton, KServe and MLServer know, wherever they put them."""
_CLIENT_PREFIX = "triton_"
_MEMBERS = frozenset({"id", "inputs", "outputs", "parameters", "model_name", "model_version"})
_NO_PARAMETERS: Mapping[str, Any] = {}


@dataclass(slots=True)
class InferRequest:
    """A decoded inference request of either protocol.

    binary: for each requested output, whether it is sent as bytes. large: whether it came in a large body, so that no
    work on all of it belongs on an event loop.
    """

    inputs: dict[str, Array]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    binary: Mapping[str, bool] = field(default_factory=dict)
    binary_default: bool = False
    large: bool = False


@dataclass(slots=True)
class InferResponse:
    """The response to an inference request: output arrays of one version by name, and parameters.

    large: whether no work on all of the outputs belongs on an event loop.
    """

    model: str
    version: int
    outputs: Mapping[str, Array]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    large: bool = False

    def chosen(self, request: InferRequest) -> Mapping[str, Array]:
        """The outputs that a request asks for; all of them if the request names no output.

        Raises: BadRequest if one does not exist.
        """
        if not request.outputs:
            return self.outputs
        for name in request.outputs:
            if name not in self.outputs:
                raise BadRequest(f"outputs.{name}: no such output; the model has {list(self.outputs)}")
        return {name: self.outputs[name] for name in request.outputs}


def decode_request(body: bytes | bytearray, header_length: int | None = None) -> InferRequest:
    """Decode the body of an inference request.

    header_length: bytes of JSON at the start when binary tensors follow (`Inference-Header-Content-Length`).
    Raises: BadRequest or TooLarge.
    """
    if header_length is None:
        return _read(body, memoryview(b""))
    if not 0 <= header_length <= len(body):
        raise BadRequest(
            f"Inference-Header-Content-Length: {header_length} is outside the body of {len(body)} bytes"
        )
    return _read(body[:header_length], memoryview(body)[header_length:])


def _read(head: bytes | bytearray, rest: memoryview) -> InferRequest:
    """Decode a request's JSON, with the binary tensors behind it."""
    check_json(head)
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"body: not JSON ({error}); send NaN as null") from None
    if not isinstance(document, dict):
        raise BadRequest(f"body: expected an object, got {type(document).__name__}")
    check_names(document, _MEMBERS, "body")
    parameters = with_decoded(_parameters(document, "parameters"))
    check_names(parameters, OWN_PARAMETERS, "parameters")
    request = InferRequest(
        inputs=_inputs(document.get("inputs", []), rest, truths=has_listed_truths(head)),
        id=check_identifier(document.get("id")),
        parameters=parameters,
        binary_default=_flag(parameters, "binary_data_output", "parameters"),
    )
    if "outputs" in document:
        _requested_outputs(document["outputs"], request)
    return request


def check_identifier(value: Any) -> str | None:
    """Check a request's `id`; None if it is absent or empty. Raises: BadRequest."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 256:  # noqa: PLR2004 - a bound for the log's key
        raise BadRequest(f"id: expected a string of at most 256 characters, got {value!r:.80}")
    return value


def _parameters(holder: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = holder.get("parameters")
    if value is None:
        return _NO_PARAMETERS
    if not isinstance(value, dict):
        raise BadRequest(f"{field}: expected an object, got {type(value).__name__}")
    return value


def check_names(given: Mapping[str, Any], own: frozenset[str], where: str) -> None:
    """Check names of parameters or members. Raises: BadRequest for one that neither we nor a known client means."""
    if given.keys() <= own:
        return
    for name in given:
        if name not in own and name not in CLIENT_PARAMETERS and not name.startswith(_CLIENT_PREFIX):
            raise unknown_name(where, name, own)


def with_decoded(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Decode parameters of rows or objects that came as JSON text, which is their only form in a gRPC message.

    Raises: BadRequest naming the parameter.
    """
    texts = [name for name in JSON_PARAMETERS if isinstance(parameters.get(name), str)]
    if not texts:
        return parameters
    decoded = dict(parameters)
    for name in texts:
        try:
            decoded[name] = orjson.loads(parameters[name])
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"parameters.{name}: expected JSON in a string: {error}") from None
    return decoded


def _flag(parameters: Mapping[str, Any], name: str, field: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{field}.{name}: expected true or false, got {value!r:.80}")
    return value


def _inputs(tensors: Any, rest: memoryview, *, truths: bool) -> dict[str, Array]:
    if not isinstance(tensors, list) or len(tensors) > MAX_TENSORS:
        raise BadRequest(f"inputs: expected a list of at most {MAX_TENSORS} tensors")
    arrays: dict[str, Array] = {}
    at = 0
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, dict) or not isinstance(name := tensor.get("name"), str):
            raise BadRequest(f"inputs[{i}]: expected an object with a name")
        if name in arrays:
            raise BadRequest(f"inputs[{i}].name: {name!r} is given twice")
        parameters = _parameters(tensor, f"inputs.{name}.parameters")
        check_names(parameters, TENSOR_PARAMETERS, f"inputs.{name}.parameters")
        size = parameters.get("binary_data_size")
        if size is None:
            if truths:
                refuse_truths(tensor.get("data"), tensor.get("datatype"), f"inputs.{name}")
            arrays[name] = _json_tensor(tensor, f"inputs.{name}")
        else:
            arrays[name], at = _binary_tensor(tensor, size, rest, at, f"inputs.{name}")
    if at != len(rest):
        raise BadRequest(f"body: {len(rest) - at} binary bytes belong to no input (binary_data_size)")
    return arrays


def check_shape(shape: Any, field: str) -> tuple[int, ...]:
    """Check the `shape` of a tensor in a request. Raises: BadRequest, TooLarge; they name `field`."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMS:
        raise BadRequest(f"{field}.shape: expected a list of at most {MAX_DIMS} sizes, got {shape!r:.80}")
    total = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise BadRequest(f"{field}.shape: sizes are integers >= 0, got {size!r:.80}")
        total *= size
    if total > MAX_ELEMENTS:
        raise TooLarge(f"{field}.shape: {total} elements; at most {MAX_ELEMENTS} are accepted in one request")
    return tuple(shape)


def _json_tensor(tensor: Mapping[str, Any], field: str) -> Array:
    shape = check_shape(tensor.get("shape"), field)
    if "data" not in tensor:
        raise BadRequest(f"{field}.data: missing (and no parameters.binary_data_size)")
    array = cast(tensor["data"], tensor.get("datatype"), field)  # type: ignore[arg-type]  # refused inside
    if array.shape == shape:
        return array
    if array.size != math.prod(shape):
        raise BadRequest(f"{field}.data: shape {list(shape)} does not hold {array.size} values")
    if array.ndim != 1:
        raise BadRequest(f"{field}.data: nested as {list(array.shape)}, but shape says {list(shape)}")
    return array.reshape(shape)


def _binary_tensor(
    tensor: Mapping[str, Any], size: Any, rest: memoryview, at: int, field: str
) -> tuple[Array, int]:
    if type(size) is not int or size < 0:
        raise BadRequest(f"{field}.parameters.binary_data_size: expected an integer >= 0, got {size!r:.80}")
    if "data" in tensor:
        raise BadRequest(f"{field}: has both data and binary_data_size; send one")
    if at + size > len(rest):
        raise BadRequest(f"{field}.parameters.binary_data_size: {size} bytes, but {len(rest) - at} are left")
    dtype_of(tensor.get("datatype"), field)
    array = unpack(rest[at : at + size], tensor["datatype"], check_shape(tensor.get("shape"), field), field)
    return array, at + size


def _requested_outputs(outputs: Any, request: InferRequest) -> None:
    if outputs is None:
        return
    if not isinstance(outputs, list) or len(outputs) > MAX_TENSORS:
        raise BadRequest(f"outputs: expected a list of at most {MAX_TENSORS} objects")
    names: list[str] = []
    binary: dict[str, bool] = {}
    for i, output in enumerate(outputs):
        if not isinstance(output, dict) or not isinstance(name := output.get("name"), str):
            raise BadRequest(f"outputs[{i}]: expected an object with a name")
        parameters = _parameters(output, f"outputs.{name}.parameters")
        check_output(name, parameters)
        if "binary_data" in parameters:
            binary[name] = _flag(parameters, "binary_data", f"outputs.{name}.parameters")
        names.append(name)
    request.outputs = tuple(dict.fromkeys(names))
    request.binary = binary


def check_output(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters of a requested output that are not served, or that nobody knows. Raises: BadRequest."""
    check_names(parameters, TENSOR_PARAMETERS, f"outputs.{name}.parameters")
    if parameters.get("classification"):
        raise BadRequest(f"outputs.{name}.parameters.classification: not served; take the top k yourself")


def is_large(arrays: Mapping[str, Array]) -> bool:
    """Whether tensors are so large that no work on all of them belongs on an event loop."""
    size = 0
    for array in arrays.values():
        size += array.nbytes
    return size > SMALL_BYTES


def encode_response(response: InferResponse, request: InferRequest) -> tuple[bytes | bytearray, int | None]:
    """Encode a response in the form the request asked for.

    Returns the body and, if binary tensors follow the JSON, the length of the JSON.
    Raises: BadRequest if a requested output does not exist, or a BYTES output to be sent as JSON is not text;
        TooLarge if more values are to be sent as JSON than a request may have.
    """
    tensors: list[dict[str, Any]] = []
    large = response.large
    chunks: list[bytes | memoryview] = []
    for name, array in response.chosen(request).items():
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array.dtype),
            "shape": list(array.shape),
        }
        if request.binary.get(name, request.binary_default):
            chunks.append(packed(array) if large else pack(array))
            tensor["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            tensor["data"] = _sliced_json(array, name) if large else _json_data(array, name)
        tensors.append(tensor)
    head = orjson.dumps(_document(response, tensors), option=orjson.OPT_SERIALIZE_NUMPY)
    if not chunks:
        return head, None
    return joined(head, chunks) if large else b"".join((head, *chunks)), len(head)


def _document(response: InferResponse, tensors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "model_name": response.model,
        "model_version": str(response.version),
        "outputs": tensors,
    }
    if response.id is not None:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    return document


def _json_data(array: Array, name: str) -> Any:
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array).ravel()
    try:
        return [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise BadRequest(f"outputs.{name}: not UTF-8 ({error}); ask for it with binary_data=true") from None


def _sliced_json(array: Array, name: str) -> orjson.Fragment:
    """Encode a tensor's values in slices. Raises: BadRequest, TooLarge."""
    if array.size > MAX_JSON_VALUES:
        raise TooLarge(
            f"outputs.{name}: {array.size} values as JSON; at most {MAX_JSON_VALUES} are sent: ask for it with "
            "binary_data=true"
        )
    data = _json_data(array, name)
    slices = (data[at : at + SLICE_VALUES] for at in range(0, len(data), SLICE_VALUES))
    return orjson.Fragment(
        b"[%s]" % b",".join(orjson.dumps(each, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for each in slices)
    )
