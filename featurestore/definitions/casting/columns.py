"""Casts of columns to the types of fields, without loss; every error names column, value and remedy."""

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.casting.composites import cast_composite
from toque.featurestore.definitions.dtypes import TIMESTAMP, DType
from toque.featurestore.definitions.fields import Field
from toque.featurestore.errors import InvalidRows

_REMEDY = "correct it, or declare a type that holds it"
_TIMES = "give a time, or a text like 2024-05-01T10:00:00Z"


def cast_column(where: str, field: Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a column to the field's type without loss.

    Raises: InvalidRows if the type is of another kind or a value does not fit.
    """
    target, given = field.dtype.arrow, column.type
    if not isinstance(field.dtype, DType):
        return cast_composite(where, field, column, cast_items=cast_column)
    if given == target:
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
    """Cast times to timestamp[us, UTC]. Raises: InvalidRows if they are naive or finer than a microsecond."""
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
        msg = f"{where}: column {name!r} is finer than a microsecond, {_sample(column)}; round it down first"
        raise InvalidRows(msg) from error
