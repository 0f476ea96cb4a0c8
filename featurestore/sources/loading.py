"""Loads of a batch source: what is new there comes into its table in the store, once, whatever is killed in between.

A load writes files beside the table, names them all in one commit that carries the load's number, and then records it in the
source's journal. Killed before the commit, it has done nothing; killed after it, the next load finds the commit and records
it. Of two loads at once the table takes one.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.exceptions import CommitFailedError
from pydantic import BaseModel, ConfigDict

from featurestore.definitions.batch_source import KNOWN_AT, BatchSource, Piece, Secrets
from featurestore.definitions.dtypes import TIMESTAMP
from featurestore.definitions.expectations import Freshness, InRange
from featurestore.definitions.fields import EVENT_TIMESTAMP
from featurestore.errors import UnexpectedRows, UnreadableSource
from featurestore.sources.rows import REJECTED, check, row_schema
from registry.journal import Entry, Fold, Journal
from registry.store import ObjectStore, Table, append_with_parts, write_part
from registry.store.table_parts import Part
from registry.times import Clock

LOAD = "load"
PART_ROWS = 1 << 20
SMALL_FILES, SMALL_BYTES = 32, 32 << 20
"""A table with so many files below that size is compacted after a load."""
_METADATA = "source_load"
_SHOWN = 100
_KEPT = 20  # loads in the state of a source; all are in its journal


class SourceLoad(BaseModel):
    """Load of a batch source, as its journal has it.

    number: from 1. read: of what, a name for each piece, the first hundred. rows: that were new and fit. known: that were
    stored before. rejected: that did not fit and are kept aside, with reasons by how often. unreadable: pieces that could not
    be read, with the reason; the next load tries them again.
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
    first: datetime | None = None
    last: datetime | None = None


@dataclass(frozen=True, slots=True)
class SourceState:
    """State of a source: how far it was read, and its last loads."""

    position: dict[str, Any] = field(default_factory=dict)
    loads: tuple[SourceLoad, ...] = ()

    @property
    def number(self) -> int:
        """Number of the last load, 0 before the first."""
        return self.loads[-1].number if self.loads else 0


def _step(state: SourceState, entry: Entry) -> SourceState:
    load = SourceLoad.model_validate(entry.body["load"])
    return SourceState(state.position | entry.body["position"], (*state.loads, load)[-_KEPT:])


def _encode(state: SourceState) -> Any:
    return [state.position, [each.model_dump(mode="json") for each in state.loads]]


def _decode(kept: Any) -> SourceState:
    return SourceState(kept[0], tuple(SourceLoad.model_validate(each) for each in kept[1]))


class SourceTable:
    """Table of a project's batch source, with the journal of its loads.

    clock: gives the times of loads.
    """

    def __init__(
        self, source: BatchSource, store: ObjectStore, project: str, *, actor: str, clock: Clock
    ) -> None:
        self.source, self._clock = source, clock
        self.table = Table(store, f"features/{project}/sources/{source.name}")
        self.rejected = Table(store, f"features/{project}/rejected/{source.name}")
        journal = Journal(store, f"features/{project}/sources/{source.name}", actor=actor, clock=clock)
        self._state: Fold[SourceState] = Fold(journal, SourceState(), _step, encode=_encode, decode=_decode)

    def state(self) -> SourceState:
        """Read how far the source was read, and its last loads."""
        return self._state.refresh()

    def load(self, secrets: Secrets) -> SourceLoad | None:
        """Load what is new at the source; returns None if nothing is.

        Raises: UnreadableSource if it cannot be read at all, or nothing that is new in it; UnexpectedRows if too many rows do
        not fit, or a `NullShare` or `Freshness` does not hold. Then nothing is stored.
        """
        self._record_committed()
        state = self._state.refresh()
        number = state.number + 1
        load = _Load(self, number, self._clock())
        names = sorted(set(self.source.read_columns.values()))
        for piece in self.source.reads.pieces(state.position, names, secrets):
            load.take(piece)
        load.flush()
        if not load.position:
            if load.unreadable:
                raise UnreadableSource("; ".join(load.unreadable.values()))
            return None
        load.require_fit()
        body = {"load": load.report().model_dump(mode="json"), "position": load.position}
        self._commit(load, body)
        return self.state().loads[-1]

    def rows(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        by: str = EVENT_TIMESTAMP,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> pa.Table:
        """Read stored rows of the loads `after` < number <= `until`, with `start` <= time <= `end` in the column `by`.

        Of rows with one `unique` key and event time, the one that was loaded last counts.
        """
        schema = row_schema(self.source).append(pa.field(LOAD, pa.int64()))
        if not self.table.exists():
            return schema.empty_table()
        given = ((LOAD, ">", after), (LOAD, "<=", until), (by, ">=", start), (by, "<=", end))
        found = self.table.read(where=[each for each in given if each[2] is not None])
        columns = [
            found.column(each.name)
            if each.name in found.column_names
            else pa.nulls(found.num_rows, each.type)
            for each in schema
        ]
        rows = pa.table(columns, schema=schema)
        if not self.source.unique:
            return rows
        frame = pl.DataFrame(rows).sort(LOAD, maintain_order=True)
        keys = [*self.source.unique, EVENT_TIMESTAMP]
        return frame.unique(keys, keep="last", maintain_order=True).to_arrow().cast(schema)

    def not_stored(self, rows: pa.Table) -> pa.Table:
        """Leave out rows that are stored as they are, where the source says what names a row."""
        if not self.source.unique or not rows.num_rows:
            return rows
        columns = [name for name in rows.column_names if name != KNOWN_AT or self.source.known_at]
        first, last = pc.min_max(rows.column(EVENT_TIMESTAMP)).as_py().values()
        stored = pl.DataFrame(self.rows(start=first, end=last).select(columns))
        new = pl.DataFrame(rows).unique(columns, keep="first", maintain_order=True)
        found = new.join(stored, on=columns, how="anti", nulls_equal=True, maintain_order="left")
        return found.to_arrow().cast(rows.schema)

    def _commit(self, load: _Load, body: dict[str, Any]) -> None:
        """Store a load's rows and record it; of two loads of one number the first counts."""
        transactions = {f"source:{self.source.name}": load.number}
        if load.rejected:
            aside = pa.concat_tables(load.rejected)
            aside = aside.append_column(LOAD, pa.array([load.number] * aside.num_rows, pa.int64()))
            self.rejected.append(aside, transactions=transactions)
        schema = row_schema(self.source).append(pa.field(LOAD, pa.int64()))
        append_with_parts(
            self.table, load.parts, schema, transactions=transactions, metadata={_METADATA: json.dumps(body)}
        )
        self._record_committed()
        self._compact()

    def _record_committed(self) -> None:
        """Record the load that the table has and the journal lacks, if there is one."""
        committed = self.table.transaction(f"source:{self.source.name}")
        if committed is None or committed <= self._state.refresh().number:
            return
        body = self._committed_body(committed)

        def decide(state: SourceState) -> dict[str, Any] | None:
            return body if state.number < committed else None

        self._state.transact(decide)

    def _committed_body(self, number: int) -> dict[str, Any]:
        for commit in self.table.open().history():
            kept = json.loads(commit.get("toque", "{}")).get(_METADATA)
            body: dict[str, Any] = json.loads(kept) if kept else {}
            if body and body["load"]["number"] == number:
                return body
        raise UnreadableSource(
            f"batch source {self.source.name!r}: the log of table {self.table.name} no longer has load {number}"
        )

    def _compact(self) -> None:
        """Merge small files, so that many small loads leave no table of small files."""
        opened = self.table.open()
        sizes = pa.table(opened.get_add_actions(flatten=True)).column("size_bytes").to_pylist()
        if sum(size < SMALL_BYTES for size in sizes) >= SMALL_FILES:
            with suppress(CommitFailedError):  # another load has committed meanwhile, and compacts
                opened.optimize.compact()


class _Load:
    """One load while it goes on: files written, rows kept aside, and pieces that could not be read."""

    def __init__(self, of: SourceTable, number: int, at: datetime) -> None:
        self.number, self._of, self._source, self._at = number, of, of.source, at
        self.position: dict[str, Any] = {}
        self.rejected: list[pa.Table] = []
        self.unreadable: dict[str, str] = {}
        self._read: list[str] = []
        self._written: list[_Written] = []
        self._waiting: list[pa.Table] = []

    def take(self, piece: Piece) -> None:
        """Read a piece whole, or leave it out whole."""
        rows: list[pa.Table] = []
        rejected: list[pa.Table] = []
        written: list[_Written] = []
        try:
            for batch in piece.batches():
                checked = check(self._source, batch, loaded_at=self._at)
                rows.append(checked.rows)
                rejected.append(checked.rejected)
                if sum(each.num_rows for each in rows) >= PART_ROWS:
                    written.append(self._write(rows))
                    rows = []
        except UnreadableSource as error:
            self.unreadable[piece.name] = str(error)
            return
        if piece.torn:
            reasons = ["the line has more or fewer values than there are columns"] * len(piece.torn)
            rejected.append(pa.table([reasons, piece.torn], schema=REJECTED))
        self.position |= piece.position
        self._read.append(piece.name)
        self._written += written
        self.rejected += [each for each in rejected if each.num_rows]
        self._waiting += rows
        if sum(each.num_rows for each in self._waiting) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows of pieces that were too small for a file of their own."""
        if any(each.num_rows for each in self._waiting):
            self._written.append(self._write(self._waiting))
        self._waiting = []

    @property
    def parts(self) -> list[Part]:
        """Files of the load's rows."""
        return [each.part for each in self._written if each.part is not None]

    def require_fit(self) -> None:
        """Check that few rows were kept aside, and that the newest is fresh. Raises: UnexpectedRows."""
        report, where = self.report(), f"batch source {self._source.name!r}"
        given = report.rows + report.known + report.rejected
        if report.rejected > self._source.bad_share * given:
            reasons = "; ".join(f"{reason} ({count} rows)" for reason, count in report.reasons.items())
            sample = self.rejected[0].column("row")[0].as_py()
            raise UnexpectedRows(
                f"{where}: {report.rejected} of {given} rows do not fit, more than bad_share={self._source.bad_share:g}: {reasons}; "
                f"the first is {sample}. Correct the source or its declaration; nothing was loaded"
            )
        for each in self._source.expectations:
            if isinstance(each, Freshness):
                last = pa.table({EVENT_TIMESTAMP: pa.array([report.last], TIMESTAMP)})
                each.check(where, last, newest=None, now=self._at)

    def report(self) -> SourceLoad:
        """Report the load as it stands."""
        reasons = Counter[str]()
        for each in self.rejected:
            reasons.update(each.column("reason").to_pylist())
        ranges = [each.between for each in self._written if each.between is not None]
        return SourceLoad(
            source=self._source.name,
            number=self.number,
            at=self._at,
            read=self._read[:_SHOWN],
            rows=sum(each.rows for each in self._written),
            known=sum(each.known for each in self._written),
            rejected=sum(reasons.values()),
            reasons=dict(reasons.most_common(_SHOWN)),
            unreadable=dict(list(self.unreadable.items())[:_SHOWN]),
            first=min((first for first, _ in ranges), default=None),
            last=max((last for _, last in ranges), default=None),
        )

    def _write(self, rows: list[pa.Table]) -> _Written:
        """Write rows that are not stored yet to a file of the table. Raises: UnexpectedRows."""
        given = pa.concat_tables(rows)
        for each in self._source.expectations:
            if not isinstance(each, Freshness | InRange):  # a row out of its range was kept aside
                each.check(f"batch source {self._source.name!r}", given)
        new = self._of.not_stored(given)
        if not new.num_rows:
            return _Written(None, known=given.num_rows)
        new = new.append_column(LOAD, pa.array([self.number] * new.num_rows, pa.int64()))
        first, last = pc.min_max(new.column(EVENT_TIMESTAMP)).as_py().values()
        if not self.parts:
            self._of.table.create(new.schema)
        part = write_part(self._of.table, new, bounds=(EVENT_TIMESTAMP, KNOWN_AT, LOAD))
        return _Written(part, new.num_rows, given.num_rows - new.num_rows, (first, last))


@dataclass(frozen=True, slots=True)
class _Written:
    """File of new rows, which is None if all were known; between: the first and last event time."""

    part: Part | None
    rows: int = 0
    known: int = 0
    between: tuple[datetime, datetime] | None = None
