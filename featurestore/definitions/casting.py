"""Casts of columns to the types of fields, without loss; every error names column, value and remedy."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal as DecimalNumber
from decimal import InvalidOperation
from itertools import chain, pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.dtypes import TIMESTAMP, Decimal, DType, List, Map, Vector
from toque.featurestore.definitions.fields import Field
from toque.featurestore.errors import InvalidRows
from toque.registry.times import FIRST_TIME, LAST_TIME, epoch_us

CastItems: TypeAlias = Callable[[str, Field, pa.ChunkedArray], pa.ChunkedArray]
"""Casts a column of scalars, as `cast_column` does."""

_REMEDY = "correct it, or declare a type that holds it"
_TIMES = "give a time, or a text like 2024-05-01T10:00:00Z"
_WIDEST = 76  # digits of a decimal that Arrow has
_SHOWN = 80  # characters of a value in a message


def cast_column(where: str, field: Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a column to the field's type without loss.

    Raises: InvalidRows if the type is of another kind or a value does not fit.
    """
    target, given = field.dtype.arrow, column.type
    if not isinstance(field.dtype, DType):
        return cast_composite(where, field, column, cast_items=cast_column)
    if given == target and not pa.types.is_timestamp(target):
        return column
    if pa.types.is_dictionary(given):
        column = column.cast(given.value_type)
        given = given.value_type
    if pa.types.is_timestamp(target):
        return microsecond_utc(where, field.name, _times_of_texts(where, field.name, column))
    if not _same_kind(given, target):
        msg = f"{where}: column {field.name!r} must be {field.dtype} ({target}), got {given} such as {_sample(column)}"
        raise InvalidRows(msg)
    try:
        cast = column.cast(target, safe=not pa.types.is_floating(target))
    except pa.ArrowInvalid as error:
        msg = f"{where}: column {field.name!r} does not fit {field.dtype} ({target}): {error}; {_REMEDY}"
        raise InvalidRows(msg) from error
    if pa.types.is_float64(given) and pa.types.is_float32(target):
        _refuse_overflow(where, field, column, cast)
    return cast


def _refuse_overflow(where: str, field: Field, column: pa.ChunkedArray, cast: pa.ChunkedArray) -> None:
    """Check that no finite number became infinite. Raises: InvalidRows naming the first that did."""
    overflowed = pc.and_(pc.is_inf(cast), pc.is_finite(column))
    if pc.any(overflowed).as_py():
        value = column[pc.index(overflowed, True).as_py()].as_py()
        raise InvalidRows(
            f"{where}: column {field.name!r}: {value!r} is beyond what {field.dtype} holds; {_REMEDY}"
        )


def _times_of_texts(where: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Read ISO 8601 texts as times, as JSON has none; other columns stay. Raises: InvalidRows for another text."""
    t = pa.types
    if not (t.is_string(column.type) or t.is_large_string(column.type) or t.is_string_view(column.type)):
        return column
    times: list[datetime | None] = []
    for row, text in enumerate(column.to_pylist()):
        try:
            times.append(None if text is None else datetime.fromisoformat(text))
        except ValueError as error:
            raise InvalidRows(
                f"{where}: column {name!r} in row {row}: {text!r:.80} is no time; {_TIMES}"
            ) from error
        if times[-1] is not None and times[-1].tzinfo is None:
            raise InvalidRows(
                f"{where}: column {name!r} in row {row}: {text!r:.80} has no time zone; {_TIMES}"
            )
    return pa.chunked_array([pa.array(times, TIMESTAMP)])


def _same_kind(given: pa.DataType, target: pa.DataType) -> bool:
    t = pa.types
    number = t.is_integer(given) or t.is_floating(given)
    if t.is_floating(target):
        return bool(number or t.is_null(given))
    if t.is_integer(target):
        return bool(number or t.is_null(given))
    if t.is_string(target):
        return bool(
            t.is_string(given) or t.is_large_string(given) or t.is_string_view(given) or t.is_null(given)
        )
    return bool(t.is_null(given))


def _sample(column: pa.ChunkedArray) -> str:
    values = column.drop_null()
    return repr(values[0].as_py()) if len(values) else "null"


def microsecond_utc(where: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast times to timestamp[us, UTC]. Raises: InvalidRows if they are naive, finer than a microsecond or beyond the calendar."""
    times = _in_microseconds(where, name, column)
    ends = pc.min_max(times.cast(pa.int64())).as_py()
    least, most = ends["min"], ends["max"]
    if least is not None and not (epoch_us(FIRST_TIME) <= least and most <= epoch_us(LAST_TIME)):
        beyond = least if least < epoch_us(FIRST_TIME) else most
        row = pc.index(times.cast(pa.int64()), beyond).as_py()
        raise InvalidRows(
            f"{where}: column {name!r} in row {row} is before the year 1 or after 9999 in UTC ({beyond} us since 1970); "
            "correct it, or leave the row out"
        )
    return times


def _in_microseconds(where: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type == TIMESTAMP:
        return column
    if pa.types.is_null(column.type):
        return column.cast(TIMESTAMP)
    if not pa.types.is_timestamp(column.type) or column.type.tz is None:
        msg = (
            f"{where}: column {name!r} must be a time with a time zone, got {column.type} such as {_sample(column)}; "
            "say which zone it is in (Arrow: assume_timezone, pandas: tz_localize)"
        )
        raise InvalidRows(msg)
    try:
        return column.cast(TIMESTAMP)
    except pa.ArrowInvalid as error:
        if column.type.unit in {"s", "ms"}:
            msg = f"{where}: column {name!r} has times before the year 1 or after 9999 in UTC; correct them, or leave the rows out"
        else:
            msg = f"{where}: column {name!r} is finer than a microsecond, {_sample(column)}; round it down first"
        raise InvalidRows(msg) from error


def column_of_values(values: Sequence[Any]) -> pa.Array:
    """Convert Python values to an Arrow column of the type they show; mappings become a map.

    Raises: pa.ArrowException if they are of several types; true and false among numbers are another type.
    """
    if not any(isinstance(value, Mapping) for value in values):
        column = pa.array(values)
        refuse_truths(values, column.type)
        return column
    mappings = [value if value is None or isinstance(value, Mapping) else {} for value in values]
    if any(value is not None and not isinstance(value, Mapping) for value in values):
        raise pa.ArrowInvalid("some values are mappings and others are not")
    flat = [item for value in mappings if value is not None for item in value.items()]
    item_type = column_of_values([item for _, item in flat]).type
    key_type = pa.array([key for key, _ in flat], pa.string() if not flat else None).type
    entries = [None if value is None else list(value.items()) for value in mappings]
    return pa.array(entries, pa.map_(key_type, item_type))


def refuse_truths(values: Iterable[Any], kind: pa.DataType) -> None:
    """Check numbers for true and false, which Arrow takes for 1 and 0 where it expects floats. Raises: pa.ArrowInvalid."""
    if pa.types.is_list(kind):
        rows = (value for value in values if isinstance(value, list | tuple))
        refuse_truths(chain.from_iterable(rows), kind.value_type)
    elif pa.types.is_floating(kind) and bool in set(map(type, values)):
        raise pa.ArrowInvalid("some values are true or false and others are numbers")


def texts_of(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Write values of any type as texts, equal ones alike; null where null."""
    if not pa.types.is_nested(column.type):
        texts = column.cast(pa.string())
        return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    values = column.to_pylist(maps_as_pydicts="strict")
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def cast_composite(
    where: str, field: Field, column: pa.ChunkedArray, *, cast_items: CastItems
) -> pa.ChunkedArray:
    """Cast a column to a composite type.

    cast_items: casts the items of a list or the values of a map.
    Raises: InvalidRows.
    """
    if pa.types.is_null(column.type):
        return column.cast(field.dtype.arrow)
    if isinstance(field.dtype, Decimal):
        return _decimals(where, field, field.dtype, column)
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(flat, pa.ChunkedArray):  # of no chunk, or too large for one
        flat = pa.concat_arrays(flat.chunks) if flat.num_chunks else pa.array([], flat.type)
    if isinstance(field.dtype, Map):
        return pa.chunked_array([_maps(where, field, field.dtype, flat, cast_items)])
    rows = _list_rows(where, field, flat)
    if isinstance(field.dtype, Vector):
        return pa.chunked_array([_vectors(where, field, field.dtype, rows, cast_items)])
    if isinstance(field.dtype, List):
        return pa.chunked_array([_lists(where, field, field.dtype, rows, cast_items)])
    raise InvalidRows(f"{where}: column {field.name!r} cannot be {field.dtype}; use a type of its own")


def _refused(where: str, field: Field, row: int, value: Any, why: str, remedy: str) -> InvalidRows:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
    return InvalidRows(
        f"{where}: column {field.name!r} ({field.dtype}) {why} in row {row}: {shown}; {remedy}"
    )


def _list_rows(where: str, field: Field, column: Any) -> pa.ListArray:
    """Rows of any kind of list as one with 32-bit offsets. Raises: InvalidRows for another type."""
    t, given = pa.types, column.type
    if not (t.is_list(given) or t.is_large_list(given) or t.is_fixed_size_list(given)):
        sample = column.drop_null()
        msg = (
            f"{where}: column {field.name!r} must be {field.dtype} ({field.dtype.arrow}), got {given} such as "
            f"{repr(sample[0].as_py())[:_SHOWN] if len(sample) else 'null'}; give a list a row"
        )
        raise InvalidRows(msg)
    return column if t.is_list(given) else column.cast(pa.list_(given.value_type))


def _items(rows: pa.ListArray) -> tuple[pa.Array, np.ndarray[Any, Any]]:
    """Items of rows one after the other, without those under a null, and how many each row has."""
    lengths = pc.list_value_length(rows).fill_null(0).to_numpy(zero_copy_only=False)
    return rows.flatten(), lengths


def _cast(where: str, field: Field, items: pa.Array, target: DType, cast_items: CastItems) -> pa.Array:
    scalar = Field(field.name, target)
    done = cast_items(f"{where}, items", scalar, pa.chunked_array([items])).combine_chunks()
    return done if isinstance(done, pa.Array) else pa.array([], target.arrow)


def _row_of(lengths: np.ndarray[Any, Any], item: int) -> int:
    """Row that has an item."""
    return int(np.searchsorted(np.cumsum(lengths), item, side="right"))


def _vectors(
    where: str, field: Field, dtype: Vector, rows: pa.ListArray, cast_items: CastItems
) -> pa.FixedSizeListArray:
    items, lengths = _items(rows)
    present = rows.is_valid().to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(present & (lengths != dtype.length))
    if len(wrong):
        row = int(wrong[0])
        why, remedy = f"has {lengths[row]} numbers, not {dtype.length}", "give all, or declare another Vector"
        raise _refused(where, field, row, rows[row].as_py(), why, remedy)
    _refuse_null_item(where, field, rows, items, lengths, "give a number, or null for the whole vector")
    numbers = _cast(where, field, items, DType.FLOAT32, cast_items)
    if dtype.finite:
        bad = np.flatnonzero(~np.isfinite(numbers.to_numpy()))
        if len(bad):
            row = int(np.flatnonzero(present)[int(bad[0]) // dtype.length])
            why, remedy = "has a number that is not finite in float32", "give null, or declare finite=False"
            raise _refused(where, field, row, rows[row].as_py(), why, remedy)
    if present.all():
        return pa.FixedSizeListArray.from_arrays(numbers, type=dtype.arrow)
    spread = np.zeros((len(rows), dtype.length), np.float32)
    spread[present] = numbers.to_numpy().reshape(-1, dtype.length)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(spread.reshape(-1)), type=dtype.arrow, mask=pa.array(~present)
    )


def _lists(where: str, field: Field, dtype: List, rows: pa.ListArray, cast_items: CastItems) -> pa.ListArray:
    items, lengths = _items(rows)
    if not dtype.null_items:
        _refuse_null_item(where, field, rows, items, lengths, "leave it out or declare null_items=True")
    done = _cast(where, field, items, dtype.item, cast_items)
    return pa.ListArray.from_arrays(_offsets(lengths), done, type=dtype.arrow, mask=rows.is_null())


def _refuse_null_item(
    where: str, field: Field, rows: Any, items: pa.Array, lengths: np.ndarray[Any, Any], remedy: str
) -> None:
    if items.null_count:
        row = _row_of(lengths, pc.index(items.is_null(), True).as_py())
        raise _refused(where, field, row, rows[row].as_py(), "has an item that is null", remedy)


def _offsets(lengths: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _maps(where: str, field: Field, dtype: Map, column: Any, cast_items: CastItems) -> pa.MapArray:
    """Maps with the entries of each in the order of their keys' bytes."""
    rows = _entries(where, field, dtype, column)
    entries, lengths = _items(rows)
    keys, values = entries.field(0), entries.field(1)
    for what, part in (("key", keys), ("value", values)):
        if part.null_count:
            row = _row_of(lengths, pc.index(part.is_null(), True).as_py())
            raise _refused(where, field, row, rows[row].as_py(), f"has a {what} that is null", "leave it out")
    keys = _cast(where, field, keys, DType.STRING, cast_items)
    numbers = _cast(where, field, values, dtype.item, cast_items)
    at = np.repeat(np.arange(len(rows)), lengths)
    texts = np.array(keys.cast(pa.binary()).to_pylist(), dtype=object)
    order = sorted(range(len(texts)), key=lambda i: (at[i], texts[i]))
    double = next((a for a, b in pairwise(order) if (at[a], texts[a]) == (at[b], texts[b])), None)
    if double is not None:
        row = int(at[double])
        raise _refused(
            where, field, row, rows[row].as_py(), f"has the key {keys[double].as_py()!r} twice", "keep one"
        )
    taken = pa.array(order, pa.int64())
    return pa.MapArray.from_arrays(
        _offsets(lengths), keys.take(taken), numbers.take(taken), type=dtype.arrow, mask=rows.is_null()
    )


def _entries(where: str, field: Field, dtype: Map, column: Any) -> pa.ListArray:
    """Rows of a map as lists of entries. Raises: InvalidRows for another type."""
    given = column.type
    pairs = 2
    if pa.types.is_map(given):
        return column.cast(pa.list_(pa.struct([("key", given.key_type), ("value", given.item_type)])))
    is_list = pa.types.is_list(given) or pa.types.is_large_list(given)
    if is_list and pa.types.is_struct(given.value_type) and given.value_type.num_fields == pairs:
        return _list_rows(where, field, column)
    msg = (
        f"{where}: column {field.name!r} must be {dtype} ({dtype.arrow}), got {given}; give an Arrow map, or rows with a "
        "dictionary of texts to numbers"
    )
    raise InvalidRows(msg)


def _decimals(where: str, field: Field, dtype: Decimal, column: pa.ChunkedArray) -> pa.ChunkedArray:
    t, given = pa.types, column.type
    if t.is_integer(given) or t.is_decimal(given):
        try:
            wide = column.cast(pa.decimal256(_WIDEST, dtype.scale)) if t.is_integer(given) else column
            return wide.cast(dtype.arrow)
        except pa.ArrowInvalid as error:
            msg = f"{where}: column {field.name!r} does not fit {dtype}: {error}; round it, or declare more digits"
            raise InvalidRows(msg) from error
    if not (
        t.is_floating(given) or t.is_string(given) or t.is_large_string(given) or t.is_string_view(given)
    ):
        raise InvalidRows(
            f"{where}: column {field.name!r} must be {dtype}, got {given}; give decimals, whole numbers or texts like '12.50'"
        )
    made = [
        None if value is None else _decimal(where, field, dtype, row, value)
        for row, value in enumerate(column.to_pylist())
    ]
    return pa.chunked_array([pa.array(made, dtype.arrow)])


def _decimal(where: str, field: Field, dtype: Decimal, row: int, value: float | str) -> DecimalNumber:
    """Read a number of its shortest text. Raises: InvalidRows if it has more digits than the type."""
    try:
        made = DecimalNumber(str(value).strip())
    except InvalidOperation as error:
        raise _refused(where, field, row, value, "is no decimal number", "write it like '12.50'") from error
    if not made.is_finite():
        raise _refused(where, field, row, value, "is not finite", "give null")
    _, digits, exponent = made.normalize().as_tuple()
    places = -int(exponent)
    whole = len(digits) - places
    if made and (places > dtype.scale or whole > dtype.precision - dtype.scale):
        raise _refused(where, field, row, value, "has too many digits", "round it, or declare more")
    return made
