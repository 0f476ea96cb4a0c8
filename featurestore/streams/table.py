"""Table of a stream's events, with how far each partition was read in the same commits as the events.

A commit carries, for each of its partitions, the place after its events as transactions of the table, and is made
only if the table still is where the events begin. So of two consumers of one partition the table takes each event
from one; the other is told by `ConsumerFenced`, and reads on from where the table is. Nothing else decides who may
write.

Messages that were kept aside are rows of the same table: a message is in it once, as an event or with the reason why
it is none. Up to version 0.1 they had a table of their own, in a commit before that of the events. It is still read.

An erasure takes events out of the table, and a replay puts others in their place. What a consumer holds in memory is
older then, and must not come online any more. So rewrites are counted, and it reads the count before each of its
writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import and_, or_
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake

from toque.featurestore.definitions.batch_source import KNOWN_AT
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.stream_source import (
    ASIDE_REASON,
    ASIDE_ROW,
    PARTITION,
    POSITION,
    StreamSource,
)
from toque.featurestore.errors import ConsumerFenced
from toque.featurestore.online.redis_store import OnlineStore
from toque.featurestore.rows import shaped
from toque.featurestore.sources.rows import REASON, ROW
from toque.featurestore.streams.decode import Decoded, Place, event_schema, rejected_schema
from toque.registry.store import ObjectStore, Table, add_parts, write_part
from toque.registry.store.tables.table import commit_properties

SMALL_FILES, SMALL_BYTES = 32, 32 << 20
"""A table with so many files below that size is compacted."""
_PARTITIONS = "stream-partitions"  # transaction that says how many there are
_REWRITTEN = "stream-rewritten"
_ASIDE_BOUNDS = (KNOWN_AT, PARTITION, POSITION)
_BOUNDS = (EVENT_TIMESTAMP, *_ASIDE_BOUNDS)
STORED_NAMES = {REASON: ASIDE_REASON, ROW: ASIDE_ROW}
"""Names in the table of events, where a source may have columns `reason` and `row` of its own."""
_PLACE_COLUMNS = [PARTITION, POSITION]


@dataclass(frozen=True, slots=True)
class Move:
    """Move of a partition's place by one commit; before: None if the partition was never read."""

    before: Place | None
    after: Place


class StreamTable:
    """Table of a project's stream source: its events, and the messages that were kept aside."""

    def __init__(self, source: StreamSource, store: ObjectStore, project: str) -> None:
        self.source = source
        self.table = Table(store, f"features/{project}/streams/{source.stored_as}")
        before = Table(store, f"features/{project}/rejected/{source.stored_as}")
        self.rejected = RejectedMessages(self.table, before)
        self._made = False
        self.rewritten: int | None = None
        """How often the stored events had been rewritten when `places` read them last; None: never."""

    def places(self, partitions: Iterable[int]) -> dict[int, Place | None]:
        """Read how far each partition was read; None: never."""
        if not self.table.exists():
            return dict.fromkeys(partitions)
        opened = self.table.open()
        self.rewritten = opened.transaction_version(_REWRITTEN)
        return {each: _place(opened, each) for each in partitions}

    def known_partitions(self) -> list[int]:
        """List the partitions of which something was committed."""
        if not self.table.exists():
            return []
        opened = self.table.open()
        count = opened.transaction_version(_PARTITIONS) or 0
        return [each for each in range(count) if _place(opened, each) is not None]

    def known_places(self) -> dict[int, Place]:
        """Read how far each partition was read of which something was committed."""
        found = self.places(self.known_partitions())
        return {each: place for each, place in found.items() if place is not None}

    def positions(self) -> dict[int, int]:
        """Read up to which position each partition was read."""
        return {each: place.position for each, place in self.known_places().items()}

    def commit(
        self, events: pa.Table, rejected: pa.Table, moves: Mapping[int, Move], *, rewritten: int | None = None
    ) -> None:
        """Store events, messages kept aside and the places after them at once, unless they were stored before.

        rewritten: as it was when `places` gave the places from which the events were read; if the table was rewritten since,
        others may follow from the messages now.
        Raises: ConsumerFenced if the table is not where they begin; Unavailable if the store does not answer.
        """
        schema = _stored_schema(self.source)
        if not self._made:
            self.table.create(schema, bounds=_BOUNDS)
            self._made = True
        ordered = events.sort_by([(PARTITION, "ascending"), (POSITION, "ascending")])
        parts = [write_part(self.table, ordered, bounds=_BOUNDS)] if events.num_rows else []
        if rejected.num_rows:
            parts.append(write_part(self.table, stored_rows(rejected), bounds=_ASIDE_BOUNDS))
        ids = {name: value for each, move in moves.items() for name, value in _ids(each, move.after).items()}
        if any(move.before is None for move in moves.values()):
            ids[_REWRITTEN] = rewritten or 0  # a fence cannot name a partition that was never committed
        count = max(moves) + 1

        def write(opened: DeltaTable) -> None:
            if (opened.transaction_version(_REWRITTEN) or 0) != (rewritten or 0):
                raise ConsumerFenced(f"stream source {self.source.name!r}: its stored events were rewritten")
            for each, move in moves.items():
                if _place(opened, each) != move.before:
                    raise ConsumerFenced(
                        f"stream source {self.source.name!r}: partition {each} is at {_place(opened, each)}, not at {move.before}; "
                        "another consumer has committed"
                    )
            more = {_PARTITIONS: count} if count > (opened.transaction_version(_PARTITIONS) or 0) else {}
            add_parts(opened, parts, schema, self.table.name, commit_properties(ids | more, None))

        self.table.commit(write)

    def place_at(self, partition: int, position: int) -> Place:
        """Find the place of a partition as it was before a position: from what is stored before it."""
        before = (pc.field(PARTITION) == partition) & (pc.field(POSITION) < position)
        latest = {KNOWN_AT: 0, EVENT_TIMESTAMP: 0}
        for table, names in ((self.table, list(latest)), (self.rejected.before, [KNOWN_AT])):
            for rows in _scanned(table, names, before) if table.exists() else ():
                latest |= {name: max(latest[name], pc.max(rows.column(name)).value or 0) for name in names}
        return Place(position, latest[KNOWN_AT], latest[EVENT_TIMESTAMP])

    def fence(self) -> None:
        """Refuse commits of what follows from places that were read before now.

        It carries the places of all partitions as they are, so that a commit of one of them that has passed its checks already
        meets it in the table's log, and is checked again.
        """
        schema = _stored_schema(self.source)

        def write(opened: DeltaTable) -> None:
            ids = _next_rewrite(opened)
            for each in range(opened.transaction_version(_PARTITIONS) or 0):
                place = _place(opened, each)
                ids |= {} if place is None else _ids(each, place)
            add_parts(opened, [], schema, self.table.name, commit_properties(ids, None))

        self.table.commit(write, schema=schema, bounds=_BOUNDS)

    def rewrite(self, partition: int, first: int, decoded: Decoded, *, last: Place | None) -> bool:
        """Put events and messages kept aside in place of those stored of a partition, from a position to that after them.

        last: the table's place in the partition, if they reach it; returns whether it still is there, else nothing is changed.
        """
        after = decoded.places[partition]
        what = f"{PARTITION} = {partition} AND {POSITION} >= {first} AND {POSITION} < {after.position}"
        parts = [decoded.events, stored_rows(decoded.rejected)]
        rows = pa.concat_tables(parts, promote_options="default").select(_stored_schema(self.source).names)

        def write(opened: DeltaTable) -> bool:
            ids: dict[str, int] = {}
            if last is not None:
                if _place(opened, partition) != last:
                    return False
                ids = _ids(partition, after) | _next_rewrite(opened)
            write_deltalake(
                opened,
                rows,
                mode="overwrite",
                schema_mode="merge",
                predicate=what,
                commit_properties=commit_properties(ids, None),
            )
            return True

        return self.table.commit(write)

    def events(
        self,
        *,
        partitions: Mapping[int, tuple[int, int]] | None = None,
        since: datetime | None = None,
        known_since: datetime | None = None,
        columns: Iterable[str] | None = None,
    ) -> pa.Table:
        """Read stored events, in order of partition and position.

        partitions: of these, the events from one position up to before another; since: those that happened after it, and
        those that became known after `known_since`.
        """
        schema = event_schema(self.source)
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        if not self.table.exists() or partitions == {}:
            return schema.empty_table()
        dataset = self.table.dataset()
        conditions: list[Any] = _none_aside(dataset.schema)
        if partitions is not None:
            between = [
                (pc.field(PARTITION) == each) & (pc.field(POSITION) >= first) & (pc.field(POSITION) < end)
                for each, (first, end) in partitions.items()
            ]
            conditions.append(reduce(or_, between))
        if since is not None:
            recent = pc.field(EVENT_TIMESTAMP) > pa.scalar(since, TIMESTAMP)
            if known_since is not None:
                recent |= pc.field(KNOWN_AT) > pa.scalar(known_since, TIMESTAMP)
            conditions.append(recent)
        where = None if not conditions else reduce(and_, conditions)
        names = [name for name in schema.names if name in dataset.schema.names]
        order = [name for name in (PARTITION, POSITION) if name not in names]
        found = dataset.to_table(columns=[*names, *order], filter=where)
        return shaped(found.sort_by([(PARTITION, "ascending"), (POSITION, "ascending")]), schema)

    def batches(self, until: Mapping[int, int]) -> Iterator[pa.Table]:
        """Iterate over the stored events of partitions up to before a position of each, in pieces of bounded size and in no order."""
        schema = event_schema(self.source)
        if not until:
            return
        stored = self.table.schema()
        before = [(pc.field(PARTITION) == each) & (pc.field(POSITION) < end) for each, end in until.items()]
        names = [name for name in schema.names if name in stored.names]
        for rows in _scanned(self.table, names, reduce(and_, [reduce(or_, before), *_none_aside(stored)])):
            yield shaped(rows, schema)

    def count(self) -> int:
        """Number of stored events and messages kept aside, by the table's log."""
        if not self.table.exists():
            return 0
        actions = pa.table(self.table.open().get_add_actions(flatten=True))
        return int(pc.sum(actions.column("num_records")).as_py() or 0)

    def compact(self) -> None:
        """Merge small files, if there are many."""
        if self.table.exists():
            self.table.compact_if(small_files=SMALL_FILES, small_bytes=SMALL_BYTES)


def _stored_schema(source: StreamSource) -> pa.Schema:
    """Schema of the table: that of events, and what is known of messages that are none."""
    return pa.schema(
        [*event_schema(source), pa.field(ASIDE_REASON, pa.string()), pa.field(ASIDE_ROW, pa.string())]
    )


def _none_aside(schema: pa.Schema) -> list[pc.Expression]:
    """Conditions that leave out messages that were kept aside, where a table with this schema has any."""
    return [~kept_aside()] if ASIDE_REASON in schema.names else []


def _scanned(table: Table, names: list[str], where: pc.Expression) -> Iterator[pa.Table]:
    """Read rows piece by piece, holding few of them."""
    dataset = table.dataset()
    for batch in dataset.to_batches(columns=names, filter=where, batch_readahead=1, fragment_readahead=1):
        if batch.num_rows:
            yield pa.Table.from_batches([batch])


def _next_rewrite(opened: DeltaTable) -> dict[str, int]:
    return {_REWRITTEN: (opened.transaction_version(_REWRITTEN) or 0) + 1}


def _ids(partition: int, place: Place) -> dict[str, int]:
    """Transactions of the table that say a place."""
    return {
        f"stream:{partition}": place.position,
        f"stream-known:{partition}": place.known_us,
        f"stream-watermark:{partition}": place.watermark_us,
    }


def _place(opened: DeltaTable, partition: int) -> Place | None:
    found = [opened.transaction_version(name) for name in _ids(partition, Place(0))]
    return None if found[0] is None else Place(int(found[0]), int(found[1] or 0), int(found[2] or 0))


def kept_aside() -> pc.Expression:
    """Make the condition of the rows of a stream's table that were kept aside, if it has the column.

    Not `is_valid`: delta-rs says of some files without the column that all of its values are. Made where it is used, as the first
    scalar of a process imports pandas.
    """
    return pc.coalesce(pc.field(ASIDE_REASON), pc.scalar("")) != ""


def stored_rows(rejected: pa.Table) -> pa.Table:
    """Give messages that were kept aside the names under which they stand among the events."""
    return rejected.rename_columns([STORED_NAMES.get(name, name) for name in rejected.column_names])


class RejectedMessages:
    """Messages of one stream that were kept aside. table: of its events; before: of messages alone, as version 0.1 had it."""

    def __init__(self, table: Table, before: Table) -> None:
        self._table, self.before = table, before

    def exists(self) -> bool:
        """Whether any were kept aside."""
        return bool(self.read().num_rows)

    def read(self) -> pa.Table:
        """Read all, in order of partition and position; columns are those of `rejected_schema`."""
        found = [self._among_events(), self._apart()]
        return pa.concat_tables(found).sort_by([(name, "ascending") for name in _PLACE_COLUMNS])

    def _among_events(self) -> pa.Table:
        schema = rejected_schema()
        if not self._table.exists() or ASIDE_REASON not in self._table.schema().names:
            return schema.empty_table()
        names = [STORED_NAMES.get(name, name) for name in schema.names]
        rows = self._table.read(columns=names, where=kept_aside())
        return rows.rename_columns(schema.names).cast(schema)

    def _apart(self) -> pa.Table:
        """Read the messages of the table before, without those that were stored again since."""
        schema = rejected_schema()
        if not self.before.exists():
            return schema.empty_table()
        before = self.before.read(columns=schema.names).cast(schema)
        if not self._table.exists() or not before.num_rows:
            return before
        stored = pl.DataFrame(self._table.read(columns=_PLACE_COLUMNS))
        return pl.DataFrame(before).join(stored, on=_PLACE_COLUMNS, how="anti").to_arrow().cast(schema)


def rewrites_of(online: OnlineStore, source: str) -> int:
    """Read how often the events of a stream were rewritten. Raises: OnlineStoreUnavailable."""
    with online.reachable():
        return int(online.client.get(_key(online, source)) or 0)


def announce_rewrite(online: OnlineStore, source: str) -> None:
    """Have the consumers of a stream begin anew: what they write from now on is from the events that are stored now.

    Raises: OnlineStoreUnavailable.
    """
    with online.reachable():
        online.client.incr(_key(online, source))


def _key(online: OnlineStore, source: str) -> str:
    return f"toque:rewrites:{online.project}:{source}"
