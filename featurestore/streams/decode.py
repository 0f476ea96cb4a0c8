"""Messages of a stream to typed events; those that do not fit are told apart with the reason, each by itself.

What becomes of a message depends on it and on those before it in its partition, never on the batch in which it was read, nor on
when and by whose clock. So whoever reads it again comes to the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import compress
from typing import Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa

from toque.featurestore.definitions.batch_source import KNOWN_AT
from toque.featurestore.definitions.casting import cast_column, column_of_values
from toque.featurestore.definitions.dtypes import TIMESTAMP, DType, FeatureType
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field
from toque.featurestore.definitions.stream_source import (
    CLOCK_TOLERANCE,
    PARTITION,
    POSITION,
    Messages,
    StreamSource,
    Unread,
)
from toque.featurestore.errors import InvalidRows, UnreadableSource
from toque.featurestore.sources.rows import REASON, REJECTED, ROW, judge, one_by_one, row_schema
from toque.registry.times import FIRST_TIME, LAST_TIME, MICROSECOND, epoch_us, from_epoch_us

_TOLERANCE_US = CLOCK_TOLERANCE // MICROSECOND
_KEPT_BYTES = 65_536  # of a message that is kept aside
_FIRST_US, _LAST_US = epoch_us(FIRST_TIME), epoch_us(LAST_TIME)
_KINDS: dict[DType, frozenset[type]] = {
    DType.FLOAT64: frozenset({float, int}),
    DType.FLOAT32: frozenset({float, int}),
    DType.INT64: frozenset({int}),
    DType.INT32: frozenset({int}),
    DType.BOOL: frozenset({bool}),
    DType.STRING: frozenset({str}),
}
_BEYOND = -(2.0**63)  # which the integers just below Int64 are read as, too
_WHOLE = frozenset({DType.INT64, DType.INT32})
Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a partition was read: the position of the next message, when the last became known, and the watermark.

    known_us, watermark_us: microseconds since 1970, 0 before the first event.
    """

    position: int
    known_us: int = 0
    watermark_us: int = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """Events that fit, those that are kept aside, and the places after them. late: of the rejected, those beyond lateness."""

    events: pa.Table
    rejected: pa.Table
    places: dict[int, Place]
    late: int = 0


def event_schema(source: StreamSource) -> pa.Schema:
    """Schema of a stream's stored events: as of a batch source's rows, and where each stands in the log."""
    own = [pa.field(PARTITION, pa.int32()), pa.field(POSITION, pa.int64())]
    return pa.schema([*row_schema(source), *own])


def rejected_schema() -> pa.Schema:
    """Schema of messages that were kept aside: the reason, the message as text, and where and when."""
    own = [
        pa.field(KNOWN_AT, TIMESTAMP),
        pa.field(PARTITION, pa.int32()),
        pa.field(POSITION, pa.int64()),
    ]
    return pa.schema([*REJECTED, *own])


def decode(source: StreamSource, messages: Messages, places: Mapping[int, Place | None]) -> Decoded:
    """Decode messages that follow `places`, in which None stands for a partition that was never read.

    Raises: UnreadableSource for a message that lies before its partition's place, whose event may be stored.
    """
    partitions = np.array(messages.partitions, dtype=np.int32)
    taken = np.array(messages.taken_us, dtype=np.int64)
    known, after = _known(source, messages, partitions, taken, places)
    columns, reasons = _columns(source, messages.values)
    times = pa.array(known, pa.int64()).cast(TIMESTAMP)
    _, typed, judged = judge(source, pa.table(columns | {KNOWN_AT: times}))
    found = [mine or other for mine, other in zip(reasons, judged.to_list(), strict=True)]
    events_us = typed[EVENT_TIMESTAMP].to_physical().fill_null(0).to_numpy()
    early = events_us > known + _TOLERANCE_US
    _reject(found, early, f"column {source.timestamp!r} is after the time at which the log took it")
    late = _late(source, partitions, events_us, found, after, places)
    where = {
        PARTITION: pa.array(partitions, pa.int32()),
        POSITION: pa.array(messages.positions, pa.int64()),
    }
    fits = [each is None for each in found]
    schema = event_schema(source)
    rows = typed.to_arrow()
    events = pa.table({name: where[name] if name in where else rows.column(name) for name in schema.names})
    fitting = events if all(fits) else events.filter(pa.array(fits))
    return Decoded(fitting.cast(schema), _aside(messages, found, fits, times, where), after, late)


def _known(
    source: StreamSource,
    messages: Messages,
    partitions: np.ndarray[Any, Any],
    taken: Ints,
    places: Mapping[int, Place | None],
) -> tuple[Ints, dict[int, Place]]:
    """When each message became known: when the log took it, and a microsecond after the one before at the least.

    So no two events of a partition became known at one time, in whatever batches they are read.
    """
    known = np.zeros(len(taken), dtype=np.int64)
    after: dict[int, Place] = {}
    for each in np.unique(partitions):
        at = np.flatnonzero(partitions == each)
        before = places.get(int(each)) or Place(0)
        if messages.positions[at[0]] < before.position:
            raise UnreadableSource(
                f"stream source {source.name!r}: partition {each} was read up to position {before.position}, and its reader gave "
                f"{messages.positions[at[0]]} again; it is read anew from where its events are stored"
            )
        steps = np.arange(len(at))
        least = np.maximum.accumulate(np.maximum(taken[at], before.known_us + 1) - steps) + steps
        known[at] = least
        after[int(each)] = replace(before, position=messages.positions[at[-1]] + 1, known_us=int(least[-1]))
    return known, after


def _reject(reasons: list[str | None], where: np.ndarray[Any, Any], reason: str) -> None:
    for at in np.flatnonzero(where):
        reasons[at] = reasons[at] or reason


def _late(
    source: StreamSource,
    partitions: np.ndarray[Any, Any],
    events_us: Ints,
    reasons: list[str | None],
    after: dict[int, Place],
    places: Mapping[int, Place | None],
) -> int:
    """Move the watermarks on, and reject what lies behind them by more than is allowed; returns how many."""
    allowed, late = source.allowed_lateness, 0
    fits = np.array([each is None for each in reasons])
    for each, place in after.items():
        at = np.flatnonzero((partitions == each) & fits)
        before = places.get(each) or Place(0)
        marks = np.maximum.accumulate(np.concatenate([[before.watermark_us], events_us[at]]))
        after[each] = replace(place, watermark_us=int(marks[-1]))
        if allowed is None:
            continue
        behind = at[events_us[at] < marks[:-1] - allowed // MICROSECOND]
        for row in behind:
            reasons[row] = f"column {source.timestamp!r} is more than {allowed} behind the watermark"
        late += len(behind)
    return late


def _aside(
    messages: Messages,
    reasons: Sequence[str | None],
    fits: Sequence[bool],
    times: pa.Array,
    where: Mapping[str, pa.Array],
) -> pa.Table:
    """Keep the messages that do not fit as text, each with its reason."""
    bad = [not each for each in fits]
    if not any(bad):
        return rejected_schema().empty_table()
    texts = [
        (value or b"")[:_KEPT_BYTES].decode(errors="replace") for value in compress(messages.values, bad)
    ]
    columns = {REASON: pa.array(list(compress(reasons, bad))), ROW: pa.array(texts)}
    chosen = {name: values.filter(pa.array(bad)) for name, values in where.items()}
    return pa.table(columns | {KNOWN_AT: times.filter(pa.array(bad))} | chosen, schema=rejected_schema())


def _columns(
    source: StreamSource, values: Sequence[bytes | None]
) -> tuple[dict[str, pa.Array], list[str | None]]:
    """Parse messages to columns by their names there, null where a value does not fit, and the first reason of each."""
    reasons: list[str | None] = [None] * len(values)
    dtypes = {source.columns.get(each.name, each.name): each.dtype for each in source.schema}
    wanted = dtypes | {source.timestamp: DType.UNIX_TIMESTAMP}
    parsed = _parsed(values, list(wanted), reasons)
    columns: dict[str, pa.Array] = {}
    for (name, dtype), given in zip(wanted.items(), parsed, strict=True):
        columns[name], bad = (
            _times(given, source.unit_us) if dtype is DType.UNIX_TIMESTAMP else _typed(dtype, given)
        )
        kind = "a time" if dtype is DType.UNIX_TIMESTAMP else str(dtype)
        for row in bad:
            reasons[row] = reasons[row] or f"column {name!r} is not {kind}"
    return columns, reasons


def _parsed(
    values: Sequence[bytes | None], names: Sequence[str], reasons: list[str | None]
) -> list[list[Any]]:
    """Parse messages to lists of the values of some names; one that is no JSON object has none.

    No message's dictionary outlives the next: thousands at a time would be gone through by the garbage collector.
    """
    columns: list[list[Any]] = [[None] * len(values) for _ in names]
    named, load = list(zip(names, columns, strict=True)), orjson.loads
    for row, value in enumerate(values):
        try:
            found = load(value or b"")
        except orjson.JSONDecodeError as error:
            found = error
        if type(found) is not dict:
            reasons[row] = _why_unread(value, found)
            continue
        for name, column in named:
            column[row] = found.get(name)
    return columns


def _why_unread(value: bytes | None, found: Any) -> str:
    if isinstance(value, Unread):
        return value.reason
    if isinstance(found, orjson.JSONDecodeError) and "infinity" in found.msg:
        return "the message has a number beyond Float64"
    return "the message is not a JSON object"


def _typed(dtype: FeatureType, values: list[Any]) -> tuple[pa.Array, list[int]]:
    """Type a column, with nulls for values that do not fit, and their rows."""
    if not isinstance(dtype, DType):
        return _composites(dtype, values)
    if set(map(type, values)) <= _KINDS[dtype] | {type(None)}:
        try:
            found = pa.array(values, type=dtype.arrow)
        except (pa.ArrowException, OverflowError):
            pass
        else:
            if dtype is not DType.FLOAT32 or not np.isinf(found.to_numpy(zero_copy_only=False)).any():
                return found, []
    return one_by_one(values, dtype.arrow, lambda value: _one(dtype, value))


def _composites(dtype: FeatureType, values: list[Any]) -> tuple[pa.Array, list[int]]:
    """Type vectors, lists, maps or decimals, at once if all fit and else one by one."""
    field = Field("value", dtype)

    def cast(some: Sequence[Any]) -> pa.Array:
        column = cast_column("stream source", field, pa.chunked_array([column_of_values(some)]))
        return column.combine_chunks()

    try:
        return cast(values), []
    except (InvalidRows, pa.ArrowException, OverflowError):
        return one_by_one(values, dtype.arrow, lambda value: cast([value])[0].as_py())


def _one(dtype: DType, value: Any) -> Any:
    """Convert one value to its declared type. Raises: ValueError if it does not fit."""
    if dtype in _WHOLE and type(value) is float and value.is_integer() and value != _BEYOND:
        value = int(value)
    if type(value) not in _KINDS[dtype]:
        raise ValueError(value)
    found = pa.scalar(value, type=dtype.arrow).as_py()
    if isinstance(found, float) and abs(found) == float("inf"):
        raise ValueError(value)
    return found


def _times(values: list[Any], unit_us: int) -> tuple[pa.Array, list[int]]:
    """Read times: numbers at once, texts as they are, for `judge` to read; nulls for what is neither."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {str}:
        return pa.array(values, pa.string()), []
    numbers, bad = one_by_one(values, TIMESTAMP, lambda value: _time(value, unit_us))
    if str not in kinds:
        return numbers, bad
    texts = [
        value if isinstance(value, str) else time.isoformat() if time is not None else None
        for value, time in zip(values, numbers.to_pylist(), strict=True)
    ]
    return pa.array(texts, pa.string()), [row for row in bad if not isinstance(values[row], str)]


def _time(value: Any, unit_us: int) -> datetime:
    """Read a number as a time. Raises: ValueError, OverflowError if it is none."""
    if type(value) not in {int, float}:
        raise ValueError(value)
    at = value * unit_us if isinstance(value, int) else round(value * unit_us)
    if not _FIRST_US <= at <= _LAST_US:
        raise ValueError(value)
    return from_epoch_us(at)
