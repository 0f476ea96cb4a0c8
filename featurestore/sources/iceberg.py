"""Reader of an Apache Iceberg table: the rows that its snapshots appended since the one that was read before.

It needs the package `pyiceberg`, and `sqlalchemy` for a catalog in a database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        if known is not None:
            _require_appends(table, self.table, known)
        missing = [name for name in columns if name not in table.schema().column_names]
        if missing:
            raise UnreadableSource(
                f"Iceberg table {self.table!r} has no column {missing[0]!r}; it has {table.schema().column_names}"
            )
        name = f"snapshot {newest}" if known is None else f"snapshots after {known} to {newest}"
        scan = _scan(table, columns, known, newest, within)
        yield Piece(name, {"snapshot": newest}, partial(self._read, scan, list(columns)))

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

    def _read(self, scan: Any, columns: list[str]) -> Iterator[pa.Table]:
        try:
            for batch in scan.to_arrow_batch_reader():
                yield pa.Table.from_batches([batch]).select(columns)
        except Exception as error:  # as above; files that were deleted meanwhile among them
            raise UnreadableSource(f"Iceberg table {self.table!r} cannot be read: {error}") from error


def _scan(
    table: Any, columns: Sequence[str], known: int | None, newest: int, within: TimeRange | None
) -> Any:
    """Plan to read what was appended after a snapshot, or all, or what may be within a range of times."""
    names = tuple(columns)
    if known is not None:
        return table.incremental_append_scan(
            from_snapshot_id_exclusive=known, to_snapshot_id_inclusive=newest, selected_fields=names
        )
    scan = table.scan(selected_fields=names, snapshot_id=newest)
    if within is None:
        return scan
    dtype = scan.projection().as_arrow().field(within.column).type
    if not pa.types.is_timestamp(dtype):
        return scan
    made: Any = import_module("pyiceberg.expressions")  # late, as above
    low, high = (each.isoformat() for each in within.bounds(has_zone=dtype.tz is not None))
    column = within.column
    return scan.filter(made.And(made.GreaterThanOrEqual(column, low), made.LessThanOrEqual(column, high)))


def _require_appends(table: Any, name: str, known: int) -> None:
    """Check that all since a snapshot only appended, or put files together. Raises: UnreadableSource."""
    snapshot = table.current_snapshot()
    while snapshot is not None and snapshot.snapshot_id != known:
        operation = "unknown" if snapshot.summary is None else snapshot.summary.operation.value
        if operation not in {"append", "replace"}:
            raise UnreadableSource(
                f"Iceberg table {name!r}: snapshot {snapshot.snapshot_id} did not only append ({operation}); a source is "
                "append-only: write corrections as new rows and declare `unique`"
            )
        parent = snapshot.parent_snapshot_id
        if parent == known:
            return
        snapshot = None if parent is None else table.metadata.snapshot_by_id(parent)
    if snapshot is None:
        raise UnreadableSource(
            f"Iceberg table {name!r} was read up to snapshot {known}, from which its present one does not come: it was rolled "
            "back or made anew, or the snapshots between have expired; load it under another name"
        )
