"""Loads of a batch source: what is new there comes into its table in the store, once, whatever is killed in between.

A load writes files beside the table, and one of rejected rows beside theirs, names them all in one commit that carries the load's
number, and then puts the rejected rows aside and records it in the source's journal. Killed before the commit, it has done nothing; killed after it, the next load finds the commit and records
it. Of two loads at once the table takes one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.batch_source import (
    KNOWN_AT,
    UNMARKED,
    BatchSource,
    Piece,
    Secrets,
    TimeRange,
)
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.errors import UnexpectedRows, UnreadableSource
from toque.featurestore.rows import gathered, shaped
from toque.featurestore.sources.load_log import (
    LOAD,
    LOAD_PART,
    ROWS_READ,
    RunningLoad,
    SourceLineage,
    SourceLoad,
    SourceState,
    lineage_of,
    loads_in,
)
from toque.featurestore.sources.rows import ROW, row_schema
from toque.registry.journal import Journal
from toque.registry.store import ObjectStore, Table, append_with_parts, read_part, write_part
from toque.registry.store.tables.parts import Part
from toque.registry.times import MICROSECOND, Clock

SMALL_FILES, SMALL_BYTES = 32, 32 << 20
"""A table with so many files below that size is compacted after a load."""
_SCANNED_ROWS = 1 << 19  # stored rows that are compared with new ones at once
_METADATA = "source_load"
_SKEW = timedelta(
    hours=1
)  # between clocks; one further ahead was wrong, and its loads' times are not followed
_TURN = "source_turn"  # number of a row among those of its name, while they are compared


class SourceTable:
    """Table of a project's batch source, with the journal of its loads.

    clock: gives the times of loads.
    """

    def __init__(
        self, source: BatchSource, store: ObjectStore, project: str, *, actor: str, clock: Clock
    ) -> None:
        self.source, self._clock = source, clock
        self.table = Table(store, f"features/{project}/sources/{source.stored_as}")
        self.rejected = Table(store, f"features/{project}/rejected/{source.stored_as}")
        journal = Journal(store, f"features/{project}/sources/{source.stored_as}", actor=actor, clock=clock)
        self._state = loads_in(journal)

    def state(self) -> SourceState:
        """Read how far the source was read, and its last loads."""
        return self._state.refresh()

    def load(self, secrets: Secrets) -> SourceLoad | None:
        """Load what is new at the source; returns None if nothing is.

        Raises: UnreadableSource if it cannot be read at all, or nothing that is new in it; UnexpectedRows if too many rows of each
        new file do not fit, or a `NullShare` or `Freshness` does not hold. Then nothing is stored.
        """
        load = self.begin()
        try:
            self._read_new(load, secrets)
            load.require_fit()
        except UnexpectedRows:
            load.discard()
            misfits = self._misfits(secrets)
            if not misfits:
                raise
            load = self.begin()
            self._read_new(load, secrets, without=misfits)
        except UnreadableSource:
            load.discard()
            raise
        report = load.report()
        if not report.rows + report.rejected and load.position.items() <= self._state.state.position.items():
            load.discard()
            if load.unreadable:
                raise UnreadableSource("; ".join(load.unreadable.values()))
            return None
        self.commit(load)
        return self.state().loads[-1]

    def _read_new(
        self, load: RunningLoad, secrets: Secrets, *, without: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Read what is new at the source into a load. without: pieces to leave out, with the reason. Raises: UnexpectedRows, UnreadableSource."""
        before = self._state.state.position
        for piece in self.source.reads.pieces(before, self.read_names, secrets):
            if piece.again and not self._tells_rows_apart:
                self._refuse_untold(piece)
                continue
            if piece.name in without:
                load.unreadable[piece.name] = without[piece.name]
                continue
            load.take(piece)
            if piece.torn and piece.tears.endswith(UNMARKED):  # read as often as one is added
                load.rejected = [rows for rows in map(self.not_aside, load.rejected) if rows.num_rows]
            if piece.again:
                if load.unreadable:  # what follows would pass over it
                    break
                new = [self.not_aside(rows) for rows in load.rejected]
                load.rejected = [rows for rows in new if rows.num_rows]
        load.flush()

    def _misfits(self, secrets: Secrets) -> dict[str, str]:
        """Find the new pieces that do not fit by themselves, with the reason; empty if all do not, or they follow on each other."""
        misfits: dict[str, str] = {}
        pieces = list(self.source.reads.pieces(self._state.state.position, self.read_names, secrets))
        for piece in pieces:
            load = self.begin()
            try:
                load.take(piece)
                load.flush()
                load.require_share()
            except UnexpectedRows as error:
                misfits[piece.name] = str(error)
            finally:
                load.discard()
        return {} if len(misfits) == len(pieces) or any(piece.again for piece in pieces) else misfits

    @property
    def _tells_rows_apart(self) -> bool:
        """Whether a row that is read again is the same as before: its name comes from the source."""
        return bool(self.source.unique and self.source.timestamp and not self.source.row_number)

    def _refuse_untold(self, piece: Piece) -> None:
        """Refuse new rows among others that are stored, where nothing tells them apart. Raises: UnreadableSource."""
        if piece.more > 0:
            raise UnreadableSource(
                f"batch source {self.source.name!r}: {piece.more} rows have come with {piece.name}, or changed, since it was read; declare "
                "`unique`, the columns that name a row, and they are loaded, or a watermark that each row has for itself"
            )

    def not_aside(self, rejected: pa.Table) -> pa.Table:
        """Leave out rows that are kept aside already."""
        if not rejected.num_rows or not self.rejected.exists():
            return rejected
        aside = self.rejected.read(columns=[ROW]).column(ROW)
        return rejected.filter(pc.invert(pc.is_in(rejected.column(ROW), value_set=aside.combine_chunks())))

    @property
    def read_names(self) -> list[str]:
        """Columns to read, by their names at the source."""
        return sorted(set(self.source.read_columns.values()))

    def begin(self, within: TimeRange | None = None) -> RunningLoad:
        """Begin the next load of the source. within: of a backfill, the times that it reads."""
        self._record_committed()
        state = self._state.refresh()
        return RunningLoad(
            self.source,
            self.table,
            self.not_stored,
            number=state.number + 1,
            at=self._time_after(state),
            before=state.total,
            first_row=state.position.get(ROWS_READ, 0),
            within=within,
        )

    def _time_after(self, state: SourceState) -> datetime:
        """Tell the time, after that of the load before, so that of corrections the last counts though another clock is behind."""
        now = self._clock()
        before = state.loads[-1].at if state.loads else now
        return before + MICROSECOND if now < before < now + _SKEW else now

    def lineage(self, load: int) -> SourceLineage:
        """Describe all loads up to the one of this number. Raises: UnreadableSource if there is no such load."""
        return lineage_of(self._state, self.source.reads.describe(), load)

    def rows(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        by: str = EVENT_TIMESTAMP,
        start: datetime | None = None,
        end: datetime | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Read stored rows of the loads `after` < number <= `until`, with `start` <= time <= `end` in the column `by`.

        columns: to read, beside those that name a row; by default all. Of rows with one `unique` key and event time, the one that was loaded last counts.
        """
        named = None if columns is None else {*columns, *self.source.unique, EVENT_TIMESTAMP, LOAD}
        given = ((LOAD, ">", after), (LOAD, "<=", until), (by, ">=", start), (by, "<=", end))
        rows = self._read([each for each in given if each[2] is not None], named)
        return self._by_place(rows)[0] if self.source.unique else rows

    def versions(self, *, until: int, since: Mapping[str, datetime]) -> tuple[pa.Table, pa.Table]:
        """Read the rows of the loads up to one of which a column is at or after its time here.

        since: of event time or other columns. Returns: those that count, and those that others were loaded in place of; with
        them may come rows of the same event times that have no such column.
        """
        up_to = pc.field(LOAD) <= until
        conditions = {name: pc.field(name) >= pa.scalar(at, TIMESTAMP) for name, at in since.items()}
        # What names a row has its event time, so a range of those has all versions of a row; of others they are looked up.
        whole = conditions.pop(EVENT_TIMESTAMP, pc.scalar(value=False))
        parts = up_to & ~whole & reduce(or_, conditions.values(), pc.scalar(value=False))
        times = self._read(parts, {EVENT_TIMESTAMP}).column(EVENT_TIMESTAMP).unique()
        rows = self._read(up_to & (whole | pc.field(EVENT_TIMESTAMP).isin(times)))
        return self._by_place(rows) if self.source.unique else (rows, rows.slice(0, 0))

    def _by_place(self, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Tell apart, of rows with one `unique` key and event time, the one that was loaded last and those before."""
        frame = pl.DataFrame(rows).sort(LOAD, pl.col(LOAD_PART).fill_null(0), maintain_order=True)
        last = pl.struct(self._names).is_last_distinct()
        rows = rows.drop_columns([LOAD_PART])
        counting, replaced = (
            frame.filter(each).select(rows.column_names).to_arrow() for each in (last, ~last)
        )
        return counting.cast(rows.schema), replaced.cast(rows.schema)

    @property
    def _names(self) -> list[str]:
        """Columns that name a row of a source with `unique`."""
        return [*self.source.unique, EVENT_TIMESTAMP]

    def _read(
        self, where: Any, named: Collection[str] | None = None, *, names: pl.DataFrame | None = None
    ) -> pa.Table:
        """Read stored rows of all loads, with nulls in columns that were declared after they were loaded.

        names: of the rows that are wanted, by default all; where is an expression then.
        """
        schema = _stored_schema(self.source)
        if not self.source.unique:
            schema = schema.remove(schema.get_field_index(LOAD_PART))
        schema = pa.schema([each for each in schema if named is None or each.name in {*named, LOAD_PART}])
        if not self.table.exists():
            return schema.empty_table()
        stored = set(self.table.schema().names)
        columns = [name for name in schema.names if name in stored]
        found = (
            self.table.read(columns=columns, where=where)
            if names is None
            else self._scan(columns, where, names)
        )
        return shaped(found, schema)

    def _scan(self, columns: list[str], where: pc.Expression, names: pl.DataFrame) -> pa.Table:
        """Read rows of these names piece by piece, so that others are held no longer than that."""
        scanner = self.table.dataset().scanner(
            columns=columns, filter=where, batch_readahead=2, fragment_readahead=1
        )
        matching: list[pa.Table] = [scanner.projected_schema.empty_table()]
        for piece in gathered(scanner.to_batches(), _SCANNED_ROWS):
            number = pl.DataFrame(piece.select(self._names)).with_row_index(_TURN)
            rows = number.join(names, on=self._names, how="semi").get_column(_TURN).sort()
            matching.append(piece.take(rows.to_arrow()))
        return pa.concat_tables(matching)

    def not_stored(self, rows: pa.Table, earlier: Sequence[Part] = ()) -> pa.Table:
        """Leave out rows that are as the version of them that counts before they come, where the source says what names a row.

        That is the row of the same name before them in `rows`, or the one that is stored. earlier: files of the same load; what they
        have has come in place of what is stored, so a row that changes and changes back is new once more.
        """
        if not self.source.unique or not rows.num_rows:
            return rows
        columns = [name for name in rows.column_names if name != KNOWN_AT or self.source.known_at]
        stored = pl.DataFrame(self.rows_named_as(rows).select(columns))
        for part in earlier if stored.height else ():
            names = pl.DataFrame(read_part(self.table, part, columns=self._names))
            stored = stored.join(names, on=self._names, how="anti")
        turn = pl.int_range(pl.len()).over(self._names).alias(_TURN)
        new = pl.DataFrame(rows).with_columns(turn)
        following = new.select(*columns, pl.col(_TURN) + 1)
        before = pl.concat([stored.with_columns(pl.lit(0, pl.Int64).alias(_TURN)), following])
        kept = new.join(before, on=before.columns, how="anti", nulls_equal=True, maintain_order="left")
        return kept.drop(_TURN).to_arrow().cast(rows.schema)

    def rows_named_as(self, rows: pa.Table, *, until: int | None = None) -> pa.Table:
        """Read the stored rows that count and have the `unique` key and event time of one of these, in bounded pieces.

        until: of the loads up to this one.
        """
        names = pl.DataFrame(rows.select(self._names)).unique()
        first, last = pc.min_max(rows.column(EVENT_TIMESTAMP)).as_py().values()
        within = (pc.field(EVENT_TIMESTAMP) >= pa.scalar(first, TIMESTAMP)) & (
            pc.field(EVENT_TIMESTAMP) <= pa.scalar(last, TIMESTAMP)
        )
        where = within if until is None else within & (pc.field(LOAD) <= until)
        return self._by_place(self._read(where, names=names))[0]

    def commit(self, load: RunningLoad) -> None:
        """Store a load's rows and record it; of two loads of one number the first counts. Raises: UnexpectedRows."""
        try:
            load.require_fit()
        except UnexpectedRows:
            load.discard()
            raise
        body = {"load": load.report().model_dump(mode="json"), "position": load.position}
        transactions = {f"source:{self.source.name}": load.number}
        if load.rejected:
            aside = pa.concat_tables(load.rejected)
            aside = aside.append_column(LOAD, pa.array([load.number] * aside.num_rows, pa.int64()))
            self.rejected.create(aside.schema)
            body["aside"] = asdict(write_part(self.rejected, aside))
        metadata = {_METADATA: json.dumps(body, allow_nan=False)}  # the journal takes it, too
        schema, parts = _stored_schema(self.source), load.parts
        if append_with_parts(self.table, parts, schema, transactions=transactions, metadata=metadata):
            load.discard(but=parts)  # else an earlier try may have named them
        self._record_committed()
        self.table.compact_if(small_files=SMALL_FILES, small_bytes=SMALL_BYTES)

    def _record_committed(self) -> None:
        """Record the load that the table has and the journal lacks, if there is one, and put its rejected rows aside."""
        committed = self.table.transaction(f"source:{self.source.name}")
        if committed is None or committed <= self._state.refresh().number:
            return
        body = self._committed_body(committed)
        if aside := body.pop("aside", None):
            transactions = {f"source:{self.source.name}": committed}
            append_with_parts(
                self.rejected, [Part(**aside)], self.rejected.schema(), transactions=transactions
            )

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


def _stored_schema(source: BatchSource) -> pa.Schema:
    """Schema of a source's table: its rows, and which load brought them."""
    return row_schema(source).append(pa.field(LOAD, pa.int64())).append(pa.field(LOAD_PART, pa.int32()))
