"""Tensors of a request as the log keeps them, with the type, shape and bits that the model saw and gave.

A number is its little-endian bytes, as in the protocol, so that a NaN keeps its payload and a zero its sign. An item of a BYTES
tensor is a length and its bytes; the length `_MISSING` stands for a missing text. A tensor whose first dimension is the rows
is cut into its rows; another one belongs to the whole request.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from toque.functions.prediction_log.errors import PredictionLogError

__all__ = ["LARGE_BYTES", "LoggedTensor", "read_value"]

LARGE_BYTES = 16 << 10
"""Bytes of one row's tensor above which the row names them by their SHA-256, and they stand in a table beside it."""

Array = npt.NDArray[Any]
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<I")
_MISSING = 0xFFFFFFFF


class LoggedTensor(NamedTuple):
    """Tensor of one request in a record of the log.

    output: whether the model gave it. datatype: the protocol's name. shape: of one row's value, or of the whole tensor if it
    belongs to the request. data: the bytes of all rows, of each row for BYTES, or of the whole tensor.
    """

    output: bool
    name: str
    datatype: str
    shape: Sequence[int]
    by_row: bool
    data: bytes | Sequence[bytes]

    @classmethod
    def of(cls, name: str, array: Array, *, rows: int, output: bool) -> LoggedTensor | None:
        """Pack an array; None if its type is not one of the protocol's, or it holds items that are no texts."""
        datatype = _NAMES.get(array.dtype)
        if datatype is None:
            return None
        by_row = array.ndim > 0 and array.shape[0] == rows
        shape = [int(size) for size in (array.shape[1:] if by_row else array.shape)]
        if datatype != "BYTES":
            return cls(output, name, datatype, shape, by_row, array.tobytes())
        try:
            data = [_packed(each) for each in array] if by_row else _packed(array)
        except TypeError:
            return None
        return cls(output, name, datatype, shape, by_row, data)

    @property
    def size_bytes(self) -> int:
        """Number of bytes of the whole tensor."""
        return len(self.data) if isinstance(self.data, bytes) else sum(map(len, self.data))

    def values(self, rows: int) -> list[bytes]:
        """Cut into the bytes of each row; a tensor of the whole request is each row's."""
        if not self.by_row:
            return [bytes(self.data)] * rows  # type: ignore[arg-type]  # only a tensor by row is a list
        if not isinstance(self.data, bytes):
            return list(self.data)
        size = len(self.data) // rows
        return [self.data[at * size : (at + 1) * size] for at in range(rows)]


def read_value(datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """Read one row's value as an array of its own.

    Raises: PredictionLogError if the datatype is unknown, or the bytes do not fit type and shape.
    """
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise PredictionLogError(f"a logged tensor has datatype {datatype!r}; a newer release wrote it")
    try:
        flat = _items(data) if datatype == "BYTES" else np.frombuffer(bytearray(data), dtype)
        return flat.reshape(tuple(shape))
    except (ValueError, struct.error) as error:
        raise PredictionLogError(
            f"a logged tensor of {datatype} {list(shape)} has {len(data)} bytes: {error}"
        ) from None


def _packed(value: Any) -> bytes:
    """Pack the texts of an array, or a single one. Raises: TypeError for an item that is no text."""
    items = value.ravel().tolist() if isinstance(value, np.ndarray) else [value]
    parts: list[bytes] = []
    for item in items:
        if item is None:
            parts.append(_LENGTH.pack(_MISSING))
            continue
        raw = item.encode() if isinstance(item, str) else item
        if not isinstance(raw, bytes):
            raise TypeError(type(item).__name__)
        parts += (_LENGTH.pack(len(raw)), raw)
    return b"".join(parts)


def _items(data: bytes) -> Array:
    found: list[bytes | None] = []
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length == _MISSING:
            found.append(None)
            continue
        if at + length > len(data):
            raise ValueError(f"item {len(found)} is cut off")
        found.append(data[at : at + length])
        at += length
    out = np.empty(len(found), dtype=object)
    out[:] = found
    return out
