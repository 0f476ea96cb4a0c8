"""Checks of a source's rows one by one: those that fit become typed rows, the others are told apart with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.batch_source import KNOWN_AT, BatchSource, TimeRange
from toque.featurestore.definitions.casting import cast_column
from toque.featurestore.definitions.dtypes import TIMESTAMP, DType, FeatureType
from toque.featurestore.definitions.expectations import Expectation, InRange
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field
from toque.featurestore.errors import InvalidRows, UnreadableSource
from toque.registry.times import FIRST_TIME, LAST_TIME

REPEATED = "is a local time that comes twice"
"""Part of the reason of rows that lie in an hour which the clocks of the source's zone repeat: nothing says which of both it is."""
BEYOND = "is before the year 1 or after 9999 in UTC"
"""Part of the reason of rows with a time that lies outside `FIRST_TIME` to `LAST_TIME`."""
_Repeated = Literal["earliest", "null"]
_SPREAD = 2_654_435_761  # Knuth's multiplier, by which neighbours get times far apart
REASON, ROW = "reason", "row"
REJECTED = pa.schema([pa.field(REASON, pa.string()), pa.field(ROW, pa.string())])
_POLARS = {
    DType.FLOAT64: pl.Float64,
    DType.FLOAT32: pl.Float32,
    DType.INT64: pl.Int64,
    DType.INT32: pl.Int32,
    DType.BOOL: pl.Boolean,
    DType.STRING: pl.String,
}
_TRUE, _FALSE = ("true", "t", "yes", "1"), ("false", "f", "no", "0")
_INFINITY = r"(?i)^[+-]?inf(inity)?$"
_ZONE = r"(?:[zZ]|[+-]\d\d:?\d\d)$"
_PLAIN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)$"
_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")


class Declared(Protocol):
    """Source whose declaration says what its columns mean; a batch source and a stream source are."""

    @property
    def name(self) -> str:
        """Name under which it is applied."""

    @property
    def schema(self) -> Sequence[Field]:
        """Columns of its rows that are kept."""

    @property
    def read_columns(self) -> dict[str, str]:
        """Names at the source by the names here."""

    @property
    def timezone(self) -> str:
        """Zone of times that name none."""

    @property
    def unique(self) -> Sequence[str]:
        """Columns that name a row, with its time."""

    @property
    def expectations(self) -> Sequence[Expectation]:
        """Conditions that its rows must meet."""


@dataclass(frozen=True, slots=True)
class Checked:
    """Rows of a batch: those that fit, typed; and the others, each as JSON with a reason."""

    rows: pa.Table
    rejected: pa.Table


def row_schema(source: Declared) -> pa.Schema:
    """Schema of a source's stored rows: when they happened, when they became known, and its columns."""
    fields = [pa.field(each.name, each.dtype.arrow) for each in source.schema]
    return pa.schema([pa.field(EVENT_TIMESTAMP, TIMESTAMP), pa.field(KNOWN_AT, TIMESTAMP), *fields])


def check(
    source: BatchSource,
    given: pa.Table,
    *,
    loaded_at: datetime,
    within: TimeRange | None = None,
    first: int = 0,
) -> Checked:
    """Type the rows of a batch and tell apart those that do not fit.

    given: with the names of the source. first: number of the first row, where the source numbers them. loaded_at: when a row became known, where the source has no column that says so.
    within: of event times; others are left out, those that cannot be read among them.
    Raises: UnreadableSource for times without a zone where the source declares none.
    """
    named = source.read_columns
    raw, typed = _read(source, given)
    typed = _with_made_columns(source, typed, first=first, rows=given.num_rows, loaded_at=loaded_at)
    if within is not None:
        times = typed[EVENT_TIMESTAMP]
        inside = ((times >= within.start) & (times < within.end)).fill_null(value=False)
        raw, typed = raw.filter(inside), typed.filter(inside)
    reasons = _reasons(source, raw, typed)
    if KNOWN_AT not in typed.columns:
        typed = typed.with_columns(pl.lit(loaded_at, pl.Datetime("us", "UTC")).alias(KNOWN_AT))
    schema = row_schema(source)
    fitting = typed.filter(reasons.is_null()) if reasons.null_count() < len(reasons) else typed
    rows = fitting.select(schema.names).to_arrow().cast(schema)
    there_once = {
        there: here for here, there in named.items()
    }  # one column may be read as two, such as both times
    aside = raw.filter(reasons.is_not_null())
    bad = aside.select(_readable(aside[here]).alias(there) for there, here in there_once.items())
    texts = [json.dumps(row, default=str, ensure_ascii=False) for row in bad.iter_rows(named=True)]
    return Checked(rows, pa.table([reasons.drop_nulls().to_list(), texts], schema=REJECTED))


def _readable(raw: pl.Series) -> pl.Series:
    """Write times as texts where one lies beyond the calendar, as Python has no value for it."""
    if not isinstance(raw.dtype, pl.Datetime | pl.Date):
        return raw
    days = raw.cast(pl.Date)
    return raw if days.is_between(FIRST_TIME.date(), LAST_TIME.date()).all() else raw.dt.to_string()


def _with_made_columns(
    source: BatchSource, typed: pl.DataFrame, *, first: int, rows: int, loaded_at: datetime
) -> pl.DataFrame:
    """Add what the source does not hold: the numbers of its rows, and their times in the second before the load."""
    number = pl.int_range(first, first + rows, dtype=pl.Int64, eager=True)
    made = [number.alias(source.row_number)] if source.row_number else []
    if not source.timestamp:
        ago = pl.DataFrame({"ago": number * _SPREAD % 1_000_000}).select(pl.duration(microseconds="ago"))
        made.append((loaded_at - ago.to_series()).cast(pl.Datetime("us", "UTC")).alias(EVENT_TIMESTAMP))
    return typed.with_columns(made)


def judge(source: Declared, given: pa.Table) -> tuple[pl.DataFrame, pl.DataFrame, pl.Series]:
    """Read a batch by the names here: its rows as given, typed, and the reason of each to be kept aside (null: it fits).

    Raises: UnreadableSource as `check`.
    """
    raw, typed = _read(source, given)
    return raw, typed, _reasons(source, raw, typed)


def _read(source: Declared, given: pa.Table) -> tuple[pl.DataFrame, pl.DataFrame]:
    named = source.read_columns
    raw = pl.DataFrame({here: pl.Series(here, given.column(there)) for here, there in named.items()})
    dtypes = {each.name: each.dtype for each in source.schema}
    typed = pl.DataFrame(
        {
            here: _typed(source, named[here], dtypes.get(here, DType.UNIX_TIMESTAMP), raw[here])
            for here in named
        }
    )
    return raw, typed


def _reasons(source: Declared, raw: pl.DataFrame, typed: pl.DataFrame) -> pl.Series:
    """First reason of each row to be kept aside, null for a row that fits."""
    named = source.read_columns
    needed = {EVENT_TIMESTAMP, *source.unique}
    conditions: list[tuple[pl.Series, str]] = []
    for here, there in named.items():
        if typed[here].null_count() > raw[here].null_count():  # else every value was read
            unread = typed[here].is_null() & raw[here].is_not_null()
            if typed[here].dtype == pl.Datetime and source.timezone:
                twice = unread & _times(source, there, raw[here], repeated="earliest").is_not_null()
                conditions.append((twice, f"column {there!r} {REPEATED} in {source.timezone}"))
            if typed[here].dtype == pl.Datetime:
                beyond = unread & _unbounded_times(source, there, raw[here], "earliest").is_not_null()
                conditions.append((beyond, f"column {there!r} {BEYOND}"))
            conditions.append((unread, f"column {there!r} is not {_wanted(source, here)}"))
        if here in needed and raw[here].null_count():
            conditions.append((raw[here].is_null(), f"column {there!r} has no value"))
    for each in source.expectations:
        if isinstance(each, InRange):
            outside = pl.Series(each.outside(typed[each.column].to_arrow()))
            text = f"column {named[each.column]!r} is outside [{each.least}, {each.most}]"
            conditions.append((outside, text))
    found = pl.repeat(None, raw.height, dtype=pl.String, eager=True).alias("reason")
    for condition, text in reversed(conditions):  # the first one counts
        if condition.any():
            found = pl.select(pl.when(condition).then(pl.lit(text)).otherwise(found)).to_series()
    return found


def _wanted(source: Declared, here: str) -> str:
    dtype = next((each.dtype for each in source.schema if each.name == here), DType.UNIX_TIMESTAMP)
    return "a time" if dtype is DType.UNIX_TIMESTAMP else str(dtype)


def _typed(source: Declared, there: str, dtype: FeatureType, raw: pl.Series) -> pl.Series:
    """Cast a column to its declared type; a value that does not fit becomes null."""
    if dtype is DType.UNIX_TIMESTAMP:
        return _times(source, there, raw)
    if not isinstance(dtype, DType):
        return _composites(dtype, raw)
    if dtype is DType.STRING:
        is_text = raw.dtype in (pl.String, pl.Categorical, pl.Enum)
        return raw.cast(pl.String) if is_text else pl.Series(raw.name, [None] * len(raw), pl.String)
    if dtype is DType.BOOL:
        return _truths(raw)
    target = _POLARS[dtype]
    if raw.dtype == pl.Boolean or raw.dtype.is_temporal():
        return pl.Series(raw.name, [None] * len(raw), target)
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars()
    found = raw if raw.dtype == target else raw.cast(target, strict=False)
    if target.is_integer() and (raw.dtype.is_float() or raw.dtype.is_decimal()):
        whole = found.cast(raw.dtype, strict=False) == raw
        found = pl.select(pl.when(whole).then(found)).to_series()
    elif target.is_float() and found.is_infinite().any():
        meant = raw.str.contains(_INFINITY) if raw.dtype == pl.String else raw.cast(pl.Float64).is_infinite()
        found = pl.select(pl.when(found.is_finite() | found.is_nan() | meant).then(found)).to_series()
    return found


def _composites(dtype: FeatureType, raw: pl.Series) -> pl.Series:
    """Cast vectors, lists, maps or decimals, at once if all fit and else one by one."""
    where, field, given = "batch source", Field("value", dtype), raw.to_arrow()

    def cast(values: pa.Array) -> pa.ChunkedArray:
        return cast_column(where, field, pa.chunked_array([values]))

    try:
        return pl.Series(raw.name, cast(given))
    except InvalidRows:
        singles = [given.slice(at, 1) for at in range(len(given))]
        found, _ = one_by_one(singles, dtype.arrow, lambda value: cast(value)[0].as_py())
        return pl.Series(raw.name, found)


def one_by_one(
    values: Sequence[Any], kind: pa.DataType, convert: Callable[[Any], Any]
) -> tuple[pa.Array, list[int]]:
    """Convert values to a column, with nulls for those that do not fit, and their rows."""
    found: list[Any] = []
    bad: list[int] = []
    for row, value in enumerate(values):
        try:
            found.append(None if value is None else convert(value))
        except (pa.ArrowException, ValueError, OverflowError):
            found.append(None)
            bad.append(row)
    return pa.array(found, type=kind), bad


def _truths(raw: pl.Series) -> pl.Series:
    if raw.dtype == pl.Boolean:
        return raw
    texts = raw.cast(pl.String, strict=False).str.strip_chars().str.to_lowercase()
    return pl.select(
        pl.when(texts.is_in(_TRUE)).then(statement=True).when(texts.is_in(_FALSE)).then(statement=False)
    ).to_series()


def _times(source: Declared, there: str, raw: pl.Series, *, repeated: _Repeated = "null") -> pl.Series:
    """Read times of any unit or ISO 8601 texts as microseconds in UTC; those beyond the calendar become null.

    repeated: what a local time that comes twice becomes. Raises: UnreadableSource.
    """
    times = _unbounded_times(source, there, raw, repeated)
    within = times.is_between(FIRST_TIME, LAST_TIME)
    return times if within.all() else pl.select(pl.when(within).then(times)).to_series().alias(raw.name)


def _unbounded_times(source: Declared, there: str, raw: pl.Series, repeated: _Repeated) -> pl.Series:
    if isinstance(raw.dtype, pl.Datetime):
        times = raw.cast(pl.Datetime("us", raw.dtype.time_zone), strict=False)
        in_utc = raw.dtype.time_zone is not None
        return times.dt.convert_time_zone("UTC") if in_utc else _zoned(source, there, times, repeated)
    if raw.dtype == pl.Date:
        return _zoned(source, there, raw.cast(pl.Datetime("us")), repeated)
    if raw.dtype == pl.String:
        plain = _plain_times(raw)
        return _times_of_any_texts(source, there, raw, repeated) if plain is None else plain
    if raw.dtype == pl.Null:
        return raw.cast(pl.Datetime("us", "UTC"))
    raise UnreadableSource(
        f"batch source {source.name!r}: column {there!r} has {raw.dtype} such as {raw.drop_nulls()[0]!r} where times are "
        "declared; give times, or texts like 2024-05-01T10:00:00Z"
    )


def _plain_times(raw: pl.Series) -> pl.Series | None:
    """Read texts that all are like 2024-05-01T10:00:00.123456+00:00 at once; None if one is not."""
    texts = raw.to_arrow().cast(pa.string())
    if not pc.all(pc.match_substring_regex(texts, _PLAIN)).as_py():
        return None
    try:
        times = texts.cast(TIMESTAMP)
    except pa.ArrowInvalid:  # such as the 30th of February
        return None
    return pl.Series(raw.name, times)


def _times_of_any_texts(source: Declared, there: str, raw: pl.Series, repeated: _Repeated) -> pl.Series:
    texts = raw.str.strip_chars().str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T")
    has_zone = texts.str.contains(_ZONE)
    zones = texts.str.replace(r"[zZ]$", "+00:00")
    utc = pl.Datetime("us", "UTC")
    zoned = [
        zones.str.to_datetime(f"{each}%z", time_unit="us", strict=False).cast(utc) for each in _FORMATS[:2]
    ]
    naive = [texts.str.to_datetime(each, time_unit="us", strict=False) for each in _FORMATS]
    plain = pl.select(pl.coalesce(naive)).to_series()
    any_local = plain.filter(~has_zone).drop_nulls().len()
    local = _zoned(source, there, plain, repeated) if any_local else plain.cast(utc)
    return pl.select(pl.when(has_zone).then(pl.coalesce(zoned)).otherwise(local)).to_series().alias(raw.name)


def _zoned(source: Declared, there: str, times: pl.Series, repeated: _Repeated) -> pl.Series:
    """Read times that name no zone as local to the source's; one that its clocks skipped becomes null."""
    if not source.timezone:
        first = times.drop_nulls()
        sample = f" such as {first[0].isoformat()}" if len(first) else ""
        raise UnreadableSource(
            f"batch source {source.name!r}: column {there!r} has times without a zone{sample}; say which one they are in: "
            "timezone='UTC', or 'Europe/Berlin'"
        )
    local = times.dt.replace_time_zone(source.timezone, ambiguous=repeated, non_existent="null")
    return local.dt.convert_time_zone("UTC")
