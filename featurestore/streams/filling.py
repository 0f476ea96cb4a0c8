"""Rows of a view from all stored events of its stream, in bounded memory: the events are divided by key into files on local disk.

Each file has all events of its keys and is computed by itself. Of events that replace each other, which may have different keys, those of
one name are brought together first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.stream_source import PARTITION, POSITION
from toque.featurestore.offline.partitioning import key_hashes
from toque.featurestore.rows import Clock, conform
from toque.featurestore.streams.refresh import computed_rows, events_of, own_rows, with_replaced

if TYPE_CHECKING:
    from toque.featurestore.definitions.views import FeatureView
    from toque.featurestore.streams.table import StreamTable

EVENTS_AT_ONCE = 1 << 19
"""Events that are held at once, on average; all of one key are, however many."""
PIECE_ROWS = 1 << 20
_MOST_FILES = 500  # that are open at once
_DAY_US = 86_400_000_000


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
        times = [_microseconds(each) for each in tables]
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
    places = {
        each: place for each, place in table.places(table.known_partitions()).items() if place is not None
    }
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
        _write(files[-1], conform(view, rows, clock=clock).sort_by(EVENT_TIMESTAMP))
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


def _write(path: Path, rows: pa.Table) -> None:
    with pa.ipc.new_file(path, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _microseconds(rows: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    column = rows.column(EVENT_TIMESTAMP)
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    found: np.ndarray[Any, np.dtype[np.int64]] = chunk.cast(pa.int64()).to_numpy()
    return found
