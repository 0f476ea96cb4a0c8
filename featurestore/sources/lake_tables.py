"""Readers of Delta and Iceberg tables elsewhere: the rows that came since the version that was read before.

Such a table is changed file by file: a DELETE, UPDATE or MERGE writes the rows that stay into new files, beside the
changed ones. What it took away is counted and stays where it was loaded; changed rows come as new ones.

Files of Iceberg are read one by one in the order in which snapshots added them, so of a row that comes again the
later one counts. pyiceberg's own readers take the files of many snapshots in no order, and hold all that they have
read ahead. It needs the package `pyiceberg`, and `sqlalchemy` for a catalog in a database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from toque.featurestore.definitions.batch_source import (
    Piece,
    Position,
    Secrets,
    TimeRange,
    revealed,
    secrets_in,
)
from toque.featurestore.errors import InvalidDefinition, UnreadableSource
from toque.registry.store.tables.table import KEEPING, pyarrow_dataset

_Files = Callable[[], Iterator[tuple[Any, Any]]]
"""Plans to read some files; yields scans, each with a file of it."""
_PASSWORDS = ("password", "secret", "token", "credential")


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """Rows that a Delta table had and got, by its versions.

    uri: a folder or `s3://` url; the process's AWS settings open a bucket.
    """

    uri: str

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON."""
        return {"type": "delta", "uri": self.uri}

    def pieces(
        self, after: Position, columns: Sequence[str], secrets: Secrets, within: TimeRange | None = None
    ) -> Iterator[Piece]:
        """Find what was added since the version read before. Raises: UnreadableSource."""
        del secrets  # a table has none
        try:
            table = DeltaTable(self.uri)
            known, newest, identity = after.get("version"), table.version(), str(table.metadata().id)
            commits = [] if known is None else table.history(max(0, newest - known))
        except (TableNotFoundError, DeltaError, OSError) as error:
            raise UnreadableSource(f"Delta table {self.uri!r} cannot be opened: {error}") from error
        operations = {each["version"]: each.get("operation") for each in commits}
        if known is not None and (newest < known or after.get("table", identity) != identity):
            raise UnreadableSource(
                f"Delta table {self.uri!r} is at version {newest} and was read up to {known}: it was made anew; load it under "
                "another name"
            )
        if back := [version for version, operation in operations.items() if operation == "RESTORE"]:
            raise UnreadableSource(
                f"Delta table {self.uri!r} was rolled back by its version {min(back)} and was read up to {known}: what came since "
                "cannot be told from what is stored; load it under another name"
            )
        if newest == known:
            return
        removed: list[int] = []
        read = (
            partial(_snapshot, table, list(columns), within)
            if known is None
            else partial(self._added, range(known + 1, newest + 1), operations, list(columns), removed)
        )
        name = f"version {newest}" if known is None else f"versions {known + 1} to {newest}"
        yield Piece(name, {"version": newest, "table": identity}, read, removed=removed)

    def _added(
        self, versions: range, operations: Mapping[int, Any], columns: list[str], removed: list[int]
    ) -> Iterator[pa.Table]:
        """Read the rows that commits added, by the files that each added and removed. removed: takes the numbers of rows that went."""
        try:
            schema = pyarrow_dataset(DeltaTable(self.uri, version=versions[-1])).schema
            before, gone = self._files(versions[0] - 1), RemovedRows()
            for version in versions:
                after = self._files(version)
                if operations.get(version) not in KEEPING:
                    for rows in _rows_in(before, after, schema, columns):
                        gone.add(rows)
                    for rows in _rows_in(after, before, schema, columns):
                        yield gone.without(rows)
                before = after
            removed.append(gone.count)
        except (pa.ArrowException, DeltaError, OSError) as error:
            raise UnreadableSource(
                f"Delta table {self.uri!r}: what came with its versions {versions[0]} to {versions[-1]} cannot be read: {error}; if "
                "its log or its files no longer reach back so far, load it under another name"
            ) from error

    def _files(self, version: int) -> dict[str, Any]:
        files = pyarrow_dataset(DeltaTable(self.uri, version=version)).get_fragments()
        return {file.path: file for file in files}


def _rows_in(
    files: dict[str, Any], others: dict[str, Any], schema: pa.Schema, columns: list[str]
) -> Iterator[pa.Table]:
    """Read files that are not among others, the oldest first."""
    for path in reversed(files):  # the log's order is the newest commit first
        if path not in others:
            for batch in files[path].to_batches(schema, columns=columns):
                yield pa.Table.from_batches([batch])


def _snapshot(table: DeltaTable, columns: list[str], within: TimeRange | None) -> Iterator[pa.Table]:
    try:
        dataset = pyarrow_dataset(table)
        condition = None if within is None else within.condition(dataset.schema)
        for file in reversed(list(dataset.get_fragments())):  # as above
            for batch in file.to_batches(dataset.schema, columns=columns, filter=condition):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, DeltaError, OSError) as error:
        raise UnreadableSource(f"Delta table cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class IcebergRows:
    """Rows that an Iceberg table had and got, by its snapshots; files that were compacted add nothing.

    table: with its namespace, as `sales.orders`. catalog: properties of the catalog, as pyiceberg has them (`type`, `uri`,
    `warehouse`, `s3.endpoint`, …), and its `name`, by default `default`; a value `$NAME` is that of a secret.
    Raises: InvalidDefinition.
    """

    table: str
    catalog: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "catalog", dict(self.catalog))
        if "." not in self.table:
            raise InvalidDefinition(
                f"IcebergRows: table {self.table!r} has no namespace; write namespace.table"
            )
        for name, value in self.catalog.items():
            if any(word in name for word in _PASSWORDS) and not value.startswith("$"):
                raise InvalidDefinition(
                    f"IcebergRows: catalog property {name!r} holds a secret; name one, as {name}='$CATALOG_TOKEN'"
                )

    @property
    def secret_names(self) -> list[str]:
        """Names of the secrets that the catalog's properties take."""
        return secrets_in(*self.catalog.values())

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON."""
        return {"type": "iceberg", "table": self.table, "catalog": dict(self.catalog)}

    def pieces(
        self, after: Position, columns: Sequence[str], secrets: Secrets, within: TimeRange | None = None
    ) -> Iterator[Piece]:
        """Find what was appended since the snapshot read before. Raises: UnreadableSource."""
        table = self._opened(secrets)
        known, newest = after.get("snapshot"), table.metadata.current_snapshot_id
        if newest == known:
            return
        changes = None if known is None else _changes_since(table, self.table, known)
        missing = [name for name in columns if name not in table.schema().column_names]
        if missing:
            raise UnreadableSource(
                f"Iceberg table {self.table!r} has no column {missing[0]!r}; it has {table.schema().column_names}"
            )
        name = f"snapshot {newest}" if known is None else f"snapshots after {known} to {newest}"
        removed: list[int] = []
        if changes is None:
            read = partial(self._read, [partial(_all_files, table, columns, within)], list(columns), removed)
        else:
            commits = [partial(_added_files, table, columns, change) for change in changes]
            gone = [partial(_removed_files, table, columns, change) for change in changes]
            read = partial(self._read, commits, list(columns), removed, gone)
        yield Piece(name, {"snapshot": newest}, read, removed=removed)

    def _opened(self, secrets: Secrets) -> Any:
        try:
            from pyiceberg.catalog import load_catalog  # late: an optional package
            from pyiceberg.exceptions import NoSuchTableError
        except ImportError as error:
            raise UnreadableSource("an Iceberg source needs a package: pip install pyiceberg") from error
        given = {name: revealed(value, secrets) for name, value in self.catalog.items()}
        try:
            return load_catalog(given.pop("name", "default"), **given).load_table(self.table)
        except NoSuchTableError as error:
            raise UnreadableSource(f"Iceberg table {self.table!r} is not in its catalog") from error
        except Exception as error:  # a catalog's client raises errors of its own
            raise UnreadableSource(f"Iceberg table {self.table!r} cannot be opened: {error}") from error

    def _read(
        self,
        commits: Sequence[_Files],
        columns: list[str],
        removed: list[int],
        gone: Sequence[_Files] = (),
    ) -> Iterator[pa.Table]:
        """Read the rows that commits added. gone: files that each took away, whose rows it may have written anew."""
        try:
            went = RemovedRows()
            for number, commit in enumerate(commits):
                for rows in _rows_of(gone[number](), columns) if gone else ():
                    went.add(rows)
                for rows in _rows_of(commit(), columns):
                    yield went.without(rows)
            removed.append(went.count)
        except Exception as error:  # as above; files that were deleted meanwhile among them
            raise UnreadableSource(f"Iceberg table {self.table!r} cannot be read: {error}") from error


def _rows_of(files: Iterator[tuple[Any, Any]], columns: list[str]) -> Iterator[pa.Table]:
    reader: Any = import_module("pyiceberg.io.pyarrow").ArrowScan  # late, as above
    for scan, task in files:
        opened = reader(scan.table_metadata, scan.io, scan.projection(), scan.row_filter, scan.case_sensitive)
        for batch in opened.to_record_batches([task]):
            yield pa.Table.from_batches([batch]).select(columns)


def _added_files(table: Any, columns: Sequence[str], change: Any) -> Iterator[tuple[Any, Any]]:
    """Plan to read what a snapshot added."""
    yield from _changed_files(table, columns, change, change.snapshot_id, added=True)


def _removed_files(table: Any, columns: Sequence[str], change: Any) -> Iterator[tuple[Any, Any]]:
    """Plan to read what a snapshot took away, as it was before."""
    if change.summary.operation.value != "append" and change.parent_snapshot_id is not None:
        yield from _changed_files(table, columns, change, change.parent_snapshot_id, added=False)


def _changed_files(
    table: Any, columns: Sequence[str], change: Any, snapshot: int, *, added: bool
) -> Iterator[tuple[Any, Any]]:
    """Plan to read the files that a snapshot added or took away, as of one of the table's snapshots."""
    status: Any = import_module("pyiceberg.manifest").ManifestEntryStatus  # late, as above
    wanted = {
        entry.data_file.file_path
        for manifest in change.manifests(table.io)
        if manifest.added_snapshot_id == change.snapshot_id
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=added)
        if entry.status == (status.ADDED if added else status.DELETED)
    }
    scan = table.scan(selected_fields=tuple(columns), snapshot_id=snapshot)
    yield from ((scan, task) for task in scan.plan_files() if task.file.file_path in wanted)


def _all_files(table: Any, columns: Sequence[str], within: TimeRange | None) -> Iterator[tuple[Any, Any]]:
    """Plan to read all rows, or what may be within a range of times, in the order in which the files came; yields as above."""
    newest = table.current_snapshot()
    scan = table.scan(selected_fields=tuple(columns), snapshot_id=newest.snapshot_id)
    if within is not None:
        scan = _filtered(scan, within)
    added = {
        entry.data_file.file_path: entry.sequence_number or 0  # tables of the first format number none
        for manifest in newest.manifests(table.io)
        for entry in manifest.fetch_manifest_entry(table.io)
    }
    yield from (
        (scan, task) for task in sorted(scan.plan_files(), key=lambda task: added[task.file.file_path])
    )


def _filtered(scan: Any, within: TimeRange) -> Any:
    """Leave out what lies outside a range of times, where the table tells."""
    dtype = scan.projection().as_arrow().field(within.column).type
    if not pa.types.is_timestamp(dtype):
        return scan
    made: Any = import_module("pyiceberg.expressions")  # late, as above
    low, high = (each.isoformat() for each in within.bounds(has_zone=dtype.tz is not None))
    column = within.column
    return scan.filter(made.And(made.GreaterThanOrEqual(column, low), made.LessThanOrEqual(column, high)))


def _changes_since(table: Any, name: str, known: int) -> list[Any]:
    """List the snapshots since a known one that changed rows, oldest first; those between only put files together.

    Raises: UnreadableSource if the table does not come from the known one.
    """
    found: list[Any] = []
    snapshot = table.current_snapshot()
    while snapshot is not None and snapshot.snapshot_id != known:
        if snapshot.summary is None:
            raise UnreadableSource(
                f"Iceberg table {name!r}: snapshot {snapshot.snapshot_id} does not say what it did; load the table under another name"
            )
        if snapshot.summary.operation.value != "replace":
            found.append(snapshot)
        parent = snapshot.parent_snapshot_id
        if parent == known:
            return found[::-1]
        snapshot = None if parent is None else table.metadata.snapshot_by_id(parent)
    if snapshot is None:
        raise UnreadableSource(
            f"Iceberg table {name!r} was read up to snapshot {known}, from which its present one does not come: it was rolled "
            "back or made anew, or the snapshots between have expired; load it under another name"
        )
    return found[::-1]


class RemovedRows:
    """Multiset of the rows that a commit removed, by a hash of 64 bits each."""

    def __init__(self) -> None:
        self._counts = Counter[int]()

    @property
    def count(self) -> int:
        """Number of rows that were not written anew, as far as those were taken out."""
        return self._counts.total()

    def add(self, rows: pa.Table) -> None:
        """Add rows that the commit removed."""
        self._counts.update(_hashes(rows))

    def without(self, rows: pa.Table) -> pa.Table:
        """Take out of added rows those that were removed as they are, each as often as it was."""
        if not self.count:
            return rows
        new = []
        for value in _hashes(rows):
            again = self._counts[value] > 0
            self._counts[value] -= again
            new.append(not again)
        return rows.filter(pa.array(new, pa.bool_()))


def _hashes(rows: pa.Table) -> list[int]:
    frame = pl.DataFrame(rows)
    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    texts = [
        pl.Series(name, [repr(value) for value in frame[name].to_list()], dtype=pl.String) for name in nested
    ]
    return frame.with_columns(texts).hash_rows().to_list()
