"""Loads of a batch source: one while it goes on, and the journal of what each brought and how far the source was read.

Rows that fit go to files, others aside, and pieces that cannot be read are noted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.batch_source import KNOWN_AT, UNMARKED, BatchSource, Piece, TimeRange
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.expectations import Freshness, InRange
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.errors import UnexpectedRows, UnreadableSource
from toque.featurestore.sources.rows import REASON, REJECTED, REPEATED, check
from toque.registry.journal import Entry, Fold, Journal
from toque.registry.store import Table, write_part
from toque.registry.store.tables.parts import Part, delete_part

SHOWN = 100
"""Greatest number of pieces and reasons that a load or a lineage names."""
_KEPT_LOADS = 20  # loads in the state of a source; all are in its journal
BACKFILL = ":backfill"
"""Key in a position of the range that is being loaded again: its start, its end, and until when it was."""

ROWS_READ = ":rows"
"""Key in a position of the number of rows that were read, of a source that numbers them."""
LOAD, LOAD_PART = "load", "load_part"
"""Columns that say which load brought a row, and in which of the load's files, in the order of reading."""
PART_ROWS = 1 << 20
_logger = logging.getLogger(__name__)


class Loaded(BaseModel):
    """Sum of all loads up to one: rows stored, and the first and last time of their events."""

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    first: datetime | None = None
    last: datetime | None = None

    def __add__(self, other: Loaded) -> Loaded:
        return Loaded(
            rows=self.rows + other.rows,
            first=min((each for each in (self.first, other.first) if each is not None), default=None),
            last=max((each for each in (self.last, other.last) if each is not None), default=None),
        )


class SourceLoad(BaseModel):
    """Load of a batch source, as its journal has it.

    number: from 1. read: of what, a name for each piece, the first hundred. rows: that were new and fit. known: that were
    stored before. rejected: that did not fit and are kept aside, with reasons by how often. unreadable: pieces that could not
    be read, with the reason; the next load tries them again. removed: rows that went at the source since; they stay here. backfill: start and end of the event times that were read again.
    waiting: pieces of which something is left for a later load, with the reason.
    total: of all loads up to this one; None after loads that did not count it.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    number: int
    at: datetime
    read: list[str]
    rows: int
    known: int = 0
    rejected: int = 0
    reasons: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    waiting: dict[str, str] = {}
    removed: int = 0
    first: datetime | None = None
    last: datetime | None = None
    backfill: tuple[datetime, datetime] | None = None
    total: Loaded | None = None

    @property
    def loaded(self) -> Loaded:
        """Rows that this load stored, and their times."""
        return Loaded(rows=self.rows, first=self.first, last=self.last)


class SourceLineage(BaseModel):
    """Part of a batch source that something was made from: all its loads up to one.

    reads: the reader, without secrets. load, at: number and time of the last load. rows, first, last: of all loads: how many,
    and the first and last time of their events; None if earlier loads did not count them. read: what the last loads read
    (files, versions, snapshots, values of the watermark), newest first, at most a hundred.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    reads: dict[str, Any]
    load: int
    at: datetime
    rows: int | None
    first: datetime | None
    last: datetime | None
    read: list[str]


@dataclass(frozen=True, slots=True)
class SourceState:
    """State of a source: how far it was read, and its last loads."""

    position: dict[str, Any] = field(default_factory=dict)
    loads: tuple[SourceLoad, ...] = ()

    @property
    def number(self) -> int:
        """Number of the last load, 0 before the first."""
        return self.loads[-1].number if self.loads else 0

    @property
    def total(self) -> Loaded | None:
        """Sum of all loads; None if it was not counted from the first on."""
        if not self.loads:
            return Loaded()
        if self.loads[-1].total is None and self.loads[0].number == 1:
            return sum((each.loaded for each in self.loads), Loaded())
        return self.loads[-1].total


def loads_in(journal: Journal) -> Fold[SourceState]:
    """Fold a source's journal into its state."""
    return Fold(journal, SourceState(), _step, encode=_encode, decode=_decode)


def lineage_of(log: Fold[SourceState], reads: dict[str, Any], number: int) -> SourceLineage:
    """Describe all loads up to `number` as lineage. Raises: UnreadableSource if there is no such load."""
    kept = [each for each in log.refresh().loads if each.number <= number]
    if not kept:  # longer ago than the state reaches back; a journal's entries are its loads
        entry = log.journal.find(number - 1)
        if entry is None:
            raise UnreadableSource(f"{log.journal.path}: the journal has no load {number}")
        kept = [SourceLoad.model_validate(entry.body["load"])]
    last, total = kept[-1], SourceState(loads=tuple(kept)).total
    return SourceLineage(
        source=last.source,
        reads=reads,
        load=last.number,
        at=last.at,
        rows=None if total is None else total.rows,
        first=None if total is None else total.first,
        last=None if total is None else total.last,
        read=[name for load in reversed(kept) for name in load.read][:SHOWN],
    )


def _step(state: SourceState, entry: Entry) -> SourceState:
    load = SourceLoad.model_validate(entry.body["load"])
    return SourceState(state.position | entry.body["position"], (*state.loads, load)[-_KEPT_LOADS:])


def _encode(state: SourceState) -> Any:
    return [state.position, [each.model_dump(mode="json") for each in state.loads]]


def _decode(kept: Any) -> SourceState:
    return SourceState(kept[0], tuple(SourceLoad.model_validate(each) for each in kept[1]))


class RunningLoad:
    """One load: takes pieces or rows, writes files beside the table, and reports. What follows is read while a file is written.

    table: that the files belong to. not_stored: leaves out of rows those that change nothing, after what is stored and the
    earlier files of this load. before: sum of all earlier loads.
    first_row: number of the first row that is read, which a source may keep. within: of a backfill, the times that are read.
    """

    def __init__(
        self,
        source: BatchSource,
        table: Table,
        not_stored: Callable[[pa.Table, Sequence[Part]], pa.Table],
        *,
        number: int,
        at: datetime,
        before: Loaded | None,
        first_row: int = 0,
        within: TimeRange | None = None,
    ) -> None:
        self.number, self.at, self._source, self._table = number, at, source, table
        self._not_stored, self._before, self._within = not_stored, before, within
        self._next_row = first_row
        self.position: dict[str, Any] = {}
        self.rejected: list[pa.Table] = []
        self.unreadable: dict[str, str] = {}
        self.waiting: dict[str, str] = {}
        self.read: list[str] = []
        self.removed = 0
        self._written: list[_Written] = []
        self._files: list[Future[Part]] = []
        self._waiting: list[pa.Table] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="source-writer")

    def take(self, piece: Piece) -> None:
        """Read a piece whole, or leave it out whole."""
        rows: list[pa.Table] = []
        rejected: list[pa.Table] = []
        written: list[_Written] = []
        next_row = self._next_row
        try:
            for batch in piece.batches():
                checked = check(self._source, batch, loaded_at=self.at, first=next_row)
                next_row += batch.num_rows
                rows.append(checked.rows)
                rejected.append(checked.rejected)
                if sum(each.num_rows for each in rows) >= PART_ROWS:
                    self.flush()  # first what was read before: later files have later rows
                    written.append(self._write(rows, [*self._written, *written]))
                    rows = []
        except UnreadableSource as error:
            self.unreadable[piece.name] = str(error)
            return
        if piece.torn:
            reasons = [piece.tears] * len(piece.torn)
            rejected.append(pa.table([reasons, piece.torn], schema=REJECTED))
        if piece.waiting:
            _logger.warning("batch source %r: %s", self._source.name, piece.waiting)
            self.waiting[piece.name] = piece.waiting
            if not piece.position:
                return
        self.position |= piece.position
        self._next_row = next_row
        if self._source.row_number:
            self.position[ROWS_READ] = next_row
        self.read.append(piece.name)
        self.removed += sum(piece.removed)
        self._written += written
        self.rejected += [each for each in rejected if each.num_rows]
        self._waiting += rows
        if sum(each.num_rows for each in self._waiting) >= PART_ROWS:
            self.flush()

    def add(self, rows: pa.Table) -> None:
        """Write rows that were checked already, in files of bounded size."""
        for start in range(0, rows.num_rows, PART_ROWS):
            self._written.append(self._write([rows.slice(start, PART_ROWS)], self._written))

    def flush(self) -> None:
        """Write the rows of pieces that were too small for a file of their own."""
        if any(each.num_rows for each in self._waiting):
            self._written.append(self._write(self._waiting, self._written))
        self._waiting = []

    @property
    def parts(self) -> list[Part]:
        """Files of the load's rows, once all are written. Raises: OSError if one cannot be."""
        return [each.part.result() for each in self._written if each.part is not None]

    def discard(self, *, but: Sequence[Part] = ()) -> None:
        """Delete the load's files, but those of a commit: what no version names would hold rows that an erasure waits for."""
        for each in self._files:
            if each.exception() is None and each.result() not in but:
                delete_part(self._table, each.result())
        self._files = []

    def require_fit(self) -> None:
        """Check that few rows were kept aside, and that the newest is fresh. Raises: UnexpectedRows."""
        self.require_share()
        for each in self._source.expectations if self._within is None else ():  # old rows are not fresh
            if isinstance(each, Freshness):
                last = pa.table({EVENT_TIMESTAMP: pa.array([self.report().last], TIMESTAMP)})
                each.check(f"batch source {self._source.name!r}", last, newest=None, now=self.at)

    def require_share(self) -> None:
        """Check that few rows were kept aside. Raises: UnexpectedRows."""
        report, where = self.report(), f"batch source {self._source.name!r}"
        given = report.rows + report.known + report.rejected
        # An hour that comes twice says nothing against the source: each autumn there is one.
        twice = sum(
            pc.sum(pc.match_substring_regex(each.column(REASON), f"{REPEATED}|{UNMARKED}")).as_py()
            for each in self.rejected
        )
        if report.rejected - twice > self._source.bad_share * given:
            reasons = "; ".join(f"{reason} ({count} rows)" for reason, count in report.reasons.items())
            raise UnexpectedRows(
                f"{where}: {report.rejected} of {given} rows do not fit, more than bad_share={self._source.bad_share:g}: {reasons}. "
                "Correct the source or its declaration; nothing was loaded"
            )

    def report(self) -> SourceLoad:
        """Report the load as it stands."""
        reasons = Counter[str]()
        for each in self.rejected:
            reasons.update(each.column("reason").to_pylist())
        ranges = [each.between for each in self._written if each.between is not None]
        load = SourceLoad(
            source=self._source.name,
            number=self.number,
            at=self.at,
            read=self.read[:SHOWN],
            rows=sum(each.rows for each in self._written),
            known=sum(each.known for each in self._written),
            rejected=sum(reasons.values()),
            reasons=dict(reasons.most_common(SHOWN)),
            unreadable=dict(list(self.unreadable.items())[:SHOWN]),
            waiting=dict(list(self.waiting.items())[:SHOWN]),
            removed=self.removed,
            first=min((first for first, _ in ranges), default=None),
            last=max((last for _, last in ranges), default=None),
            backfill=None if self._within is None else (self._within.start, self._within.end),
        )
        total = None if self._before is None else self._before + load.loaded
        return load.model_copy(update={"total": total})

    def _write(self, rows: list[pa.Table], earlier: Sequence[_Written]) -> _Written:
        """Write rows that are not stored yet to a file of the table. earlier: what was read before them. Raises: UnexpectedRows."""
        given = pa.concat_tables(rows)
        for each in self._source.expectations:
            if not isinstance(each, Freshness | InRange):  # a row out of its range was kept aside
                each.check(f"batch source {self._source.name!r}", given)
        first, last = pc.min_max(given.column(EVENT_TIMESTAMP)).as_py().values()
        parts = [each.part.result() for each in earlier if each.part and each.may_hold(first, last)]
        new = self._not_stored(given, parts)
        if not new.num_rows:
            return _Written(None, known=given.num_rows)
        for name, value in (
            (LOAD, pa.scalar(self.number, pa.int64())),
            (LOAD_PART, pa.scalar(len(earlier), pa.int32())),
        ):
            new = new.append_column(name, pa.repeat(value, new.num_rows))
        first, last = pc.min_max(new.column(EVENT_TIMESTAMP)).as_py().values()
        if not any(each.part for each in earlier):
            self._table.create(new.schema)
        if earlier and earlier[-1].part:
            earlier[-1].part.result()  # no more than one file waits to be written
        part = self._writer.submit(write_part, self._table, new, bounds=(EVENT_TIMESTAMP, KNOWN_AT, LOAD))
        self._files.append(part)
        return _Written(part, new.num_rows, given.num_rows - new.num_rows, (first, last))


@dataclass(frozen=True, slots=True)
class _Written:
    """File of new rows, which is None if all were known; between: the first and last event time."""

    part: Future[Part] | None
    rows: int = 0
    known: int = 0
    between: tuple[datetime, datetime] | None = None

    def may_hold(self, first: datetime, last: datetime) -> bool:
        """Whether some of its rows may lie between two times, both included."""
        return self.between is not None and self.between[0] <= last and first <= self.between[1]
