"""Checks and casts of input rows to a view's exact columns and types; every error names view, column and value."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.casting import (
    cast_column,
    column_of_values,
    microsecond_utc,
    refuse_truths,
)
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.expectations import Freshness
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView, FromEvents
from toque.featurestore.errors import InvalidRows, UnknownDefinition
from toque.registry.times import as_utc

Clock = Callable[[], datetime]
# An Arrow table, a pandas or polars frame, or a sequence of mappings; the first two come without types.
Tabular: TypeAlias = Any


def to_table(data: Tabular) -> pa.Table:
    """Convert any accepted kind of table to Arrow; a pandas index is dropped.

    Raises: InvalidRows for Python objects of several types in one column.
    """
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pl.DataFrame):
        return data.to_arrow()
    pandas = sys.modules.get("pandas")  # a caller with a pandas frame has imported it
    if pandas is not None and isinstance(data, pandas.DataFrame):
        return _table_of_pandas(data)
    rows = [dict(row) for row in data]
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _table_of_pandas(data: Any) -> pa.Table:
    try:
        table = pa.Table.from_pandas(data, preserve_index=False)
        for place, dtype in enumerate(data.dtypes):
            if dtype.kind == "O":
                refuse_truths(data.iloc[:, place], table.column(place).type)
    except pa.ArrowException as error:
        raise InvalidRows(
            f"a column cannot be of one type: {error}; give values of its field's type"
        ) from error
    return table


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    try:
        return column_of_values(values)
    except (pa.ArrowException, OverflowError) as error:
        raise InvalidRows(
            f"column {name!r} cannot be of one type: {error}; give values of its field's type"
        ) from error


def offline_schema(view: FeatureView) -> pa.Schema:
    """Schema of a view's stored rows: join keys, features, event and created time."""
    fields = [pa.field(f.name, f.dtype.arrow) for f in (*view.join_keys, *view.schema)]
    return pa.schema([*fields, pa.field(EVENT_TIMESTAMP, TIMESTAMP), pa.field(CREATED_TIMESTAMP, TIMESTAMP)])


def shaped(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give stored rows the columns of a schema, with nulls in those that were declared after they were stored."""
    columns = [
        rows.column(each.name).cast(each.type)
        if each.name in rows.column_names
        else pa.nulls(rows.num_rows, each.type)
        for each in schema
    ]
    return pa.table(columns, schema=schema)


def gathered(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Put batches together to tables of at least so many rows; the last may have fewer, and none is empty."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting += [batch] if batch.num_rows else []
        if sum(each.num_rows for each in waiting) >= rows:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


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
    columns = [cast_column(where, f, table.column(f.name)) for f in (*view.join_keys, *view.schema)]
    for f in (*view.join_keys, *(f for f in view.schema if not f.nullable)):
        refuse_nulls(where, table, f.name)
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


def time_column(where: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """Cast a time column to timestamp[us, UTC] without nulls.

    Raises: InvalidRows if it is absent, naive, finer than a microsecond or has nulls.
    """
    if name not in table.column_names:
        raise InvalidRows(f"{where}: column {name!r} is missing; got {table.column_names}")
    refuse_nulls(where, table, name)
    return microsecond_utc(where, name, table.column(name))


def refuse_nulls(where: str, table: pa.Table, name: str) -> None:
    """Check that a column is complete.

    Raises: InvalidRows naming the first row that has no value.
    """
    column = table.column(name)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise InvalidRows(f"{where}: column {name!r} is null in {column.null_count} rows, first in row {row}")


def computing(view: FeatureView, since: datetime | None) -> Callable[[pa.Table], pa.Table]:
    """Give the computation of a view's rows from raw events.

    since: an earlier run had all events up to then; only rows that it could not settle are computed.
    Raises: UnknownDefinition if the view's source does not compute from events.
    """
    if not isinstance(view.source, FromEvents):
        raise UnknownDefinition(
            f"feature view {view.name!r} has no source that computes from events; write its rows with write_offline"
        )
    start = None if since is None else as_utc(since, name="since")
    return partial(view.source.compute, keys=[key.name for key in view.join_keys], since=start)
