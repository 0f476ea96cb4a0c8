"""Checks and casts of input rows to a view's exact columns and types; every error names view, column and value."""

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.definitions.dtypes import TIMESTAMP
from featurestore.definitions.expectations import Freshness
from featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Field
from featurestore.definitions.views import FeatureView
from featurestore.errors import InvalidRows

Clock = Callable[[], datetime]
# An Arrow table, a pandas or polars frame, or a sequence of mappings; the first two come without types.
Tabular: TypeAlias = Any


def to_table(data: Tabular) -> pa.Table:
    """Convert any accepted kind of table to Arrow; a pandas index is dropped."""
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pl.DataFrame):
        return data.to_arrow()
    pandas = sys.modules.get("pandas")  # a caller with a pandas frame has imported it
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return pa.Table.from_pandas(data, preserve_index=False)
    return pa.Table.from_pylist([dict(row) for row in data])


def offline_schema(view: FeatureView) -> pa.Schema:
    """Schema of a view's stored rows: join keys, features, event and created time."""
    fields = [pa.field(f.name, f.dtype.arrow) for f in (*view.join_keys, *view.schema)]
    return pa.schema([*fields, pa.field(EVENT_TIMESTAMP, TIMESTAMP), pa.field(CREATED_TIMESTAMP, TIMESTAMP)])


def conform(view: FeatureView, data: Tabular, *, clock: Clock) -> pa.Table:
    """Cast rows to exactly the columns of `offline_schema`; a missing created time is now.

    Raises: InvalidRows for a missing, duplicated or unknown column, a wrong type, a null key or time, a naive time.
    """
    table = to_table(data)
    where = f"feature view {view.name!r}"
    if CREATED_TIMESTAMP not in table.column_names:
        now = pa.array([clock()], TIMESTAMP)
        table = table.append_column(
            CREATED_TIMESTAMP, pa.chunked_array([now.take(pa.array([0] * table.num_rows))])
        )
    schema = offline_schema(view)
    _check_names(where, table.column_names, schema.names)
    columns = [_typed(where, table, f) for f in (*view.join_keys, *view.schema)]
    for key in view.join_keys:
        refuse_nulls(where, table, key.name)
    times = [time_column(where, table, name) for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)]
    return pa.table([*columns, *times], schema=schema)


def check_rows(view: FeatureView, rows: pa.Table) -> None:
    """Check a batch of conforming rows against the view's ranges and null shares, not its freshness.

    Raises: UnexpectedRows.
    """
    for each in view.expectations:
        if not isinstance(each, Freshness):
            each.check(f"feature view {view.name!r}", rows)


def _check_names(where: str, got: Sequence[str], expected: Sequence[str]) -> None:
    double = sorted({name for name in got if got.count(name) > 1})
    missing = [name for name in expected if name not in got]
    unknown = [name for name in got if name not in expected]
    if double:
        raise InvalidRows(f"{where}: column {double[0]!r} appears {got.count(double[0])} times; keep one")
    if missing:
        raise InvalidRows(f"{where}: column {missing[0]!r} is missing; got {list(got)}")
    if unknown:
        raise InvalidRows(
            f"{where}: column {unknown[0]!r} is not in its schema; drop it or add a Field and apply"
        )


def _typed(where: str, table: pa.Table, field: Field) -> pa.ChunkedArray:
    return cast_column(where, field, table.column(field.name))


def cast_column(where: str, field: Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a column to the field's type without loss.

    Raises: InvalidRows if the type is of another kind or a value does not fit.
    """
    target, given = field.dtype.arrow, column.type
    if given == target:
        return column
    if pa.types.is_dictionary(given):
        column = column.cast(given.value_type)
        given = given.value_type
    if pa.types.is_timestamp(target):
        return _microsecond_utc(where, field.name, column)
    if not _same_kind(given, target):
        msg = f"{where}: column {field.name!r} must be {field.dtype} ({target}), got {given} such as {_sample(column)}"
        raise InvalidRows(msg)
    try:
        return column.cast(target, safe=not pa.types.is_floating(target))
    except pa.ArrowInvalid as error:
        msg = f"{where}: column {field.name!r} does not fit {field.dtype} ({target}): {error}"
        raise InvalidRows(msg) from error


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


def time_column(where: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """Cast a time column to timestamp[us, UTC] without nulls.

    Raises: InvalidRows if it is absent, naive, finer than a microsecond or has nulls.
    """
    if name not in table.column_names:
        raise InvalidRows(f"{where}: column {name!r} is missing; got {table.column_names}")
    refuse_nulls(where, table, name)
    return _microsecond_utc(where, name, table.column(name))


def _microsecond_utc(where: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
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


def refuse_nulls(where: str, table: pa.Table, name: str) -> None:
    """Check that a column is complete.

    Raises: InvalidRows naming the first row that has no value.
    """
    column = table.column(name)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise InvalidRows(f"{where}: column {name!r} is null in {column.null_count} rows, first in row {row}")
