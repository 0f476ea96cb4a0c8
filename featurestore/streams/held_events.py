"""Events of a view that can still be in one of its windows, by key, and the rows that follow from them now.

Rows come from the aggregation code that batch uses, over the events of the keys that something happened to. Memory is
that of the events in the longest window: they lie in segments, and a segment goes when all of it is too old.

What cannot be computed of a view or key is left out, and the others of the stream go on: a declaration or a value
that cannot work would else end the consumer of all views of its source, again and again.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.batch_source import KNOWN_AT
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.encoding import microseconds
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.stream_source import CLOCK_TOLERANCE, PARTITION
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import FeatureStoreError, OnlineStoreUnavailable, StreamRewritten
from toque.featurestore.streams.refresh import events_of, windows_of
from toque.featurestore.windows.windowing import REPLACED_AT, Ints
from toque.registry.times import MICROSECOND, epoch_us

Key: TypeAlias = tuple[Any, ...]
SEGMENT_BITS = 16
_SEGMENT_ROWS = 1 << SEGMENT_BITS
_EVENTS_AT_ONCE = 200_000
_PLACE_BYTES = 8
_DROPS_A_SWEEP = 8
RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0
MOST_TRIES = 256
"""Computations of a view that may fail in a row before it is left out: it takes some twenty to find one key of a million."""
COMPUTED_WRONG = (
    FeatureStoreError,
    pa.ArrowException,
    pl.exceptions.PolarsError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
)
"""Errors of a computation over a view's events, as its columns and values cause them."""
_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Segment:
    """Some events in the order in which they came; newest: greatest event time of each partition, in microseconds."""

    events: pa.Table
    newest: dict[int, int] = field(default_factory=dict)


class HeldEvents:
    """Events of one view with windows; an event is known by its segment's number and its row in it, as one integer.

    unique: columns that name an event, with its time: a later one of one name stands for the earlier.
    """

    def __init__(self, view: FeatureView, unique: Sequence[str]) -> None:
        self.view, self._windows = view, windows_of(view)
        self._keys = [key.name for key in view.join_keys]
        self._unique = [*unique, EVENT_TIMESTAMP] if unique else []
        used = {a.column for a in self._windows.aggregations if a.column}
        self._columns = list(dict.fromkeys([*self._keys, *sorted(used), EVENT_TIMESTAMP, KNOWN_AT]))
        window = max(a.time_window for a in self._windows.aggregations)
        step = self._windows.every
        self._window_us = window // MICROSECOND
        # Rows of the last minutes may not have been written: a log's clock may be ahead, and its events wait for their time.
        self._reach_us = (
            self._window_us + (0 if step is None else step // MICROSECOND) + CLOCK_TOLERANCE // MICROSECOND
        )
        self._segments: dict[int, _Segment] = {}
        self._first = self._next = self._drops = 0
        self._of_key: dict[Key, bytearray] = {}  # of int64: a list would hold an object for each event
        self._partition: dict[Key, int] = {}
        self._named: dict[Key, tuple[int, Key]] = {}
        self._replaced: dict[int, int] = {}
        self._due: list[tuple[int, Key]] = []
        self._due_at: dict[Key, int] = {}
        self._complete_after: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(each.events.num_rows for each in self._segments.values())

    def horizon_us(self, known_us: int) -> int:
        """Event time up to which no event can be in a window of a row to come, once a partition's events are known to a time."""
        return known_us - self._reach_us

    def written_us(self, known_us: int) -> int:
        """Moment up to which all rows are written, once a partition's events are known to a time: a late event has one at its next."""
        return self.horizon_us(known_us) + self._window_us

    def begin(self, partition: int, known_us: int) -> None:
        """Say that events of a partition will be added that happened after `horizon_us` or became known after `written_us`."""
        self._complete_after[partition] = self.written_us(known_us)

    def add(self, events: pa.Table) -> set[Key]:
        """Add events in the order in which they became known; returns the keys to which something happened."""
        events, touched = events_of(self.view, events), set[Key]()
        for begin in range(
            0, events.num_rows, _SEGMENT_ROWS
        ):  # a consumer that begins adds all that its windows need
            part = events.slice(begin, _SEGMENT_ROWS)
            first = self._append(part)
            touched |= self._add_to_keys(part, first)
            if self._unique:
                touched |= self._replace_named(part, first)
        return touched

    def _add_to_keys(self, events: pa.Table, first: int) -> set[Key]:
        """Note which events are of which key, the integer of the first being `first`; returns the keys."""
        numbers: dict[Key, int] = {}
        of_event = [numbers.setdefault(key, len(numbers)) for key in _tuples(events, self._keys)]
        order = np.argsort(np.array(of_event, dtype=np.int64), kind="stable")
        ends = np.cumsum(np.bincount(of_event, minlength=len(numbers)))
        places, begin = (order + first).astype(np.int64).tobytes(), 0
        for key, end in zip(numbers, (ends * _PLACE_BYTES).tolist(), strict=True):
            found = self._of_key.get(key)
            if found is None:
                self._of_key[key] = bytearray(places[begin:end])
            else:
                found += places[begin:end]
            begin = end
        partitions = events.column(PARTITION).to_numpy()[order[ends - 1]].tolist()
        self._partition.update(zip(numbers, partitions, strict=True))
        return set(numbers)

    def _replace_named(self, events: pa.Table, first: int) -> set[Key]:
        """Note which earlier events are replaced by these; returns their keys."""
        touched = set[Key]()
        known = microseconds(events.column(KNOWN_AT)).tolist()
        named = zip(_tuples(events, self._unique), _tuples(events, self._keys), known, strict=True)
        for at, (name, key, moment) in enumerate(named, first):
            before = self._named.get(name)
            if before is not None:
                self._replaced[before[0]] = moment
                touched.add(before[1])
            self._named[name] = at, key
        return touched

    def _append(self, events: pa.Table) -> int:
        """Append to the open segment, or begin the next; returns the integer of the first event."""
        kept = events.select(self._columns)
        if self._next == self._first or self._open.num_rows + kept.num_rows > _SEGMENT_ROWS:
            self._segments[self._next] = _Segment(kept.slice(0, 0))
            self._next += 1
        number = self._next - 1
        segment = self._segments[number]
        first: int = (number << SEGMENT_BITS) + segment.events.num_rows
        segment.events = pa.concat_tables([segment.events, kept]).combine_chunks()
        # An event is held until its own row is written, also if it is too old to be in that row's windows.
        entered = microseconds(events.column(KNOWN_AT)) - (self._reach_us - CLOCK_TOLERANCE // MICROSECOND)
        times = np.maximum(microseconds(events.column(EVENT_TIMESTAMP)), entered)
        partitions = events.column(PARTITION).to_numpy()
        for each in np.unique(partitions).tolist():
            newest = int(times[partitions == each].max())
            segment.newest[each] = max(newest, segment.newest.get(each, newest))
        return first

    @property
    def _open(self) -> pa.Table:
        return self._segments[self._next - 1].events

    def due(self, now: datetime) -> set[Key]:
        """Take the keys whose next row's moment has come."""
        at, found = epoch_us(now), set[Key]()
        while self._due and self._due[0][0] <= at:
            moment, key = heapq.heappop(self._due)
            if self._due_at.get(key) == moment:
                del self._due_at[key]
                found.add(key)
        return found

    def newest(self, keys: Collection[Key], *, by: datetime, known_us: Mapping[int, int]) -> pa.Table:
        """Compute the newest row of each key up to a time, and note when its next is due.

        known_us: when the last event of each partition became known.
        """
        parts = [self._newest(events, by, known_us) for events in self._events_of(keys)]
        return pa.concat_tables(parts) if parts else self._newest(self._empty(), by, known_us)

    def _newest(self, events: pa.Table, by: datetime, known_us: Mapping[int, int]) -> pa.Table:
        rows, coming = self._windows.newest(events, keys=self._keys, by=by)
        moments = microseconds(coming.column(EVENT_TIMESTAMP)).tolist()
        for key, moment in zip(_tuples(coming, self._keys), moments, strict=True):
            if self._due_at.get(key) != moment:
                self._due_at[key] = moment
                heapq.heappush(self._due, (moment, key))
        partitions = [self._partition[key] for key in _tuples(rows, self._keys)]
        at = microseconds(rows.column(EVENT_TIMESTAMP))
        known = np.array([known_us.get(each, 0) for each in partitions], dtype=np.int64)
        least = np.array([self._complete_after.get(each, 0) for each in partitions], dtype=np.int64)
        created = pa.array(np.minimum(at, known), pa.int64()).cast(TIMESTAMP)
        return rows.append_column(CREATED_TIMESTAMP, created).filter(pa.array(at > least))

    def _empty(self) -> pa.Table:
        if self._segments:
            return self._open.slice(0, 0)
        fields = {each.name: each.dtype.arrow for each in self.view.join_keys}
        others = {name: pa.float64() for name in self._columns if name not in fields}
        times = dict.fromkeys((EVENT_TIMESTAMP, KNOWN_AT), TIMESTAMP)
        return pa.schema(list((fields | others | times).items())).empty_table()

    def _events_of(self, keys: Collection[Key]) -> Iterator[pa.Table]:
        """Gather the events of some keys, in tables of bounded size, each with all events of its keys."""
        waiting: list[bytearray] = []
        size = 0
        for key in keys:
            found = self._of_key.get(key)
            if found is not None:
                waiting.append(found)
                size += len(found)
            if size >= _EVENTS_AT_ONCE * _PLACE_BYTES:
                yield self._take(self._living(b"".join(waiting)))
                waiting, size = [], 0
        at = self._living(b"".join(waiting))
        if len(at):
            yield self._take(at)

    def _living(self, places: bytes | bytearray) -> Ints:
        """Select the integers of events whose segments are still held."""
        at: Ints = np.frombuffer(places, dtype=np.int64)
        living = at >= self._first << SEGMENT_BITS
        return at if living.all() else at[living]

    def _take(self, at: Ints) -> pa.Table:
        numbers = at >> SEGMENT_BITS
        parts, order = [], []
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            rows = pa.array(at[chosen] & (_SEGMENT_ROWS - 1))
            parts.append(self._segments[number].events.take(rows))
            order.append(chosen)
        events = pa.concat_tables(parts)
        if not self._replaced:
            return events
        ids = at[np.concatenate(order)].tolist()
        replaced = pa.array([self._replaced.get(each) for each in ids], pa.int64())
        return events.append_column(REPLACED_AT, replaced.cast(TIMESTAMP))

    def forget(self, known_us: Mapping[int, int]) -> None:
        """Let go of segments all of whose events are too old, once the partitions' events are known to some time."""
        horizons = {each: self.horizon_us(at) for each, at in known_us.items()}
        gone = False
        while self._first < self._next - 1:  # the open one stays
            newest = self._segments[self._first].newest
            if any(at > horizons.get(each, at) for each, at in newest.items()):
                break
            del self._segments[self._first]
            self._first += 1
            self._drops += 1
            gone = True
        if gone:
            for partition, at in known_us.items():
                written = self.written_us(at)
                self._complete_after[partition] = max(written, self._complete_after.get(partition, written))
        if self._drops >= _DROPS_A_SWEEP:
            self._drops = 0
            self._sweep()

    def _sweep(self) -> None:
        """Drop what is known of keys and names without events."""
        first = self._first << SEGMENT_BITS
        living = ((key, self._living(found)) for key, found in self._of_key.items())
        self._of_key = {key: bytearray(at.tobytes()) for key, at in living if len(at)}
        self._partition = {key: self._partition[key] for key in self._of_key}
        self._named = {name: one for name, one in self._named.items() if one[0] >= first}
        self._replaced = {at: moment for at, moment in self._replaced.items() if at >= first}

    def all_keys(self) -> set[Key]:
        """List the keys of all events."""
        return set(self._of_key)


def _tuples(rows: pa.Table, names: Sequence[str]) -> Iterator[Key]:
    """Read the values of some columns row by row."""
    if not names:
        return repeat((), rows.num_rows)
    return zip(*(_values(rows.column(name)) for name in names), strict=True)


def _values(column: pa.ChunkedArray) -> Iterable[Any]:
    if pa.types.is_timestamp(column.type):  # as integers, which compare faster
        column = pc.cast(column, pa.int64())
    return column.to_pylist()  # type: ignore[no-any-return]


class ViewFaults:
    """Views over a source that cannot be computed now. Each is tried anew after a minute, and then ever less often."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._left_out: set[str] = set()
        self._pause_s: dict[str, float] = {}
        self._failures: dict[str, int] = {}  # in a row
        self._retry_at = float("inf")
        self._count = 0

    def left_out(self, view: FeatureView) -> bool:
        """Whether a view is left out until the next retry."""
        return view.name in self._left_out

    def begin(self) -> None:
        """Try all views anew, as the consumer begins from the table."""
        self._left_out, self._retry_at, self._failures = set(), float("inf"), {}

    def take_count(self) -> int:
        """Number of faults since it was taken last."""
        count, self._count = self._count, 0
        return count

    @property
    def retry_due(self) -> bool:
        """Whether a view that was left out is to be tried again."""
        return time.monotonic() >= self._retry_at

    @contextmanager
    def of(self, view: FeatureView) -> Iterator[None]:
        """Leave a view out if the block fails by it; errors of the stores and the log are raised."""
        try:
            yield
        except (OnlineStoreUnavailable, StreamRewritten):
            raise
        except COMPUTED_WRONG:
            pause_s = self._pause_s.get(view.name, RETRY_S)
            self._pause_s[view.name] = min(LONGEST_RETRY_S, 2 * pause_s)
            self._left_out.add(view.name)
            self._retry_at = min(self._retry_at, time.monotonic() + pause_s)
            self._count += 1
            _logger.exception(
                "stream source %r: feature view %r cannot be computed and is left out, the others go on; it is tried again in "
                "%.0f s, and at once when its definition changes",
                self._source,
                view.name,
                pause_s,
            )

    def rows_of(
        self, view: FeatureView, keys: set[Key], compute: Callable[[set[Key]], pa.Table]
    ) -> list[pa.Table]:
        """Compute rows of some keys, leaving out those by which the computation fails, unless nothing else is left.

        Raises: what the computation raises, once it has failed `MOST_TRIES` times in a row.
        """
        parts, tables = [list(keys)], list[pa.Table]()
        while parts:
            part = parts.pop()
            try:
                tables.append(compute(set(part)))
            except COMPUTED_WRONG as error:
                self._failures[view.name] = self._failures.get(view.name, 0) + 1
                if self._failures[view.name] >= MOST_TRIES:
                    raise
                middle = len(part) // 2
                if middle:
                    parts += [part[:middle], part[middle:]]
                else:
                    self._leave_out_key(view, part[0], error)
            else:
                self._failures[view.name] = 0
        return tables

    def _leave_out_key(self, view: FeatureView, key: Key, error: Exception) -> None:
        self._count += 1
        _logger.warning(
            "stream source %r: feature view %r: the row of key %s cannot be computed and stays as it was: %s: %s",
            self._source,
            view.name,
            key,
            type(error).__name__,
            error,
        )
