"""Replay of a stream: its log is read again by the definition in force, and the rows of views over it are made anew.

Messages become events again in place of those that were stored, chunk by chunk, with the times at which they became
known the first time. Killed at any line, a replay is made good by the next.

To bound memory, events are divided by key into files on local disk, each computed by itself. Of events that replace
each other, which may have different keys, those of one name are brought together first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.encoding import microseconds
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.stream_source import PARTITION, POSITION, Connection, Messages
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import MessagesLost, UnreadableSource
from toque.featurestore.offline.partitioning import key_hashes
from toque.featurestore.rows import Clock, conform
from toque.featurestore.streams.decode import Decoded, Place, decode, event_schema, rejected_schema
from toque.featurestore.streams.refresh import computed_rows, events_of, own_rows, with_replaced
from toque.featurestore.streams.table import StreamTable

CHUNK_ROWS = 100_000
EVENTS_AT_ONCE = 1 << 19
"""Events that are held at once, on average; all of one key are, however many."""
PIECE_ROWS = 1 << 20
_MOST_FILES = 500  # that are open at once
_PATIENCE_S = 10.0  # for a poll of the log
_DAY_US = 86_400_000_000


class ReplayedPartition(BaseModel):
    """Partition whose messages from position `first` up to before `end` were read again, into so many events and rejected messages."""

    model_config = ConfigDict(frozen=True)

    partition: int
    first: int
    end: int
    events: int = 0
    rejected: int = 0


def read_again(
    table: StreamTable,
    connection: Connection,
    *,
    start: datetime | None,
    chunk_rows: int = CHUNK_ROWS,
) -> list[ReplayedPartition]:
    """Read each partition of a stream again, up to where its consumer is.

    start: from messages on that the log took then, by default all that it has. Where the log no longer has what follows a consumer's
    place, and the time is after it, the place moves there. chunk_rows: read and stored at once.
    Raises: UnreadableSource if the log does not have what was read.
    """
    found = []
    for each in table.known_partitions():
        first = None if start is None else connection.position_at(each, start)
        if first is not None:
            _pass_gap(table, connection, each, first)
        reading = _Reading(table, connection, each, chunk_rows)
        connection.assign({each: first})
        found.append(reading.run(first or 0))
    return found


def _pass_gap(table: StreamTable, connection: Connection, partition: int, first: int) -> None:
    """Move the place of a partition to a position after it, if the log has lost what follows the place."""
    place = table.places([partition])[partition]
    if place is None or first <= place.position:
        return
    connection.assign({partition: place.position})
    try:
        connection.poll(timeout_s=_PATIENCE_S, limit=1)
    except MessagesLost:
        nothing = event_schema(table.source).empty_table(), rejected_schema().empty_table()
        after = {partition: replace(place, position=first)}
        table.rewrite(partition, place.position, Decoded(*nothing, after), last=place)


@dataclass(slots=True)
class _Reading:
    """Replay of one partition of a stream. place: behind what was read and stored again, None before the first chunk."""

    table: StreamTable
    connection: Connection
    partition: int
    chunk_rows: int
    place: Place | None = None
    events: int = 0
    rejected: int = 0

    def run(self, first: int) -> ReplayedPartition:
        """Read chunk by chunk from a position on, until the consumer's is reached."""
        begun = end = first
        while (stored := self.table.places([self.partition])[self.partition]) and end < stored.position:
            messages = self._read(end, before=stored.position)
            if self.place is None:
                begun = end = messages.positions[0]  # the log may no longer have what came before
                self.place = self.table.place_at(self.partition, begun)
            decoded = decode(self.table.source, messages, {self.partition: self.place})
            after = decoded.places[self.partition]
            last = stored if after.position >= stored.position else None
            if self.table.rewrite(self.partition, end, decoded, last=last):
                self.place, end = after, after.position
                self.events += decoded.events.num_rows
                self.rejected += decoded.rejected.num_rows
            else:  # the consumer has gone on meanwhile
                self.connection.assign({self.partition: end})
        return ReplayedPartition(
            partition=self.partition, first=begun, end=end, events=self.events, rejected=self.rejected
        )

    def _read(self, at: int, *, before: int) -> Messages:
        """Read the next messages, at least one, before a position."""
        found = Messages()
        while at < before and len(found) < self.chunk_rows:
            some = self.connection.poll(timeout_s=_PATIENCE_S, limit=self.chunk_rows - len(found))
            for each in zip(some.partitions, some.positions, some.taken_us, some.values, strict=True):
                if each[1] < before:
                    found.add(*each)
                at = each[1] + 1
            if not len(some):
                break
        if not len(found):
            raise UnreadableSource(
                f"stream source {self.table.source.name!r}: partition {self.partition} has no message from position {at} to "
                f"{before}, up to where it was read before; fill its views from what is stored instead (--stored)"
            )
        return found


@dataclass(frozen=True, slots=True)
class ViewRows:
    """Rows of a view in files, each with all rows of its keys in order of time; until: positions up to which they have the events."""

    view: FeatureView
    files: tuple[Path, ...]
    until: dict[int, int]

    @property
    def count(self) -> int:
        """Number of the rows in all files."""
        return sum(each.num_rows for each in self.by_key())

    def by_key(self) -> Iterator[pa.Table]:
        """Iterate over the files, mapped into memory."""
        return (_mapped(each) for each in self.files)

    def by_time(self) -> Iterator[pa.Table]:
        """Iterate over the rows in about `PIECE_ROWS` at a time, whole days one after the other."""
        tables = list(self.by_key())
        times = [microseconds(each.column(EVENT_TIMESTAMP)) for each in tables]
        for begin, end in pairwise(_cuts(times)):
            found = [
                table.slice(first, last - first)
                for table, at in zip(tables, times, strict=True)
                for first, last in [np.searchsorted(at, [begin, end]).tolist()]
            ]
            rows = pa.concat_tables(found)
            for at in range(0, rows.num_rows, PIECE_ROWS):
                yield rows.slice(at, PIECE_ROWS)


def view_rows(view: FeatureView, table: StreamTable, folder: Path, *, clock: Clock) -> ViewRows:
    """Make the rows of a view that follow from all stored events; writes files to the folder."""
    places = table.known_places()
    until = {each: place.position for each, place in places.items()}
    keys, unique = [key.name for key in view.join_keys], table.source.event_name
    parts = min(_MOST_FILES, -(-table.count() // EVENTS_AT_ONCE)) or 1
    events = (events_of(view, each) for each in table.batches(until))
    if view.source is not None and unique:
        named = _Divided.of(events, [*unique, EVENT_TIMESTAMP], folder / "names", parts)
        events = (with_replaced(each, unique) for each in named.parts())
    files = []
    for number, part in enumerate(_Divided.of(events, keys, folder / "keys", parts).parts()):
        rows = own_rows(view, part) if view.source is None else computed_rows(view, part, part, places)
        files.append(folder / f"{number}.arrow")
        made = conform(view, rows, clock=clock).sort_by(EVENT_TIMESTAMP)
        with pa.ipc.new_file(files[-1], made.schema) as writer:
            writer.write_table(made.combine_chunks())
    return ViewRows(view, tuple(files), until)


@dataclass(slots=True)
class _Divided:
    """Tables divided into files by a hash of some columns, so that rows with equal values are in one file."""

    folder: Path
    columns: Sequence[str]
    count: int
    _writers: dict[int, pa.ipc.RecordBatchFileWriter] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Iterator[pa.Table], columns: Sequence[str], folder: Path, count: int) -> _Divided:
        """Divide tables of one schema; all rows go to one file if there are no columns."""
        folder.mkdir()
        made = cls(folder, columns, count if columns else 1)
        for each in tables:
            made._add(each)
        for writer in made._writers.values():
            writer.close()
        return made

    def parts(self) -> Iterator[pa.Table]:
        """Iterate over the files, each in order of partition and position, and delete each after it."""
        for each in sorted(self._writers):
            path = self._path(each)
            yield _mapped(path).sort_by([(PARTITION, "ascending"), (POSITION, "ascending")])
            path.unlink()

    def _add(self, rows: pa.Table) -> None:
        which = (
            key_hashes(_numbered(rows.select(list(self.columns))), self.columns) >> np.uint64(17)
        ) % np.uint64(self.count)
        order = np.argsort(which, kind="stable")
        ordered = rows.take(pa.array(order))
        bounds = np.searchsorted(which[order], np.arange(self.count + 1))
        for part, (first, last) in enumerate(pairwise(bounds.tolist())):
            if first < last:
                if part not in self._writers:
                    self._writers[part] = pa.ipc.new_file(self._path(part), rows.schema)
                self._writers[part].write_table(ordered.slice(first, last - first))

    def _path(self, part: int) -> Path:
        return self.folder / f"{part}.arrow"


def _cuts(times: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> list[int]:
    """Times between which about `PIECE_ROWS` rows lie, or one day: the first, begins of days, and one behind the last."""
    if not sum(map(len, times)):
        return []
    days, counts = np.unique(np.concatenate([each // _DAY_US for each in times]), return_counts=True)
    before = np.cumsum(counts) - counts
    begins = days[np.unique(before // PIECE_ROWS, return_index=True)[1]]
    return [int(each) * _DAY_US for each in [*begins.tolist(), days[-1] + 1]]


def _numbered(rows: pa.Table) -> pa.Table:
    """Give times as microseconds, which need no calendar to become text."""
    columns = [each.cast(pa.int64()) if pa.types.is_timestamp(each.type) else each for each in rows.columns]
    return pa.table(columns, names=rows.column_names) if columns else rows


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
