"""Rows of windowed aggregates, and the run of rows in which each event is in the window.

An event is in the window of a run of consecutive rows of its key: from the first row at which it is known to the last
before it is too old. The begin of the run does not depend on the window's length, so begins, and counts of events entered
by each row, are computed once and shared by all windows.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.encoding import microseconds
from toque.featurestore.errors import InvalidRows
from toque.featurestore.rows import refuse_nulls, time_column

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

WHERE = "windowed aggregation"
REPLACED_AT = "stream_replaced_at"
"""Column of an event table, where it has one: from when another event stands for this one; null: none does."""
NEVER = np.iinfo(np.int64).max

PIECE_EVENTS = 2**18  # small enough for the processor's cache

_COMPOSITE_LIMIT = 2**62
_BLOCK = 2**15
_RADIX_KEYS = 2**16  # numpy sorts integers of 16 bits by counting


@dataclass(frozen=True, slots=True)
class Events:
    """Known events ordered by key and the time at which they enter a window.

    keys: table of the distinct keys, in order; key: (events,) row in it; event_times, entry_times: (events,) microseconds, the
    latter the later of event time and known time; numbers: columns as (events,) float64, NaN where there is no value;
    distinct_columns: columns of any type; replaced: (events,) microseconds from which an event no longer counts, `NEVER` for most;
    None: all count. rests: of columns with integers that float64 does not hold, what rounding took from each.
    """

    keys: pa.Table
    key: Ints
    event_times: Ints
    entry_times: Ints
    numbers: Mapping[str, Floats]
    distinct_columns: Mapping[str, pa.Array]
    replaced: Ints | None = None
    rests: Mapping[str, Floats] = field(default_factory=dict)

    def pieces(self) -> Iterator["Events"]:
        """Split the events into pieces of about `PIECE_EVENTS`, each with all events of its keys; at least one."""
        starts = (
            np.searchsorted(self.key, np.arange(self.keys.num_rows)) if self.keys.num_rows else np.zeros(1)
        )
        first = 0
        for key in range(1, len(starts)):
            if starts[key] - starts[first] >= PIECE_EVENTS:
                yield self._piece(first, key, slice(int(starts[first]), int(starts[key])))
                first = key
        yield self._piece(first, len(starts), slice(int(starts[first]), len(self.key)))

    def _piece(self, first: int, last: int, part: slice) -> "Events":
        return Events(
            self.keys.slice(first, last - first),
            self.key[part] - first,
            self.event_times[part],
            self.entry_times[part],
            {name: values[part] for name, values in self.numbers.items()},
            {name: values[part] for name, values in self.distinct_columns.items()},
            None if self.replaced is None else self.replaced[part],
            {name: rests[part] for name, rests in self.rests.items()},
        )

    def leaves(self, length: int) -> Ints:
        """Time, (events,), from which each is in no window of `length` microseconds."""
        too_old = self.event_times + length
        return too_old if self.replaced is None else np.minimum(too_old, self.replaced)

    def rows(self, lengths: Sequence[int], every: int | None) -> "Rows":
        """Find the (key, time) pairs that get a row: each entry, or each grid boundary next after an entry or exit.

        lengths: of all windows, every: of the grid, in microseconds.
        """
        if every is None:
            return place_rows(self.key, self.entry_times)
        boundaries = [_boundaries(self.key, self.entry_times, every)]
        for length in lengths:
            leaves = self.leaves(length)
            visible = leaves > self.entry_times
            boundaries.append(_boundaries(self.key[visible], leaves[visible], every))
        return place_rows(*(np.concatenate(parts) for parts in zip(*boundaries, strict=True)))


def _boundaries(key: Ints, times: Ints, every: int) -> tuple[Ints, Ints]:
    """Find the grid boundaries at or next after the times, without consecutive repeats."""
    at = -(-times // every) * every
    first = np.ones(len(at), dtype=bool)
    first[1:] = (at[1:] != at[:-1]) | (key[1:] != key[:-1])
    return key[first], at[first]


def is_number(dtype: pa.DataType) -> bool:
    """Whether a column of this type can be summed."""
    t = pa.types
    return bool(t.is_integer(dtype) or t.is_floating(dtype) or t.is_boolean(dtype) or t.is_null(dtype))


def order_events(
    events: pa.Table,
    *,
    keys: Sequence[str],
    event_time: str,
    known_at: str,
    numbers: Iterable[str],
    distinct_columns: Iterable[str],
    watermark: int | None = None,
) -> Events:
    """Check an event table and order it; events that are not known yet (null) are left out.

    numbers, distinct_columns: columns to take along as numbers, or as they are.
    watermark: microseconds from an event to the latest time at which it may become known; later ones are left out.
    Raises: InvalidRows for a missing column, a null key or event time, a naive time, or a column that is not of numbers.
    """
    for name in (*keys, known_at, *numbers, *distinct_columns):
        if name not in events.column_names:
            raise InvalidRows(f"{WHERE}: column {name!r} is missing; got {events.column_names}")
    for name in keys:
        refuse_nulls(WHERE, events, name)
    unknown = events.column(known_at).null_count
    known = events.filter(pc.is_valid(events.column(known_at))) if unknown else events
    event_times = microseconds(time_column(WHERE, known, event_time))
    entry_times = np.maximum(event_times, microseconds(time_column(WHERE, known, known_at)))
    if watermark is not None and len(event_times):
        in_time = entry_times - event_times <= watermark
        if not in_time.all():
            known, event_times, entry_times = (
                known.filter(pa.array(in_time)),
                event_times[in_time],
                entry_times[in_time],
            )
    distinct, codes = _encode_keys(known, keys)
    order = _order(codes, entry_times)
    values = {name: _numbers(known, name) for name in numbers}
    return Events(
        distinct,
        codes[order],
        event_times[order],
        entry_times[order],
        {name: rounded[order] for name, (rounded, _) in values.items()},
        {name: known.column(name).combine_chunks().take(pa.array(order)) for name in distinct_columns},
        _replaced(known, order),
        {name: rests[order] for name, (_, rests) in values.items() if rests is not None},
    )


def _replaced(events: pa.Table, order: Ints) -> Ints | None:
    if REPLACED_AT not in events.column_names or events.column(REPLACED_AT).null_count == events.num_rows:
        return None
    at: Ints = events.column(REPLACED_AT).cast(pa.int64()).fill_null(NEVER).to_numpy()
    return at[order]


def _numbers(events: pa.Table, name: str) -> tuple[Floats, Floats | None]:
    """Read a column as float64, NaN where there is no value; and what rounding took from integers that it does not hold."""
    column = events.column(name)
    if not is_number(column.type):
        raise InvalidRows(f"{WHERE}: column {name!r} must be a number, got {column.type}")
    try:
        return column.cast(pa.float64()).fill_null(float("nan")).to_numpy(), None
    except pa.ArrowInvalid:
        whole = column.fill_null(0).to_numpy()
    high, low = (whole >> 32).astype(np.float64) * 2.0**32, (whole & 0xFFFFFFFF).astype(np.float64)
    rounded: Floats = high + low
    rests: Floats = (high - rounded) + low
    absent = column.is_null().to_numpy()
    return np.where(absent, np.nan, rounded), np.where(absent, np.nan, rests)


def _encode_keys(events: pa.Table, keys: Sequence[str]) -> tuple[pa.Table, Ints]:
    """Encode keys: the distinct keys in order, and each event's index among them."""
    if not keys:
        return pa.table({}), np.zeros(events.num_rows, dtype=np.int64)
    if len(keys) == 1:
        encoded = events.column(keys[0]).combine_chunks().dictionary_encode()
        rank = pc.sort_indices(encoded.dictionary)
        index = np.empty(len(rank), dtype=np.int64)
        index[rank.to_numpy()] = np.arange(len(rank))
        return pa.table({keys[0]: encoded.dictionary.take(rank)}), index[encoded.indices.to_numpy()]
    distinct = events.select(list(keys)).group_by(list(keys)).aggregate([])
    distinct = distinct.sort_by([(name, "ascending") for name in keys]).combine_chunks()
    codes = np.zeros(events.num_rows, dtype=np.int64)
    known = np.zeros(distinct.num_rows, dtype=np.int64)
    for name in keys:
        values = pc.unique(distinct.column(name).combine_chunks())
        codes = codes * len(values) + pc.index_in(events.column(name), value_set=values).to_numpy()
        known = known * len(values) + pc.index_in(distinct.column(name), value_set=values).to_numpy()
    order = np.argsort(known)
    return distinct, order[np.searchsorted(known[order], codes)]


def _order(key: Ints, at: Ints) -> Ints:
    """Sort positions by key, then time; by one integer where both fit, by key alone where time is in order."""
    if not len(at):
        return np.zeros(0, dtype=np.int64)
    if int(key.max()) < _RADIX_KEYS and is_rising(at):
        return np.argsort(key.astype(np.uint16), kind="stable")
    first = int(at.min())
    span = int(at.max()) - first + 1
    fits = span * (int(key.max()) + 1) < _COMPOSITE_LIMIT
    order: Ints = np.argsort(key * span + (at - first)) if fits else np.lexsort((at, key))
    return order


@dataclass(frozen=True, slots=True)
class Rows:
    """Result rows ordered by key and time.

    key, at: (rows,). ticks: the distinct times if a key and an offset in time would not fit one integer, else just the
    first. composite: (rows,) one integer that sorts like (key, time).
    """

    key: Ints
    at: Ints
    ticks: Ints
    span: int
    composite: Ints

    def newest(self, by: int) -> tuple["Rows", Ints, Ints]:
        """Select the last row of each key up to a time; returns them, and key and time of the first row after it."""
        past = self.at <= by
        other = self.key[1:] != self.key[:-1]
        last = past & np.append(other | ~past[1:], True)[: len(past)]
        due = ~past & np.append(True, other | past[:-1])[: len(past)]
        return place_rows(self.key[last], self.at[last]), self.key[due], self.at[due]

    def position(self, key: Ints, at: Ints) -> Ints:
        """Find the first row of each key at or after a time; the row after the key's last if none is."""
        found = np.empty(len(at), dtype=np.int64)
        for part in blocks(len(at)):
            wanted = self._offset(at[part])
            wanted += key[part] * self.span
            found[part] = _first_not_below(self.composite, wanted)
        return found

    def _offset(self, at: Ints) -> Ints:
        if len(self.ticks) > 1:
            return np.searchsorted(self.ticks, at, side="left")
        offset: Ints = np.clip(at - self.ticks[:1].sum(), 0, self.span - 1)
        return offset


def _first_not_below(values: Ints, wanted: Ints) -> Ints:
    """Search as `np.searchsorted` does, within the range of `wanted` if it is sorted."""
    if not is_rising(wanted):
        return np.searchsorted(values, wanted, side="left")
    low, high = np.searchsorted(values, wanted[[0, -1]], side="left")
    found: Ints = np.searchsorted(values[low:high], wanted, side="left") + low
    return found


def place_rows(key: Ints, at: Ints) -> Rows:
    """Build one row for each distinct (key, time)."""
    if not len(at):
        return Rows(key, at, at, 1, at)
    first, last = int(at.min()), int(at.max())
    if (last - first + 2) * (int(key.max()) + 1) < _COMPOSITE_LIMIT:
        ticks, span = np.array([first]), last - first + 2
        composite = _distinct(key * span + (at - first))
        return Rows(composite // span, composite % span + first, ticks, span, composite)
    ticks = _distinct(at)
    span = len(ticks) + 1
    composite = _distinct(key * span + np.searchsorted(ticks, at))
    return Rows(composite // span, ticks[composite % span], ticks, span, composite)


def _distinct(values: Ints) -> Ints:
    """Sort distinct values; faster than numpy's hashing `unique` on nearly sorted input."""
    ordered: Ints = values if is_rising(values) else np.sort(values)
    first: Ints = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    return first


def blocks(size: int) -> Iterator[slice]:
    """Slice a long array into blocks that stay in the processor's cache through several steps."""
    return (slice(at, at + _BLOCK) for at in range(0, size, _BLOCK))


def is_rising(values: Ints) -> bool:
    """Whether no value is below the one before."""
    return bool((values[1:] >= values[:-1]).all())


@dataclass(frozen=True, slots=True)
class Alignment:
    """Alignment of events with the rows over which they are aggregated; begin: (events,) first row in which each is known."""

    events: Events
    rows: Rows
    begin: Ints

    @classmethod
    def of(cls, events: Events, rows: Rows) -> "Alignment":
        """Find the row where each event begins: its own, or the next of its key."""
        own = np.array_equal(rows.at, events.entry_times) and np.array_equal(rows.key, events.key)
        begin = np.arange(len(rows.at)) if own else rows.position(events.key, events.entry_times)
        return cls(events, rows, begin)

    def ends(self, length: int) -> Ints:
        """Find (events,) the row in which each event has left a window of `length` microseconds, or its begin if never in it."""
        left = self.rows.position(self.events.key, self.events.leaves(length))
        return np.maximum(self.begin, left, out=left)
