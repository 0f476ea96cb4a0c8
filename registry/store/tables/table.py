"""Delta tables for bulk data beside the objects; (table, version) names a snapshot for ever."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, SchemaMismatchError, TableNotFoundError
from pyarrow import fs

from toque.registry.errors import InvalidInput, NotFound, Unavailable
from toque.registry.names import check_name
from toque.registry.store.tables.files import file_system, request_errors, settle, with_stored_times
from toque.registry.store.tables.naming import TableSnapshot, is_log, is_stream
from toque.registry.store.tables.row_ranges import PinnedRows
from toque.registry.times import backoff_s

if TYPE_CHECKING:
    import pyarrow.dataset as ds

    from toque.registry.store.object_store import ObjectStore

T = TypeVar("T")
_PATIENCE_S = 60.0
# A snapshot named today is readable in years: Delta would forget old versions after 30 days. A reader gets every commit
# since the last checkpoint, with three requests each: at Delta's interval of 100 an append to S3 costs 290 of them.
_CONFIGURATION = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.checkpointInterval": "10",
}
# A checkpoint lists the files that were removed within this time; those of a log are merged every hour.
_CONFIGURATION_OF_LOGS = _CONFIGURATION | {"delta.deletedFileRetentionDuration": "interval 7 days"}
# A stream has a commit every few seconds, and its small files are merged every few minutes. Its checkpoints name the files of two
# hours, and its entries are deleted after six, so that neither grows with its age.
_CONFIGURATION_OF_STREAMS = _CONFIGURATION | {
    "delta.deletedFileRetentionDuration": "interval 2 hours",
    "delta.logRetentionDuration": "interval 6 hours",
}
# Who reads a table in batches holds about three row groups of it, however small the batches are.
_ROW_GROUP_BYTES, _FEWEST_ROWS = 16 << 20, 8_192
_WIDE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
_MOST_BYTES = (1 << 31) - 1
KEEPING = frozenset({"OPTIMIZE", "VACUUM START", "VACUUM END", "CREATE TABLE", "SET TBLPROPERTIES"})
"""Operations of commits that leave every row of the version before in a table, and add none."""
_METADATA = "toque"  # key of our metadata among a commit's
_COMMIT = "toque_commit"  # and of a commit's id


class Table:
    """Delta table `name` in a store; nothing is read or created until it is used.

    name: names joined by '/', e.g. `predictions/flight-delay`.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        for part in name.split("/"):
            check_name(part, what="table name part")
        self.store = store
        self.name = name

    def __repr__(self) -> str:
        return f"Table({self.name!r} in {self.store.url})"

    @property
    def uri(self) -> str:
        """URI of the table for readers such as `ray.data.read_delta`."""
        return self.store.table_location(self.name)[0]

    @property
    def storage_options(self) -> dict[str, str]:
        """Storage options that a Delta reader needs beside the URI."""
        return self.store.table_location(self.name)[1]

    def exists(self) -> bool:
        """Whether the table was ever written."""
        with request_errors(self.store, self.name):
            return bool(DeltaTable.is_deltatable(self.uri, storage_options=self.storage_options or None))

    def version(self) -> int:
        """Number of the newest version, from 0. Raises: NotFound."""
        return int(self.open().version())

    def snapshot(self) -> TableSnapshot:
        """Snapshot of the newest version. Raises: NotFound."""
        return TableSnapshot(name=self.name, version=self.version())

    def schema(self) -> pa.Schema:
        """Arrow schema of the newest version. Raises: NotFound."""
        return pa.schema(self.open().schema().to_arrow())

    def append(
        self,
        data: pa.Table,
        *,
        partition_by: Sequence[str] = (),
        transactions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
        expected: Mapping[str, int | None] | None = None,
        merge_schema: bool = False,
        bounds: Sequence[str] = (),
    ) -> TableSnapshot:
        """Append rows in one commit; creates the table if it does not exist.

        partition_by: columns, used when the table is created.
        transactions: application id -> version, exactly once: rows whose every version is already in the
        table are not added again. Versions of one id only grow.
        expected: application id -> version at which it must stand (None: nowhere) for the rows to be added.
        metadata: kept with the commit; see `metadata`.
        merge_schema: columns the table lacks are added to it; otherwise they are an error.
        bounds: columns whose least and greatest value of each file the log keeps, used when the table is created; by
        default the first 32, so name columns without personal values where there are such.
        Returns: the snapshot that has the rows.
        Raises: InvalidInput if columns or types do not fit, or a timestamp has no timezone or parts of a microsecond.
        """
        data = _in_one_batch(with_stored_times(data, self.name))
        transactions = dict(transactions or {})
        mode: Literal["merge"] | None = "merge" if merge_schema else None
        commit = commit_properties(transactions, metadata)

        def write(table: DeltaTable) -> int:
            stands = all(table.transaction_version(app) == at for app, at in (expected or {}).items())
            if stands and not already_in(table, transactions):
                write_deltalake(
                    table,
                    data,
                    mode="append",
                    schema_mode=mode,
                    commit_properties=commit,
                    writer_properties=_row_groups(data),
                )
            return table.version()

        number = self.commit(write, schema=data.schema, partition_by=partition_by, bounds=bounds)
        return TableSnapshot(name=self.name, version=number)

    def overwrite(
        self, data: pa.Table, *, partition_by: Sequence[str] = (), metadata: Mapping[str, str] | None = None
    ) -> TableSnapshot:
        """Replace all rows and the schema; older versions stay readable. Raises: InvalidInput as `append`."""
        data = _in_one_batch(with_stored_times(data, self.name))
        commit = commit_properties({}, metadata)

        def write(table: DeltaTable) -> int:
            write_deltalake(
                table,
                data,
                mode="overwrite",
                schema_mode="overwrite",
                commit_properties=commit,
                writer_properties=_row_groups(data),
            )
            return table.version()

        number = self.commit(write, schema=data.schema, partition_by=partition_by)
        return TableSnapshot(name=self.name, version=number)

    def read(
        self, *, version: int | None = None, columns: Sequence[str] | None = None, where: Any = None
    ) -> pa.Table:
        """Read the rows of a version, by default the newest, in an order that follows from its appends.

        That is: by partition, in a partition the newest append first, and of one append as they were given. A compaction
        keeps the rows of older versions as they were, and puts those of the files that it merges in any order.
        where: filters like `[("day", ">=", "2013-01-05")]` or a `pyarrow.compute` expression; files that
        cannot match are not read.
        Raises: NotFound if there is no such table or version.
        """
        from pyarrow.parquet import filters_to_expression  # late: it brings the dataset machinery

        names = list(columns) if columns is not None else None
        condition = None if where is None else filters_to_expression(where)
        return self.dataset(version).to_table(columns=names, filter=condition)

    def dataset(self, version: int | None = None) -> ds.FileSystemDataset:
        """Open a version as an Arrow dataset without reading rows. Raises: NotFound if there is no such table or version."""
        return dataset_of(self.open(version), self)

    def pinned(self, version: int | None = None) -> PinnedRows:
        """Open a version as numbered rows that are read range by range. Raises: NotFound if there is no such table or version."""
        opened = self.open(version)
        return PinnedRows(opened, dataset_of(opened, self))

    def head(self, rows: int, *, version: int | None = None) -> pa.Table:
        """Read the first rows of a version, in the order of `read`. Raises: NotFound if there is no such table or version."""
        pinned = self.pinned(version)
        return next(pinned.slices(0, rows, rows=rows), pinned.schema.empty_table())

    def batches(
        self, *, version: int | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Iterate over the rows of a version in batches, in the order of `read`; columns that it lacks are left out.

        Raises: NotFound if there is no such table or version.
        """
        rows = self.pinned(version)
        names = None if columns is None else [name for name in rows.schema.names if name in columns]
        yield from rows.batches(names)

    def transaction(self, app_id: str, *, version: int | None = None) -> int | None:
        """Last transaction version committed under `app_id` by `version` (default: the newest), or None (also if there is no table)."""
        table = self._find(version)
        found = table.transaction_version(app_id) if table is not None else None
        return None if found is None else int(found)

    def transactions(self, app_ids: Iterable[str]) -> set[str]:
        """Select the application ids under which something was committed; opens the table once."""
        table = self._find()
        return (
            set()
            if table is None
            else {app_id for app_id in app_ids if table.transaction_version(app_id) is not None}
        )

    def metadata(self, version: int | None = None) -> dict[str, str]:
        """Metadata stored with the commit of `version`, by default the newest. Raises: NotFound."""
        table = self.open()
        wanted = int(table.version()) if version is None else version
        commits = table.history(int(table.version()) - wanted + 1) if wanted >= 0 else []
        commit = next((commit for commit in commits if commit["version"] == wanted), None)
        if commit is None:
            raise NotFound(f"table {self.name} has no version {wanted} in {self.store.url}")
        kept: dict[str, str] = json.loads(commit.get(_METADATA, "{}"))
        return kept

    def commit(
        self,
        change: Callable[[DeltaTable], T],
        *,
        schema: pa.Schema | None = None,
        partition_by: Sequence[str] = (),
        bounds: Sequence[str] = (),
    ) -> T:
        """Run `change` as `commit_unsettled` does; what it wrote is on the disk then, and readers are told."""
        result = self.commit_unsettled(change, schema=schema, partition_by=partition_by, bounds=bounds)
        settle(self.store)
        self.store.announce(f"tables/{self.name}")
        return result

    def commit_unsettled(
        self,
        change: Callable[[DeltaTable], T],
        *,
        schema: pa.Schema | None = None,
        partition_by: Sequence[str] = (),
        bounds: Sequence[str] = (),
    ) -> T:
        """Run `change` on the newest version, and again while other writers conflict; who changes many tables settles them at once.

        schema, partition_by, bounds: of the table, which is created where there is none; without a schema there must be one.
        Returns: what `change` returns.
        Raises: Unavailable if others do for a minute, or the store does not answer; Forbidden; InvalidInput if columns do not fit;
        NotFound.
        """
        deadline, attempt = time.monotonic() + _PATIENCE_S, 0
        while True:
            try:
                with request_errors(self.store, self.name):
                    # Created empty first: two writers of one transaction must meet in a commit, not in a creation.
                    table = (
                        self.open()
                        if schema is None
                        else self._opened_or_created(schema, partition_by, bounds)
                    )
                    return change(table)
            except CommitFailedError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"table {self.name}: no commit in {_PATIENCE_S} s: {error}") from error
                time.sleep(backoff_s(attempt))
                attempt += 1
            except SchemaMismatchError as error:
                raise InvalidInput(f"table {self.name}: columns do not fit: {error}") from error

    def create(self, schema: pa.Schema, partition_by: Sequence[str] = (), bounds: Sequence[str] = ()) -> None:
        """Create the table without rows unless it exists, with whatever columns; see `append`. Raises: as `commit`."""
        if not self.exists():
            self.commit(lambda _: None, schema=schema, partition_by=partition_by, bounds=bounds)

    def _opened_or_created(
        self, schema: pa.Schema, partition_by: Sequence[str], bounds: Sequence[str]
    ) -> DeltaTable:
        """Open the newest version; where there is none, create version 0 without rows."""
        if (table := self._find()) is not None:
            return table
        bounded = {"delta.dataSkippingStatsColumns": ",".join(bounds)} if bounds else {}
        return DeltaTable.create(
            self.uri,
            schema,
            mode="ignore",
            partition_by=list(partition_by) or None,
            configuration=table_properties(self.name) | bounded,
            storage_options=self.storage_options or None,
        )

    def compact_if(self, *, small_files: int, small_bytes: int) -> None:
        """Merge files if at least so many are smaller than that, unless another writer commits meanwhile, who will."""
        opened = self.open()
        sizes = pa.table(opened.get_add_actions(flatten=True)).column("size_bytes").to_pylist()
        if sum(size < small_bytes for size in sizes) >= small_files:
            with suppress(CommitFailedError):
                opened.optimize.compact()
                settle(self.store)

    def open(self, version: int | None = None) -> DeltaTable:
        """Open a version, by default the newest, with Delta's own library. Raises: NotFound."""
        table = self._find(version)
        if table is None:
            which = "" if version is None else f" version {version}"
            raise NotFound(f"table {self.name} has no{which or ' data'} in {self.store.url}")
        return table

    def _find(self, version: int | None = None) -> DeltaTable | None:
        """Open a version; None if it is not there. Raises: Unavailable, Forbidden."""
        uri, options = self.store.table_location(self.name)
        with request_errors(self.store, self.name):
            try:
                table = DeltaTable(uri, storage_options=options or None)
            except TableNotFoundError:
                return None
            if version is None or version == table.version():
                return table
            if not 0 <= version < table.version():
                return None
            return DeltaTable(uri, version=version, storage_options=options or None)


def table_properties(name: str) -> dict[str, str]:
    """Delta's properties of a table of ours: how long its versions stay readable, and how often its log is summed up."""
    if is_stream(name):
        return _CONFIGURATION_OF_STREAMS
    return _CONFIGURATION_OF_LOGS if is_log(name) else _CONFIGURATION


def dataset_of(opened: DeltaTable, table: Table) -> ds.FileSystemDataset:
    """Open a version of `table` as an Arrow dataset, without reading rows; it outlives the credentials of this moment.

    Its files come by partition, and in a partition as the log has them: delta-rs names the partitions of one append in the order
    of a hash with a random seed, so the same appends would give another order of rows each time.
    """
    sizes = opened._table.get_add_file_sizes()  # noqa: SLF001 - what deltalake gives to its own handler
    found = pyarrow_dataset(opened, file_system(table.store, table.name, sizes))
    if not opened.metadata().partition_columns:
        return found
    files = sorted(found.get_fragments(), key=lambda file: str(file.path).rpartition("/")[0])
    return type(found)(files, found.schema, found.format, found.filesystem)


def pyarrow_dataset(opened: DeltaTable, filesystem: fs.FileSystem | None = None) -> ds.FileSystemDataset:
    """Open a Delta table as an Arrow dataset whose filters find every row.

    Where the log lacks the bounds of a column that it has of other files, as after an erasure or another writer, delta-rs says that
    the column is at least and at most null, from which Arrow concludes that no row of the file matches a filter. Such a file is
    bounded by its partition alone.
    """
    from pyarrow.dataset import get_partition_keys  # late: as in `read`

    def bounded(file: ds.ParquetFileFragment) -> ds.ParquetFileFragment:
        if "null[" not in str(file.partition_expression):
            return file
        keys = get_partition_keys(file.partition_expression)
        bounds = [pc.field(name) == value for name, value in keys.items() if value is not None]
        return found.format.make_fragment(
            file.path, file.filesystem, reduce(and_, bounds, pc.scalar(value=True))
        )

    found = opened.to_pyarrow_dataset(filesystem=filesystem)
    files = [bounded(file) for file in found.get_fragments()]
    return type(found)(files, found.schema, found.format, found.filesystem)


def _in_one_batch(data: pa.Table) -> pa.Table:
    """Copy rows that lie in several batches into one: delta-rs 1.6 spreads batches over its threads, and writes whichever comes first."""
    if all(column.num_chunks <= 1 for column in data.columns):
        return data
    for index, field in enumerate(data.schema):
        wide = _WIDE.get(field.type)
        if wide is not None and data.column(index).nbytes > _MOST_BYTES:  # one chunk's offsets are 32 bits
            column = data.column(index).cast(wide)
            data = data.set_column(index, pa.field(field.name, wide, field.nullable), column)
    return data.combine_chunks()


def _row_groups(data: pa.Table) -> WriterProperties:
    """Write row groups of about `_ROW_GROUP_BYTES` in memory."""
    row_bytes = max(1, data.nbytes // max(1, data.num_rows))
    return WriterProperties(
        compression="SNAPPY", max_row_group_size=max(_FEWEST_ROWS, _ROW_GROUP_BYTES // row_bytes)
    )


def commit_properties(
    transactions: Mapping[str, int], metadata: Mapping[str, str] | None, *, commit_id: str | None = None
) -> CommitProperties:
    """Build what a commit carries beside its files: transactions by application id, metadata of ours, and its own id."""
    custom = {_METADATA: json.dumps(dict(metadata))} if metadata else {}
    custom |= {_COMMIT: commit_id} if commit_id else {}
    return CommitProperties(
        app_transactions=[Transaction(app, version) for app, version in transactions.items()] or None,
        custom_metadata=custom or None,
    )


def version_of_commit(commits: Iterable[Mapping[str, Any]], commit_id: str) -> int:
    """Find the version that a commit with this id made. Raises: NotFound."""
    for commit in commits:
        if commit.get(_COMMIT) == commit_id:
            return int(commit["version"])
    raise NotFound(f"no commit has the id {commit_id}; its log was cleaned up meanwhile")


def already_in(table: DeltaTable, transactions: Mapping[str, int]) -> bool:
    """Whether every transaction was committed before."""
    committed = {app: table.transaction_version(app) for app in transactions}
    return bool(committed) and all(
        found is not None and found >= transactions[app] for app, found in committed.items()
    )
