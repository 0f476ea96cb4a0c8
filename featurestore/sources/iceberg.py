"""Reader of an Apache Iceberg table: the rows that its snapshots appended since the one that was read before, oldest first.

Files are read one by one in the order in which snapshots added them, so of a row that comes again the later one counts. pyiceberg's own
readers take the files of many snapshots in no order, and hold all that they have read ahead.

It needs the package `pyiceberg`, and `sqlalchemy` for a catalog in a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import pyarrow as pa

from featurestore.definitions.batch_source import Piece, Position, Secrets, TimeRange
from featurestore.errors import InvalidDefinition, UnreadableSource

_PASSWORDS = ("password", "secret", "token", "credential")


@dataclass(frozen=True, slots=True)
class IcebergRows:
    """Rows of an Iceberg table that is only appended to, by its snapshots; files that were compacted add nothing.

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
        return [value[1:] for value in self.catalog.values() if value.startswith("$")]

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
        appended = None if known is None else _appended_since(table, self.table, known)
        missing = [name for name in columns if name not in table.schema().column_names]
        if missing:
            raise UnreadableSource(
                f"Iceberg table {self.table!r} has no column {missing[0]!r}; it has {table.schema().column_names}"
            )
        name = f"snapshot {newest}" if known is None else f"snapshots after {known} to {newest}"
        files = (
            partial(_all_files, table, columns, within)
            if appended is None
            else partial(_added_files, table, columns, appended)
        )
        yield Piece(name, {"snapshot": newest}, partial(self._read, files, list(columns)))

    def _opened(self, secrets: Secrets) -> Any:
        try:
            from pyiceberg.catalog import load_catalog  # late: an optional package
            from pyiceberg.exceptions import NoSuchTableError
        except ImportError as error:
            raise UnreadableSource("an Iceberg source needs a package: pip install pyiceberg") from error
        given = {
            name: secrets(value[1:]) if value.startswith("$") else value
            for name, value in self.catalog.items()
        }
        try:
            return load_catalog(given.pop("name", "default"), **given).load_table(self.table)
        except NoSuchTableError as error:
            raise UnreadableSource(f"Iceberg table {self.table!r} is not in its catalog") from error
        except Exception as error:  # a catalog's client raises errors of its own
            raise UnreadableSource(f"Iceberg table {self.table!r} cannot be opened: {error}") from error

    def _read(self, files: Callable[[], Iterator[tuple[Any, Any]]], columns: list[str]) -> Iterator[pa.Table]:
        try:
            reader: Any = import_module("pyiceberg.io.pyarrow").ArrowScan  # late, as above
            for scan, task in files():
                opened = reader(
                    scan.table_metadata, scan.io, scan.projection(), scan.row_filter, scan.case_sensitive
                )
                for batch in opened.to_record_batches([task]):
                    yield pa.Table.from_batches([batch]).select(columns)
        except Exception as error:  # as above; files that were deleted meanwhile among them
            raise UnreadableSource(f"Iceberg table {self.table!r} cannot be read: {error}") from error


def _added_files(table: Any, columns: Sequence[str], appended: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Plan to read what snapshots appended, one after the other; yields a scan and a file of it."""
    for each in appended:
        scan = table.incremental_append_scan(
            from_snapshot_id_exclusive=each.parent_snapshot_id,
            to_snapshot_id_inclusive=each.snapshot_id,
            selected_fields=tuple(columns),
        )
        yield from ((scan, task) for task in scan.plan_files())


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


def _appended_since(table: Any, name: str, known: int) -> list[Any]:
    """List the snapshots since a known one that appended rows, oldest first; those between only put files together.

    Raises: UnreadableSource if one did something else, or the table does not come from the known one.
    """
    found: list[Any] = []
    snapshot = table.current_snapshot()
    while snapshot is not None and snapshot.snapshot_id != known:
        operation = "unknown" if snapshot.summary is None else snapshot.summary.operation.value
        if operation not in {"append", "replace"}:
            raise UnreadableSource(
                f"Iceberg table {name!r}: snapshot {snapshot.snapshot_id} did not only append ({operation}); a source is "
                "append-only: write corrections as new rows and declare `unique`"
            )
        if operation == "append":
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
