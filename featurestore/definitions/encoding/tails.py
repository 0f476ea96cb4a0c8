"""Encoding of values without a fixed size, which follow the fixed slots of a packed row.

    String   UTF-8
    List     count (4 bytes); if its items may be null, a bitmap of ceil(count / 8) bytes, least significant bit first;
             then the items: numbers and times in their slots, texts as count lengths (4 bytes each) and their UTF-8
    Map      count (4 bytes), count lengths of keys (4 bytes each), the keys' UTF-8, the values in their slots

A map's entries are in the order of their keys' bytes, so that equal maps have equal bytes. A null value has no bytes at all.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.dtypes import DType, FeatureType, List, Map
from toque.registry.times import from_epoch_us

NUMPY_SLOT = {"d": "<f8", "f": "<f4", "q": "<i8", "i": "<i4", "B": "u1", "I": "<u4"}
_COUNT = struct.Struct("<I")
_WORD = np.dtype("<u4")

Array = np.ndarray[Any, Any]


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
