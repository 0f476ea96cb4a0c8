"""Offline tables: one Delta table a view, partitioned by event day, every row with event and created time.

Rows are only ever added; which of them count is decided when they are read. A read opens only the files that can hold
rows of its time range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from toque.featurestore.definitions.fields import (
    CREATED_TIMESTAMP,
    EVENT_DAY,
    EVENT_TIMESTAMP,
    KNOWN_TIMESTAMP,
)
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.offline.versions import File, Version, open_version, scan, split
from toque.featurestore.rows import offline_schema
from toque.registry.store import ObjectStore, Part, Table, TableSnapshot, replace_with_parts, write_part
from toque.registry.store.tables.table import KEEPING, commit_properties

_FEW_FILES = 31  # partitions of one write that are not too many, however small
_CREATED = "created_timestamp"  # application id of a commit which notes that rows come with it
_OF_ALL, _OF_SOME = (
    1,
    2,
)  # what is noted: by an earlier version of this table, that all do; that a row says so itself
_MIN_FILE_ROWS = 1_000  # rows a partition of one write should have on average


class OfflineStore:
    """Offline store with the feature tables of a project."""

    def __init__(self, store: ObjectStore, project: str) -> None:
        self._store = store
        self._project = project
        self._opened: dict[str, Version] = {}
        self._newest: dict[str, tuple[dict[str, str], DeltaTable]] = {}
        self._created: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """State that is pickled for a worker: where the tables are, without open tables."""
        return {
            "_store": self._store,
            "_project": self._project,
            "_opened": {},
            "_newest": {},
            "_created": {},
        }

    def table(self, view: FeatureView) -> Table:
        """Table of a view, named `features/{project}/{view}`, with its generation from the second on."""
        return Table(self._store, f"features/{self._project}/{view.stored_as}")

    def write(
        self,
        view: FeatureView,
        rows: pa.Table,
        *,
        loads: Mapping[str, int] | None = None,
        after: Mapping[str, int] | None = None,
        known: str | None = None,
    ) -> TableSnapshot:
        """Append rows to a view's table, atomically.

        rows: in the view's offline schema, as `rows.conform` makes them. loads: batch source -> number of its load up to
        which they are, exactly once. after: what was `consumed` when the rows were made; if it is not now, nothing is added.
        known: the column that says since when a training set sees these rows; None: the one that says so of rows without a word.
        Returns: the table's version that has them.
        """
        if known is not None:
            rows = rows.append_column(KNOWN_TIMESTAMP, rows.column(known))
        return self.table(view).append(
            storable(rows, grouped=view.ttl is None),
            partition_by=(EVENT_DAY,),
            merge_schema=True,
            transactions={_consumer(source): number for source, number in (loads or {}).items()},
            expected={_consumer(source): number or None for source, number in (after or {}).items()},
        )

    def replace(self, view: FeatureView, pieces: Iterable[pa.Table], *, loads: Mapping[str, int]) -> None:
        """Put rows in place of all that a view has, atomically; older versions of its table keep what they had.

        pieces: of the rows, one after the other; best in order of time, since each has files of its own. loads: as in `write`; the
        view counts as refreshed up to there, also where it was further.
        """
        table, schema = self.create(view), storable(offline_schema(view).empty_table()).schema
        parts = [part for rows in pieces for part in _parts(table, storable(rows, grouped=view.ttl is None))]
        commit = commit_properties({_consumer(source): number for source, number in loads.items()}, None)
        table.commit(lambda opened: replace_with_parts(opened, parts, schema, table.name, commit))

    def consumed(self, view: FeatureView, source: str, *, version: int | None = None) -> int:
        """Number of the load of a batch source up to which the view's table has its rows; 0 before the first.

        version: of the table, by default the newest.
        """
        return self.table(view).transaction(_consumer(source), version=version) or 0

    def note_created(self, view: FeatureView) -> None:
        """Note in a view's table, once, that its writers say when rows were created."""
        if not self.says_when_created(view):
            self.create(view).append(
                storable(offline_schema(view).empty_table()),
                merge_schema=True,
                transactions={_CREATED: _OF_SOME},
            )

    def says_when_created(self, view: FeatureView) -> bool:
        """Whether some rows were written with their created times, and not just with that of the writing."""
        return bool(self._noted(view))

    def known_else(self, view: FeatureView) -> str:
        """Name the column that says since when a row is known which does not say so itself."""
        return CREATED_TIMESTAMP if self._noted(view) == _OF_ALL else EVENT_TIMESTAMP

    def _noted(self, view: FeatureView) -> int:
        table = self.table(view)
        if table.name not in self._created:
            noted = table.transaction(_CREATED)
            if noted is None:
                return 0
            self._created[table.name] = noted
        return self._created[table.name]

    def create(self, view: FeatureView) -> Table:
        """Open the view's table, created empty if it does not exist."""
        table, schema = self.table(view), storable(offline_schema(view).empty_table()).schema
        table.create(schema, (EVENT_DAY,))  # no append: another writer may have added a column by now
        return table

    def version(self, view: FeatureView, number: int | None = None) -> Version | None:
        """Open a version of the view's table (default: the newest), or None if it was never written."""
        cached = self._opened.get(view.stored_as)
        if cached is not None and cached.number == number:
            return cached
        table = self._delta(view, number)
        if table is None:
            return None
        if cached is None or cached.number != table.version():
            cached = open_version(table, self.table(view))
            self._opened[view.stored_as] = cached
        return cached

    def newest(self, view: FeatureView) -> datetime | None:
        """Latest event time, rounded up by a millisecond as in the log; None if there are no rows."""
        version = self.version(view)
        return max((f.last for f in version.files if f.last), default=None) if version else None

    def _delta(self, view: FeatureView, number: int | None) -> DeltaTable | None:
        """Open the Delta table at a version; the newest stays open, so that following it reads only what is new.

        Until its credentials are replaced: it holds those of when it was opened.
        """
        uri, options = self._store.table_location(self.table(view).name)
        kept, newest = self._newest.get(view.stored_as, (None, None))
        if number is None and newest is not None and kept == options:
            newest.update_incremental()
            return newest
        try:
            table = DeltaTable(uri, version=number, storage_options=options or None)
        except TableNotFoundError:
            return None
        if number is None:
            self._newest[view.stored_as] = options, table
        return table

    def paths(self, view: FeatureView, number: int) -> frozenset[str]:
        """Paths of a version's files; empty if the log no longer reaches back to it."""
        cached = self._opened.get(view.stored_as)
        if cached is not None and cached.number == number:
            return frozenset(f.path for f in cached.files)
        try:
            table = self._delta(view, number)
        except DeltaError:
            return frozenset()
        if table is None:
            return frozenset()
        return frozenset(pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist())

    def known_since(self, view: FeatureView, number: int, newest: int) -> frozenset[str]:
        """Paths of a version's files, and of their compacted successors up to the newest version."""
        known = self.paths(view, number)
        if known <= self.paths(view, newest):  # nothing was compacted, so the log need not be read
            return known
        for compaction in self._compactions(view, number, newest):
            before, after = self.paths(view, compaction - 1), self.paths(view, compaction)
            mixed = {_folder(path) for path in before - after - known}
            known |= {path for path in after - before if _folder(path) not in mixed}
        return known

    def added_since(
        self, view: FeatureView, known: frozenset[str], number: int, version: Version
    ) -> list[File] | None:
        """Files of a version with rows that came after an earlier one; None if rows have gone since, by expiry or erasure.

        known: paths of the earlier version's files, as they were when it was read.
        """
        if known <= {file.path for file in version.files}:
            return [file for file in version.files if file.path not in known]
        table = self._delta(view, version.number)
        commits = table.history(version.number - number) if table is not None else []
        if not all(_only_adds(commit) for commit in commits):
            return None
        known = self.known_since(view, number, version.number)
        return [file for file in version.files if file.path not in known]

    def _compactions(self, view: FeatureView, number: int, newest: int) -> list[int]:
        table = self._delta(view, newest)
        commits = table.history(newest - number) if table is not None and newest > number else []
        return sorted(c["version"] for c in commits if c.get("operation") == "OPTIMIZE")

    def read(
        self,
        view: FeatureView,
        *,
        features: Sequence[str] | None = None,
        start: datetime | None = None,
        end: datetime | None = None,
        version: int | None = None,
        known_else: str | None = None,
    ) -> pa.Table:
        """Read rows with `start <= event time <= end`, typed by the view's schema; features of older rows may be null.

        features: to read, by default all. known_else: as in `scan`.
        """
        found = self.version(view, version)
        schema = _selected(view, features)
        if found is None:
            return schema.empty_table()
        return scan(found, found.files, schema, start=start, end=end, known_else=known_else)

    def batches(
        self,
        view: FeatureView,
        version: Version,
        files: Iterable[File],
        *,
        start: datetime | None,
        end: datetime | None,
        rows: int,
        known_else: str | None = None,
    ) -> Iterator[tuple[pa.Table, tuple[File, ...]]]:
        """Iterate over rows of some files in batches of about `rows`, each with the files that end in it.

        known_else: as in `scan`.
        """
        schema = offline_schema(view)
        read = partial(scan, version, schema=schema, start=start, end=end, known_else=known_else)
        waiting: list[File] = []
        for file in files:
            if file.rows >= rows:
                yield from split(
                    version, file, schema, start=start, end=end, rows=rows, known_else=known_else
                )
                continue
            waiting.append(file)
            if sum(f.rows for f in waiting) >= rows:
                yield read(waiting), tuple(waiting)
                waiting = []
        if waiting:
            yield read(waiting), tuple(waiting)


def _only_adds(commit: Mapping[str, Any]) -> bool:
    """Whether a commit of the log leaves every row of the version before in the table."""
    operation, parameters = commit.get("operation"), commit.get("operationParameters") or {}
    appends = operation == "WRITE" and parameters.get("mode") == "Append"
    return appends or operation in KEEPING


def _consumer(source: str) -> str:
    """Application id under which a view's table says how much of a batch source it has."""
    return f"source:{source}"


def storable(rows: pa.Table, *, grouped: bool = False) -> pa.Table:
    """Reorder rows for storage: the times first, and their day appended.

    Delta keeps bounds of a table's first columns only, and reads are pruned by time.
    grouped: a long history of few rows a day goes to one file a month or a year, under its last day; not where rows expire by
    the day.
    """
    days = _partition_days(rows.column(EVENT_TIMESTAMP), grouped=grouped)
    times = [EVENT_TIMESTAMP, CREATED_TIMESTAMP]
    others = [name for name in rows.column_names if name not in times]
    return rows.select([*times, *others]).append_column(EVENT_DAY, days)


def _parts(table: Table, rows: pa.Table) -> Iterator[Part]:
    """Write storable rows to files, one for each partition."""
    for day in pc.unique(rows.column(EVENT_DAY)).sort().to_pylist():
        of_day = rows.filter(pc.equal(rows.column(EVENT_DAY), day))
        yield write_part(
            table, of_day, bounds=(EVENT_TIMESTAMP, CREATED_TIMESTAMP), partition={EVENT_DAY: day}
        )


def _partition_days(times: pa.ChunkedArray, *, grouped: bool) -> pa.ChunkedArray:
    """Choose for each row the day that names its partition: its own, or the last of its month or year."""
    days = pc.strftime(times, format="%Y-%m-%d")
    for unit in ("month", "year") if grouped else ():
        count = len(pc.unique(days))
        if count <= _FEW_FILES or len(times) >= count * _MIN_FILE_ROWS:
            break
        ends = pc.ceil_temporal(times, unit=unit, ceil_is_strictly_greater=True)
        days = pc.strftime(pc.subtract(ends, pa.scalar(1, pa.duration("us"))), format="%Y-%m-%d")
    return days


def _folder(path: str) -> str:
    """Partition folder of a file; compaction never merges two of them."""
    return path.rpartition("/")[0]


def _selected(view: FeatureView, features: Sequence[str] | None) -> pa.Schema:
    schema = offline_schema(view)
    if features is None:
        return schema
    kept = {*features, *(key.name for key in view.join_keys), EVENT_TIMESTAMP, CREATED_TIMESTAMP}
    return pa.schema([f for f in schema if f.name in kept])
