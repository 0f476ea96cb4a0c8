"""The tensor datatypes of the Open Inference Protocol and their numpy equivalents, and bounds on what a step decodes.

BYTES tensors are numpy object arrays whose items are `bytes`, or None for a JSON null. BF16 has no numpy type and is refused.
On the wire numbers are little-endian, as they are in the memory of every machine that Ray runs on.
Source: Open Inference Protocol v2, "Tensor Data Types".

Parsers hold the interpreter's lock from the first byte to the last, in whatever thread they run, and their time grows with
the number of values. So JSON and typed contents are bounded by that number; tensors as bytes are only copied, piece by
piece. Whatever is larger than `SMALL_BYTES` is decoded and encoded off the event loop.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from toque.ray_apps.predictor.protocol.errors import BadRequest, TooLarge

Array = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST = {
    "FP16": math.nextafter(65_520.0, 0),
    "FP32": math.nextafter((2 - 2**-24) * 2.0**127, 0),
    "FP64": sys.float_info.max,
}
"""Greatest float64 that rounds to a number of each type: half a step further it is infinity."""
_MOST_NESTED = 8  # dimensions of a shape
_FEW = 256  # up to here Python's min and max over the list are faster than numpy's
_LENGTH = struct.Struct("<I")
_PIECE_BYTES = 4 << 20
SMALL_BYTES: Final = 64 << 10
"""Size up to which decoding takes a few milliseconds at most, and is done on the event loop."""
MAX_JSON_BYTES: Final = 8 << 20
MAX_JSON_VALUES: Final = 262_144
"""Numbers, texts, names and brackets in the JSON of one request: some 25 ms of parsing, 50 at the very most."""
MAX_TYPED_BYTES: Final = 1 << 20
"""Size of a message without its raw contents."""
MAX_FIELDS: Final = 4_096
"""Fields on the first level of a message of more than `SMALL_BYTES`."""
MAX_ITEMS: Final = 262_144
"""Items of a BYTES tensor, each of which is an object of some 50 bytes in memory."""
SLICE_VALUES: Final = 65_536
"""Values that are written as JSON in one step."""
_LOOK_BEHIND: Final = 64
_SEPARATORS: Final = (b",", b"[", b"{", b":")


def dtype_of(datatype: Any, field: str) -> np.dtype[Any]:
    """The numpy dtype of a protocol datatype.

    Raises: BadRequest naming `field` if the datatype is not one that is served (BF16 included).
    """
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise BadRequest(f"{field}.datatype: {datatype!r} is not served; use one of {', '.join(DTYPES)}")
    return dtype


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype.

    Raises: ValueError if the protocol has no such type.
    """
    name = _NAMES.get(dtype)
    if name is None:
        raise ValueError(f"dtype {dtype} has no Open Inference Protocol datatype; use one of {list(DTYPES)}")
    return name


def cast(values: Any, datatype: str, field: str) -> Array:
    """Turn decoded JSON values (nested lists) into an array of `datatype`, refusing every lossy conversion.

    values: a list, flat or nested; null is NaN in floating point tensors, None in BYTES, refused elsewhere.
    Raises: BadRequest naming `field` for ragged lists, wrong types and values out of range.
    """
    dtype = dtype_of(datatype, field)
    if not isinstance(values, list):
        raise BadRequest(f"{field}.data: expected a list, got {type(values).__name__}")
    if dtype.kind == "O":
        return _text(values, field)
    try:
        raw = np.array(values)
    except (ValueError, OverflowError, TypeError) as error:
        raise BadRequest(
            f"{field}.data: ragged or mixed lists ({error}); rows must have one length"
        ) from None
    if raw.size == 0:
        return raw.astype(dtype) if raw.dtype.kind != "O" else np.zeros(raw.shape, dtype)
    if dtype.kind == "f":
        return _floats(raw, values, dtype, datatype, field)
    return _exact(raw, values, dtype, datatype, field)


def refuse_truths(values: Any, datatype: Any, field: str) -> None:
    """Check the JSON values of a tensor of numbers for true and false, which numpy takes for 1 and 0. Raises: BadRequest."""
    if datatype in ("BOOL", "BYTES") or not isinstance(values, list):
        return
    flat: list[Any] = values
    for _ in range(_MOST_NESTED):
        kinds = set(map(type, flat))
        if bool in kinds:
            truth = next(each for each in flat if isinstance(each, bool))
            raise BadRequest(
                f"{field}.data: {datatype} needs numbers, got {truth}; send 1 for true and 0 for false"
            )
        if list not in kinds:
            return
        flat = list(chain.from_iterable(each for each in flat if isinstance(each, list)))


def _floats(raw: Array, values: list[Any], dtype: np.dtype[Any], datatype: str, field: str) -> Array:
    nullable = raw.dtype.kind == "O"  # nulls, or integers beyond 64 bits
    if nullable:
        raw = _nullable(raw, datatype, field)
    if raw.dtype.kind not in "fiu":
        raise BadRequest(f"{field}.data: {datatype} needs numbers, got {raw.dtype.name}")
    limit = _LARGEST[datatype]
    few = raw.ndim == 1 and raw.size < _FEW and not nullable
    low, high = (min(values), max(values)) if few else _range(raw)
    if high > limit or low < -limit:
        value = high if high > limit else low
        raise BadRequest(
            f"{field}.data: {value!r} is out of the range of {datatype}; send null or a number that it holds"
        )
    return raw.astype(dtype, copy=False)


def _range(raw: Array) -> tuple[float, float]:
    return float(np.fmin.reduce(raw, axis=None)), float(np.fmax.reduce(raw, axis=None))


def _nullable(raw: Array, datatype: str, field: str) -> Array:
    for value in raw.ravel():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise BadRequest(f"{field}.data: {datatype} needs numbers or null, got {value!r:.80}")
    try:
        return raw.astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequest(f"{field}.data: {datatype} cannot hold it: {error}") from None


def _exact(raw: Array, values: list[Any], dtype: np.dtype[Any], datatype: str, field: str) -> Array:
    if dtype.kind == "b":
        if raw.dtype.kind != "b":
            raise BadRequest(f"{field}.data: BOOL needs true or false, got {raw.dtype.name}")
        return raw
    if raw.dtype.kind not in "iu":
        raw = _integers(values, datatype, field)
    info = np.iinfo(dtype)
    low, high = int(raw.min()), int(raw.max())
    if low < info.min or high > info.max:
        raise BadRequest(f"{field}.data: {low if low < info.min else high} is out of the range of {datatype}")
    return raw.astype(dtype, copy=False)


def _integers(values: list[Any], datatype: str, field: str) -> Array:
    """Convert integers that numpy did not recognize, above all mixtures around 2**63."""
    try:
        raw = np.array(values, dtype=object)
    except ValueError as error:
        raise BadRequest(f"{field}.data: ragged lists ({error}); rows must have one length") from None
    for value in raw.ravel():
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadRequest(f"{field}.data: {datatype} needs integers, got {value!r:.80}")
    return raw


def _text(values: list[Any], field: str) -> Array:
    shape: tuple[int, ...] = ()
    flat: list[Any] = values
    shape = (len(flat),)
    while flat and isinstance(flat[0], list):
        width = len(flat[0])
        if not all(isinstance(row, list) and len(row) == width for row in flat):
            raise BadRequest(f"{field}.data: ragged lists; rows must have one length")
        shape = (*shape, width)
        flat = [item for row in flat for item in row]
    out = np.empty(len(flat), dtype=object)
    for i, item in enumerate(flat):
        if item is None:
            continue
        if not isinstance(item, str):
            raise BadRequest(f"{field}.data: BYTES needs strings or null, got {item!r:.80}")
        out[i] = item.encode()
    return out.reshape(shape)


def unpack(data: bytes | memoryview, datatype: str, shape: tuple[int, ...], field: str) -> Array:
    """Unpack a tensor from little-endian bytes; BYTES items are prefixed by a 4-byte length.

    Raises: BadRequest naming `field` if the number of bytes does not fit the shape; TooLarge for too many items.
    """
    dtype = dtype_of(datatype, field)
    size = math.prod(shape)
    if dtype.kind == "O":
        return _unpack_bytes(data, size, field).reshape(shape)
    if len(data) != size * dtype.itemsize:
        raise BadRequest(
            f"{field}: {datatype} of shape {list(shape)} is {size * dtype.itemsize} bytes, got {len(data)}"
        )
    if dtype.kind == "b" and (np.frombuffer(data, np.uint8) > 1).any():
        raise BadRequest(f"{field}: BOOL bytes must be 0 or 1")
    if len(data) > SMALL_BYTES:  # numpy copies without holding the interpreter
        return np.frombuffer(data, np.uint8).copy().view(dtype).reshape(shape)
    return np.frombuffer(bytearray(data), dtype).reshape(shape)  # a writable copy, as from JSON


def _unpack_bytes(data: bytes | memoryview, size: int, field: str) -> Array:
    if size > MAX_ITEMS:
        raise TooLarge(f"{field}.shape: {size} BYTES items; at most {MAX_ITEMS} are accepted in one tensor")
    if size * _LENGTH.size > len(data):
        raise BadRequest(f"{field}: {size} BYTES items need at least {size * 4} bytes, got {len(data)}")
    out = np.empty(size, dtype=object)
    at = 0
    for i in range(size):
        if at + _LENGTH.size > len(data):
            raise BadRequest(f"{field}: BYTES item {i} is cut off at byte {at} of {len(data)}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise BadRequest(f"{field}: BYTES item {i} claims {length} bytes, {len(data) - at} are left")
        out[i] = bytes(data[at : at + length])
        at += length
    if at != len(data):
        raise BadRequest(f"{field}: {len(data) - at} bytes are left after {size} BYTES items")
    return out


def pack(array: Array) -> bytes:
    """Pack a tensor into bytes as `unpack` reads them.

    Raises: TypeError if an object array holds anything but bytes or str.
    """
    if array.dtype.kind != "O":
        return array.tobytes()
    parts: list[bytes] = []
    for item in array.ravel():
        raw = item.encode() if isinstance(item, str) else item
        if not isinstance(raw, bytes):
            raise TypeError(f"a BYTES tensor holds bytes or str, got {type(item).__name__}")
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def packed(array: Array) -> memoryview:
    """Bytes of a tensor as `pack` has them, without a copy where there need be none. Raises: TypeError."""
    if array.dtype.kind == "O":
        return memoryview(pack(array))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def joined(head: bytes, tensors: Iterable[bytes | memoryview]) -> bytearray:
    """Append tensors to `head` in pieces, so that copying them holds the interpreter for a moment only."""
    out = bytearray(head)
    for tensor in tensors:
        for at in range(0, len(tensor), _PIECE_BYTES):
            out += tensor[at : at + _PIECE_BYTES]
    return out


def check_json(text: bytes | bytearray) -> None:
    """Refuse JSON that takes long to parse. Raises: TooLarge, with the remedy."""
    if len(text) <= SMALL_BYTES:
        return
    if len(text) > MAX_JSON_BYTES:
        raise TooLarge(
            f"body: {len(text)} bytes of JSON; at most {MAX_JSON_BYTES} are accepted: send binary tensors"
        )
    values = sum(map(text.count, _SEPARATORS))
    if values > MAX_JSON_VALUES:
        raise TooLarge(
            f"body: about {values} values as JSON; at most {MAX_JSON_VALUES} are accepted: send binary tensors"
        )


def has_listed_truths(text: bytes | bytearray) -> bool:
    """Whether JSON may have true or false in an array, by the text before each; it costs a search for the two words."""
    for word in (b"true", b"false"):
        at = text.find(word)
        while at >= 0:
            before = text[max(0, at - _LOOK_BEHIND) : at].rstrip()
            if not before or before[-1:] in (b"[", b","):
                return True
            at = text.find(word, at + len(word))
    return False


__all__ = [
    "DTYPES",
    "MAX_FIELDS",
    "MAX_ITEMS",
    "MAX_JSON_BYTES",
    "MAX_JSON_VALUES",
    "MAX_TYPED_BYTES",
    "SLICE_VALUES",
    "SMALL_BYTES",
    "Array",
    "cast",
    "check_json",
    "datatype_of",
    "dtype_of",
    "has_listed_truths",
    "joined",
    "pack",
    "packed",
    "refuse_truths",
    "unpack",
]
