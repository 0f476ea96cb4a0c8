"""Decodes and encodes the Open Inference Protocol's messages as gRPC carries them; without I/O.

A replica answers with them when the gRPC proxy forwards a call, or a caller sends a message over HTTP. The response
has raw contents for a request with raw contents or without tensors, typed contents for typed ones. Parameters that a
message cannot hold, `entities`, `request`, `attributes`, `missing`, `explain` and `explanation`, are JSON texts there.
The messages' classes, made from `open_inference.proto`, live in a descriptor pool of their own: tritonclient brings the
same messages, and in one pool the two would be refused as duplicates. Source: Open Inference Protocol v2 (gRPC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from google.protobuf import (  # type: ignore[import-untyped]  # it ships no types
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from toque.ray_apps.predictor.protocol.datatypes import (
    MAX_FIELDS,
    MAX_JSON_VALUES,
    MAX_TYPED_BYTES,
    SMALL_BYTES,
    Array,
    datatype_of,
    dtype_of,
    joined,
    pack,
    packed,
    unpack,
)
from toque.ray_apps.predictor.protocol.errors import BadRequest, TooLarge
from toque.ray_apps.predictor.protocol.json import (
    MAX_TENSORS,
    OWN_PARAMETERS,
    TENSOR_PARAMETERS,
    InferRequest,
    InferResponse,
    check_identifier,
    check_names,
    check_output,
    check_shape,
    with_decoded,
)

PROTOBUF: Final = b"application/x-protobuf"
"""The content type of a message over HTTP."""
_BY_KIND = {"b": "bool_contents", "O": "bytes_contents", "f4": "fp32_contents", "f8": "fp64_contents",
            "i8": "int64_contents", "u8": "uint64_contents", "i": "int_contents", "u": "uint_contents"}  # fmt: skip
DESCRIPTION = Path(__file__).with_name("open_inference.binpb")
SERVICE: Final = "inference.GRPCInferenceService"
_RAW_CONTENTS: Final = 7 << 3 | 2
_RAW_OUTPUT: Final = 6  # field of a response
_VARINT_BYTES: Final = 10
_FIXED: Final = {1: 8, 5: 4}


def decode_message(body: bytes | bytearray) -> tuple[InferRequest, bool]:
    """Decode a ModelInferRequest; returns it, and whether its tensors are typed contents.

    Raises: BadRequest or TooLarge, naming the field.
    """
    message, raw = parse_message(body)
    request = InferRequest(
        inputs=_inputs(message, raw),
        id=check_identifier(message.id),
        parameters=_request_parameters(message.parameters),
        outputs=_outputs(message.outputs),
    )
    return request, bool(message.inputs) and not raw


def parse_message(body: bytes | bytearray) -> tuple[Any, Sequence[bytes | memoryview]]:
    """Parse a ModelInferRequest; returns it and its raw contents, which a large message does not hold.

    Raises: BadRequest; TooLarge for a message whose parts beside the raw contents take long to parse.
    """
    try:
        if len(body) <= SMALL_BYTES:
            message = ModelInferRequest.FromString(bytes(body))
            return message, message.raw_input_contents
        head, raw = _without_raw(memoryview(body))
        return ModelInferRequest.FromString(head), raw
    except DecodeError as error:
        raise BadRequest(f"message: not a ModelInferRequest: {error}") from None


def _without_raw(body: memoryview) -> tuple[bytes, list[memoryview]]:
    """Split a message into its other fields and its raw contents. Raises: DecodeError, TooLarge."""
    head, at = bytearray(), 0
    raw: list[memoryview] = []
    for _ in range(MAX_FIELDS):
        if at == len(body):
            return bytes(head), raw
        begin = at
        tag, at = _varint(body, at)
        length, at = _field_length(body, tag & 7, at)
        if at + length > len(body):
            raise DecodeError("a field is cut off")
        if tag == _RAW_CONTENTS:
            raw.append(body[at : at + length])
        else:
            head += body[begin : at + length]
        at += length
        if len(head) > MAX_TYPED_BYTES:
            raise TooLarge(
                f"message: more than {MAX_TYPED_BYTES} bytes beside raw_input_contents; send tensors as raw contents"
            )
    raise TooLarge(f"message: more than {MAX_FIELDS} fields; send fewer tensors")


def _varint(body: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(body[at : at + _VARINT_BYTES]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:  # noqa: PLR2004  # the last byte's highest bit is 0
            return value, at + i + 1
    raise DecodeError("a number is cut off")


def _field_length(body: memoryview, wire_type: int, at: int) -> tuple[int, int]:
    """Bytes of a field's value, and where it begins."""
    if wire_type == 0:
        return 0, _varint(body, at)[1]
    if wire_type == 2:  # noqa: PLR2004  # with its length before it
        return _varint(body, at)
    if wire_type in _FIXED:
        return _FIXED[wire_type], at
    raise DecodeError(f"wire type {wire_type} is unknown")


def length_delimited(field: int, size: int) -> bytes:
    """Tag and length of a field of bytes, which follow."""
    out = bytearray([field << 3 | 2])
    while size > 127:  # noqa: PLR2004  # seven bits a byte
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


def _outputs(wanted: Any) -> tuple[str, ...]:
    if not wanted:
        return ()
    if len(wanted) > MAX_TENSORS:
        raise BadRequest(f"outputs: {len(wanted)} outputs; at most {MAX_TENSORS} are accepted")
    for output in wanted:
        check_output(output.name, _parameters(output.parameters))
    return tuple(dict.fromkeys(output.name for output in wanted))


def _inputs(message: Any, raw: Sequence[bytes | memoryview]) -> dict[str, Array]:
    tensors = message.inputs
    if len(tensors) > MAX_TENSORS:
        raise BadRequest(f"inputs: {len(tensors)} tensors; at most {MAX_TENSORS} are accepted")
    if raw and len(raw) != len(tensors):
        raise BadRequest(f"raw_input_contents: {len(raw)} for {len(tensors)} inputs; send one for each")
    arrays: dict[str, Array] = {}
    for i, tensor in enumerate(tensors):
        name = tensor.name
        if name in arrays:
            raise BadRequest(f"inputs[{i}].name: {name!r} is given twice")
        if tensor.parameters:
            check_names(dict.fromkeys(tensor.parameters), TENSOR_PARAMETERS, f"inputs.{name}.parameters")
        arrays[name] = _array(tensor, raw[i] if raw else None, f"inputs.{name}")
    return arrays


def _array(tensor: Any, raw: bytes | memoryview | None, field: str) -> Array:
    shape = check_shape(tuple(tensor.shape), field)
    if raw is None:
        raw = _packed(tensor, field)
    elif tensor.HasField("contents"):
        raise BadRequest(f"{field}.contents: the request has raw_input_contents; send one of both")
    return unpack(raw, tensor.datatype, shape, field)


def _packed(tensor: Any, field: str) -> bytes:
    """Pack a tensor's typed contents as raw bytes."""
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
    """The field of typed contents for a dtype; None for 16-bit floats, which have no field."""
    exact = _BY_KIND.get(f"{dtype.kind}{dtype.itemsize}")
    return exact or _BY_KIND.get(dtype.kind)


def _request_parameters(parameters: Any) -> Mapping[str, Any]:
    found = _parameters(parameters)
    check_names(found, OWN_PARAMETERS, "parameters")
    return found


def _parameters(parameters: Any) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name, holder in parameters.items() if parameters else ():
        kind = holder.WhichOneof("parameter_choice")
        value = None if kind is None else getattr(holder, kind)
        found[name] = value
    return with_decoded(found)


def encode_message(response: InferResponse, request: InferRequest, *, typed: bool) -> bytes | bytearray:
    """Encode a response as a ModelInferResponse.

    typed: with typed contents, unless an output is of 16-bit floats, which have no field for them, or of more values
    than JSON may have.
    Raises: BadRequest if a requested output does not exist.
    """
    outputs = response.chosen(request)
    typed = typed and all(
        _field_of(array.dtype) and array.size <= MAX_JSON_VALUES for array in outputs.values()
    )
    large = response.large and not typed
    raw: list[bytes | memoryview] = []
    parts = [_encoded_head(response.model, response.version, response.parameters.get("arm"))]
    own = ModelInferResponse(id=response.id or "")
    _set_parameters(own.parameters, response.parameters)
    for name, array in outputs.items():
        if typed:
            shown = own.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
            _fill(shown.contents, array)
        else:
            parts.append(_encoded_output(name, array.dtype, array.shape))
            if large:
                data = packed(array)
                raw += (length_delimited(_RAW_OUTPUT, len(data)), data)
            else:
                own.raw_output_contents.append(pack(array))
    parts.append(own.SerializeToString())
    return joined(b"".join(parts), raw) if large else b"".join(parts)


@lru_cache(maxsize=1_024)
def _encoded_head(model: str, version: int, arm: str | None) -> bytes:
    """Encode the fields that all responses of one arm share; concatenated messages merge into one."""
    message = ModelInferResponse(model_name=model, model_version=str(version))
    if arm is not None:
        message.parameters["arm"].string_param = arm
    encoded: bytes = message.SerializeToString()
    return encoded


@lru_cache(maxsize=1_024)
def _encoded_output(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Encode the description of an output whose contents are raw."""
    message = ModelInferResponse()
    message.outputs.add(name=name, datatype=datatype_of(dtype), shape=shape)
    encoded: bytes = message.SerializeToString()
    return encoded


def _fill(contents: Any, array: Array) -> None:
    field = _field_of(array.dtype)
    assert field is not None  # noqa: S101 - checked by the caller
    items = array.ravel().tolist()
    if array.dtype.kind == "O":  # a class of a user's may answer with texts
        items = [item.encode() if isinstance(item, str) else item for item in items]
    getattr(contents, field).extend(items)


def _set_parameters(holders: Any, parameters: Mapping[str, Any]) -> None:
    """Set all parameters of a message but the arm."""
    for name, value in parameters.items():
        if name == "arm":
            continue
        holder = holders[name]
        if isinstance(value, bool):
            holder.bool_param = value
        elif isinstance(value, int):
            holder.int64_param = value
        elif isinstance(value, float):
            holder.double_param = value
        else:
            holder.string_param = value if isinstance(value, str) else _text(value)


def _text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _load() -> dict[str, Any]:
    """Load the message classes by full name, and the service's descriptor by its own."""
    pool = descriptor_pool.DescriptorPool()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTION.read_bytes()).file
    pool.Add(file)
    classes: dict[str, Any] = message_factory.GetMessageClassesForFiles([file.name], pool)
    return classes | {SERVICE: pool.FindServiceByName(SERVICE)}


_found = _load()
InferParameter: Any = _found["inference.InferParameter"]
ModelConfigResponse: Any = _found["inference.ModelConfigResponse"]
ModelInferRequest: Any = _found["inference.ModelInferRequest"]
ModelInferResponse: Any = _found["inference.ModelInferResponse"]
ModelMetadataResponse: Any = _found["inference.ModelMetadataResponse"]
ModelReadyResponse: Any = _found["inference.ModelReadyResponse"]
ModelStatisticsResponse: Any = _found["inference.ModelStatisticsResponse"]
ModelStreamInferResponse: Any = _found["inference.ModelStreamInferResponse"]
RepositoryIndexResponse: Any = _found["inference.RepositoryIndexResponse"]
ServerLiveResponse: Any = _found["inference.ServerLiveResponse"]
ServerMetadataResponse: Any = _found["inference.ServerMetadataResponse"]
ServerReadyResponse: Any = _found["inference.ServerReadyResponse"]

METHODS: Final[dict[str, Any]] = {
    method.name: _found[method.input_type.full_name] for method in _found[SERVICE].methods
}
"""The class of a method's request, by the method's name."""

__all__ = [
    "METHODS",
    "PROTOBUF",
    "SERVICE",
    "InferParameter",
    "ModelConfigResponse",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataResponse",
    "ModelReadyResponse",
    "ModelStatisticsResponse",
    "ModelStreamInferResponse",
    "RepositoryIndexResponse",
    "ServerLiveResponse",
    "ServerMetadataResponse",
    "ServerReadyResponse",
    "decode_message",
    "encode_message",
    "length_delimited",
    "parse_message",
]
