"""Encoding of a view's row as bytes: the value in Redis, and the order that breaks exact ties.

    offset  bytes  content
    0       1      encoding version, 1
    1       4      fingerprint of the layout (field names and types), little-endian
    5       8      event time, microseconds since 1970 UTC, signed little-endian
    13      8      created time, likewise
    21      B      null bitmap, one bit a field, B = ceil(fields / 8), least significant bit first
    21+B    …      one fixed slot a field, in schema order: 8 bytes (Float64, Int64, UnixTimestamp), 4 (Float32,
                   Int32, a String's length in bytes), 1 (Bool); zero where null
    …       …      the strings' bytes, in schema order

Bytes 0 to 20 keep their meaning in every version: writers compare times without knowing the layout.
"""

import struct
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions.dtypes import DType
from featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Field
from featurestore.errors import UnreadableRow

ENCODING_VERSION = 1
HEADER = struct.Struct("<BIqq")
HEADER_BYTES = HEADER.size

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMPY_SLOT = {"d": "<f8", "f": "<f4", "q": "<i8", "i": "<i4", "B": "u1", "I": "<u4"}

Decoded = tuple[int, int, tuple[Any, ...]]


def from_microseconds(value: int) -> datetime:
    """Convert microseconds since 1970 to an aware UTC time."""
    return _EPOCH + timedelta(microseconds=value)


def to_microseconds(value: datetime) -> int:
    """Convert an aware time to microseconds since 1970 UTC, exactly."""
    return (value - _EPOCH) // timedelta(microseconds=1)


def microseconds(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Convert a timestamp column without nulls to (rows,) int64 microseconds."""
    chunks = column.cast(pa.int64())
    flat = chunks.combine_chunks() if isinstance(chunks, pa.ChunkedArray) else chunks
    values: np.ndarray[Any, np.dtype[np.int64]] = flat.to_numpy(zero_copy_only=False)
    return values


class RowLayout:
    """Layout of the fields of one version of a view in a packed row.

    fields: the features in schema order.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.names = tuple(f.name for f in fields)
        text = ";".join(f"{f.name}:{f.dtype.value}" for f in fields)
        self.fingerprint = zlib.crc32(text.encode())
        self._bitmap_bytes = (len(self.fields) + 7) // 8
        slots = "".join(f.dtype.slot for f in fields)
        self._struct = struct.Struct(f"<BIqq{self._bitmap_bytes}s{slots}")
        self._strings = [i for i, f in enumerate(fields) if f.dtype is DType.STRING]
        self._bools = [i for i, f in enumerate(fields) if f.dtype is DType.BOOL]
        self._times = [i for i, f in enumerate(fields) if f.dtype is DType.UNIX_TIMESTAMP]
        self._plain = not (self._strings or self._bools or self._times)
        self._no_nulls = bytes(self._bitmap_bytes)

    def encode(self, rows: pa.Table) -> list[bytes]:
        """Pack every row of a table into bytes.

        rows: the fields, `event_timestamp` and `created_timestamp`, typed as the view says.
        """
        fixed = self._fixed(rows)
        size, data = fixed.dtype.itemsize, fixed.tobytes()
        packed = [data[at : at + size] for at in range(0, len(data), size)]
        if not self._strings:
            return packed
        tails = [self._utf8(rows.column(self.names[i])) for i in self._strings]
        return [b"".join(parts) for parts in zip(packed, *tails, strict=True)]

    def _fixed(self, rows: pa.Table) -> np.ndarray[Any, Any]:
        slots = [(f"f{i}", _NUMPY_SLOT[f.dtype.slot]) for i, f in enumerate(self.fields)]
        head = [("version", "u1"), ("layout", "<u4"), ("event", "<i8"), ("created", "<i8")]
        packed = np.zeros(rows.num_rows, dtype=[*head, ("nulls", "u1", (self._bitmap_bytes,)), *slots])
        packed["version"] = ENCODING_VERSION
        packed["layout"] = self.fingerprint
        packed["event"] = microseconds(rows.column(EVENT_TIMESTAMP))
        packed["created"] = microseconds(rows.column(CREATED_TIMESTAMP))
        nulls = np.zeros((rows.num_rows, self._bitmap_bytes * 8), dtype=bool)
        for i, f in enumerate(self.fields):
            column = rows.column(f.name)
            packed[f"f{i}"] = _slot_values(column, f.dtype)
            if column.null_count:
                nulls[:, i] = column.is_null().to_numpy()
        packed["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
        return packed

    @staticmethod
    def _utf8(column: pa.ChunkedArray) -> list[bytes]:
        return [value or b"" for value in column.cast(pa.binary()).to_pylist()]

    def decode(self, value: bytes) -> Decoded:
        """Unpack one row to event time, created time (microseconds) and values, None where null.

        Raises: UnreadableRow if the row is shorter than its layout.
        """
        try:
            _, _, event, created, nulls, *slots = self._struct.unpack_from(value)
        except struct.error as error:
            msg = f"a row of {len(value)} bytes is shorter than its layout ({self._struct.size}); materialize again"
            raise UnreadableRow(msg) from error
        if not self._plain:
            self._convert(value, slots)
        if nulls != self._no_nulls:
            bits = int.from_bytes(nulls, "little")
            slots = [None if bits >> i & 1 else slot for i, slot in enumerate(slots)]
        return event, created, tuple(slots)

    def _convert(self, value: bytes, slots: list[Any]) -> None:
        at = self._struct.size
        for i in self._strings:
            end = at + slots[i]
            slots[i] = value[at:end].decode()
            at = end
        for i in self._bools:
            slots[i] = bool(slots[i])
        for i in self._times:
            slots[i] = from_microseconds(slots[i])


def _slot_values(column: pa.ChunkedArray, dtype: DType) -> np.ndarray[Any, Any]:
    """Values for the fixed slots of one field, zero where null."""
    if dtype is DType.STRING:
        column = pc.binary_length(column)
    elif dtype is DType.BOOL:
        column = column.cast(pa.uint8())
    elif dtype is DType.UNIX_TIMESTAMP:
        column = column.cast(pa.int64())
    filled = column.fill_null(0) if column.null_count else column
    values: np.ndarray[Any, Any] = filled.to_numpy()
    return values


def precedence(value: bytes) -> tuple[int, int, bytes]:
    """Sort key that decides between two packed rows of one key: the greater wins.

    Compares event time, then created time, then the bytes after the header (an exact tie has to fall the same way everywhere).
    """
    _, _, event, created = HEADER.unpack_from(value)
    return event, created, value[HEADER_BYTES:]
