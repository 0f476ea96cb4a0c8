"""Encoding of a view's row as bytes: the value in Redis, and the order that breaks exact ties.

    offset  bytes  content
    0       1      encoding version, 1
    1       4      fingerprint of the layout (field names and types), little-endian
    5       8      event time, microseconds since 1970 UTC, signed little-endian
    13      8      created time, likewise
    21      B      null bitmap, one bit a field, B = ceil(fields / 8), least significant bit first
    21+B    …      one fixed slot a field, in schema order: 8 bytes (Float64, Int64, UnixTimestamp), 4 (Float32,
                   Int32), 1 (Bool), 16 (Decimal), 4 a number (Vector), 4 (how many bytes a String, List or Map takes);
                   zero where null
    …       …      the bytes of strings, lists and maps, in schema order; none where null

    String   UTF-8
    List     count (4 bytes); if its items may be null, a bitmap of ceil(count / 8) bytes, least significant bit first;
             then the items: numbers and times in their slots, texts as count lengths (4 bytes each) and their UTF-8
    Map      count (4 bytes), count lengths of keys (4 bytes each), the keys' UTF-8, the values in their slots;
             in the order of the keys' bytes, so that equal maps have equal bytes

Bytes 0 to 20 keep their meaning in every version: writers compare times without knowing the layout.
"""

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Context
from decimal import Decimal as DecimalNumber
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.dtypes import (
    MAX_PRECISION,
    Decimal,
    DType,
    FeatureType,
    List,
    Map,
    Vector,
)
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Field
from toque.featurestore.errors import UnreadableRow
from toque.registry.times import from_epoch_us

ENCODING_VERSION = 1
HEADER = struct.Struct("<BIqq")
HEADER_BYTES = HEADER.size
NUMPY_SLOT = {"d": "<f8", "f": "<f4", "q": "<i8", "i": "<i4", "B": "u1", "I": "<u4"}
_COUNT = struct.Struct("<I")
_WORD = np.dtype("<u4")
_DECIMAL_BYTES = 16
_EXACT = Context(prec=MAX_PRECISION)

Decoded = tuple[int, int, tuple[Any, ...]]
Array = np.ndarray[Any, Any]


def microseconds(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Convert a timestamp column without nulls to (rows,) int64 microseconds."""
    whole = column.cast(pa.int64())
    if isinstance(whole, pa.ChunkedArray):  # one chunk is not copied
        whole = whole.chunk(0) if whole.num_chunks == 1 else whole.combine_chunks()
    values: np.ndarray[Any, np.dtype[np.int64]] = whole.to_numpy(zero_copy_only=False)
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
        self._tails = [(i, f.dtype) for i, f in enumerate(fields) if has_tail(f.dtype)]
        found = ((i, _reader(f.dtype)) for i, f in enumerate(fields))
        self._readers = [(i, reader) for i, reader in found if reader is not None]
        self._plain = not (self._tails or self._readers)
        self._no_nulls = bytes(self._bitmap_bytes)

    def encode(self, rows: pa.Table) -> list[bytes]:
        """Pack every row of a table into bytes.

        rows: the fields, `event_timestamp` and `created_timestamp`, typed as the view says.
        """
        ends = {i: encode(dtype, rows.column(self.names[i])) for i, dtype in self._tails}
        fixed = self._fixed(rows, ends)
        size, data = fixed.dtype.itemsize, fixed.tobytes()
        packed = [data[at : at + size] for at in range(0, len(data), size)]
        if not ends:
            return packed
        return [b"".join(parts) for parts in zip(packed, *ends.values(), strict=True)]

    def _fixed(self, rows: pa.Table, ends: Mapping[int, Sequence[bytes]]) -> np.ndarray[Any, Any]:
        slots = [(f"f{i}", *_numpy_slot(f.dtype)) for i, f in enumerate(self.fields)]
        head = [("version", "u1"), ("layout", "<u4"), ("event", "<i8"), ("created", "<i8")]
        packed = np.zeros(rows.num_rows, dtype=[*head, ("nulls", "u1", (self._bitmap_bytes,)), *slots])
        packed["version"] = ENCODING_VERSION
        packed["layout"] = self.fingerprint
        packed["event"] = microseconds(rows.column(EVENT_TIMESTAMP))
        packed["created"] = microseconds(rows.column(CREATED_TIMESTAMP))
        nulls = np.zeros((rows.num_rows, self._bitmap_bytes * 8), dtype=bool)
        for i, f in enumerate(self.fields):
            column = rows.column(f.name)
            packed[f"f{i}"] = [len(end) for end in ends[i]] if i in ends else _slot_values(column, f.dtype)
            if column.null_count:
                nulls[:, i] = column.is_null().to_numpy()
        packed["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
        return packed

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
        for i, dtype in self._tails:
            end = at + slots[i]
            slots[i] = value[at:end].decode() if dtype is DType.STRING else decode(dtype, value, at, end)
            at = end
        for i, read in self._readers:
            slots[i] = read(slots[i])


def _numpy_slot(dtype: FeatureType) -> tuple[Any, ...]:
    """Form of a field's fixed slot as numpy writes it, with its shape if it has one."""
    if isinstance(dtype, Vector):
        return "<f4", (dtype.length,)
    if isinstance(dtype, Decimal):
        return "u1", (_DECIMAL_BYTES,)
    return (NUMPY_SLOT[dtype.slot],)


def _slot_values(column: pa.ChunkedArray, dtype: FeatureType) -> np.ndarray[Any, Any]:
    """Values for the fixed slots of one field, zero where null."""
    if isinstance(dtype, Vector):
        return vectors_of(column, dtype.length)
    if isinstance(dtype, Decimal):
        filled = column.fill_null(DecimalNumber(0)).combine_chunks()
        raw = np.frombuffer(filled.buffers()[1], np.uint8)
        return raw.reshape(-1, _DECIMAL_BYTES)[filled.offset : filled.offset + len(filled)]
    if isinstance(dtype, DType):
        return slot_values(dtype, column)
    raise TypeError(f"{dtype} has no fixed size")


def vectors_of(column: pa.ChunkedArray, length: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Convert a column of vectors to (rows, length) float32, zeros where null."""
    parts = [np.zeros((0, length), np.float32)]
    for chunk in column.chunks:
        flat = chunk.values.slice(chunk.offset * length, len(chunk) * length)
        if flat.null_count:  # items of a null vector
            flat = flat.fill_null(0)
        part = flat.to_numpy().reshape(-1, length)
        if chunk.null_count:
            part = np.where(chunk.is_null().to_numpy(zero_copy_only=False)[:, None], np.float32(0), part)
        parts.append(part)
    return parts[1] if len(parts) == 2 else np.concatenate(parts)  # noqa: PLR2004  # one chunk needs no copy


def _reader(dtype: FeatureType) -> Callable[[Any], Any] | None:
    """Function that makes a value of a fixed slot, None where the slot holds it as it is."""
    if dtype is DType.BOOL:
        return bool
    if dtype is DType.UNIX_TIMESTAMP:
        return from_epoch_us
    if isinstance(dtype, Vector):
        return _numbers
    return partial(_decimal, -dtype.scale) if isinstance(dtype, Decimal) else None


def _numbers(raw: bytes) -> list[float]:
    numbers: list[float] = np.frombuffer(raw, "<f4").tolist()
    return numbers


def _decimal(exponent: int, raw: bytes) -> DecimalNumber:
    return DecimalNumber(int.from_bytes(raw, "little", signed=True)).scaleb(exponent, _EXACT)


def precedence(value: bytes) -> tuple[int, int, bytes]:
    """Sort key that decides between two packed rows of one key: the greater wins.

    Compares event time, then created time, then the bytes after the header (an exact tie has to fall the same way everywhere).
    """
    _, _, event, created = HEADER.unpack_from(value)
    return event, created, value[HEADER_BYTES:]


def has_tail(dtype: FeatureType) -> bool:
    """Whether values of a type have no fixed size."""
    return dtype is DType.STRING or isinstance(dtype, List | Map)


def encode(dtype: FeatureType, column: pa.ChunkedArray) -> list[bytes]:
    """Encode a column's values; no bytes where null."""
    if dtype is DType.STRING:
        return _texts(column)
    if isinstance(dtype, List):
        return _lists(dtype, column)
    if isinstance(dtype, Map):
        return _maps(dtype, column)
    raise TypeError(f"{dtype} has a fixed size")


def decode(dtype: FeatureType, value: bytes, at: int, end: int) -> Any:
    """Decode the value in some bytes of a row; what it is of no bytes means nothing, as the value may be null."""
    if dtype is DType.STRING:
        return value[at:end].decode()
    if at == end:
        return None
    (count,) = _COUNT.unpack_from(value, at)
    at += _COUNT.size
    if isinstance(dtype, Map):
        keys, at = _texts_at(value, at, count)
        return dict(zip(keys, _numbers_at(dtype.item, value, at, count), strict=True))
    if not isinstance(dtype, List):
        raise TypeError(f"{dtype} has a fixed size")
    nulls = 0
    if dtype.null_items:
        size = (count + 7) // 8
        nulls = int.from_bytes(value[at : at + size], "little")
        at += size
    items = (
        _texts_at(value, at, count)[0]
        if dtype.item is DType.STRING
        else _numbers_at(dtype.item, value, at, count)
    )
    return [None if nulls >> i & 1 else item for i, item in enumerate(items)] if nulls else items


def slot_values(dtype: DType, column: pa.ChunkedArray | pa.Array) -> Array:
    """Values of a scalar column for fixed slots, zero where null."""
    if dtype is DType.STRING:
        column = pc.binary_length(column)
    elif dtype is DType.BOOL:
        column = column.cast(pa.uint8())
    elif dtype is DType.UNIX_TIMESTAMP:
        column = column.cast(pa.int64())
    filled = column.fill_null(0) if column.null_count else column
    values: Array = filled.to_numpy()
    return values


def _texts(column: pa.ChunkedArray | pa.Array) -> list[bytes]:
    return [value or b"" for value in column.cast(pa.binary()).to_pylist()]


def _lists(dtype: List, column: pa.ChunkedArray) -> list[bytes]:
    rows = _combined(column)
    starts, ends, present = _bounds(rows)
    items = rows.values
    packed = _packed(dtype.item, items)
    nulls = items.is_null().to_numpy(zero_copy_only=False) if dtype.null_items else None
    out: list[bytes] = []
    for start, end, there in zip(starts, ends, present, strict=True):
        if not there:
            out.append(b"")
            continue
        bitmap = b"" if nulls is None else np.packbits(nulls[start:end], bitorder="little").tobytes()
        out.append(b"".join((_COUNT.pack(end - start), bitmap, packed(start, end))))
    return out


def _maps(dtype: Map, column: pa.ChunkedArray) -> list[bytes]:
    rows = _combined(column)
    starts, ends, present = _bounds(rows)
    keys, values = _packed(DType.STRING, rows.keys), _packed(dtype.item, rows.items)
    return [
        b"".join((_COUNT.pack(end - start), keys(start, end), values(start, end))) if there else b""
        for start, end, there in zip(starts, ends, present, strict=True)
    ]


def _combined(column: pa.ChunkedArray) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _bounds(rows: Any) -> tuple[Sequence[int], Sequence[int], Sequence[bool]]:
    """First and last position of each row in the flat items, and whether the row has a value."""
    offsets = rows.offsets.to_pylist()
    return offsets[:-1], offsets[1:], rows.is_valid().to_pylist()


def _packed(item: DType, items: pa.Array) -> Any:
    """Function that packs the items of a range of positions."""
    lengths = slot_values(item, items).astype(NUMPY_SLOT[item.slot], copy=False)
    if item is not DType.STRING:
        return lambda start, end: lengths[start:end].tobytes()
    texts = _texts(items)
    words = lengths.astype(_WORD, copy=False)
    return lambda start, end: words[start:end].tobytes() + b"".join(texts[start:end])


def _texts_at(value: bytes, at: int, count: int) -> tuple[list[str], int]:
    lengths = np.frombuffer(value, _WORD, count, at).tolist()
    at += count * _WORD.itemsize
    texts = []
    for length in lengths:
        texts.append(value[at : at + length].decode())
        at += length
    return texts, at


def _numbers_at(item: DType, value: bytes, at: int, count: int) -> list[Any]:
    numbers: list[Any] = np.frombuffer(value, NUMPY_SLOT[item.slot], count, at).tolist()
    if item is DType.BOOL:
        return [bool(number) for number in numbers]
    if item is DType.UNIX_TIMESTAMP:
        return [from_epoch_us(number) for number in numbers]
    return numbers
