"""Reader of a Delta table elsewhere: the rows that its commits added since the version that was read before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from featurestore.definitions.batch_source import Piece, Position, Secrets, TimeRange
from featurestore.errors import UnreadableSource

_CHANGE = "_change_type"


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """Rows of a Delta table that is only appended to, by its versions.

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
        except (TableNotFoundError, DeltaError, OSError) as error:
            raise UnreadableSource(f"Delta table {self.uri!r} cannot be opened: {error}") from error
        known, newest = after.get("version"), table.version()
        if known is not None and newest < known:
            raise UnreadableSource(
                f"Delta table {self.uri!r} is at version {newest} and was read up to {known}: it was made anew; load it under "
                "another name"
            )
        if newest == known:
            return
        read = (
            partial(_snapshot, table, list(columns), within)
            if known is None
            else partial(_added, table, known + 1, list(columns))
        )
        name = f"version {newest}" if known is None else f"versions {known + 1} to {newest}"
        yield Piece(name, {"version": newest}, read)


def _snapshot(table: DeltaTable, columns: list[str], within: TimeRange | None) -> Iterator[pa.Table]:
    try:
        dataset = table.to_pyarrow_dataset()
        condition = None if within is None else within.condition(dataset.schema)
        for file in reversed(list(dataset.get_fragments())):  # the log's order is the newest commit first
            for batch in file.to_batches(dataset.schema, columns=columns, filter=condition):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, DeltaError, OSError) as error:
        raise UnreadableSource(f"Delta table cannot be read: {error}") from error


def _added(table: DeltaTable, since: int, columns: list[str]) -> Iterator[pa.Table]:
    """Read the rows that commits added; compaction adds none. Raises: UnreadableSource if some changed or removed rows."""
    try:
        for rows in _changes(table, since, [*columns, _CHANGE]):
            other = set(rows.column(_CHANGE).unique().to_pylist()) - {"insert"}
            if other:
                raise UnreadableSource(
                    f"Delta table: since version {since} rows were not only added ({min(other)}); a source is append-only: "
                    "write corrections as new rows and declare `unique`"
                )
            yield rows.select(columns)
    except (pa.ArrowException, DeltaError, OSError) as error:
        raise UnreadableSource(f"Delta table cannot be read: {error}") from error


def _changes(table: DeltaTable, since: int, columns: list[str]) -> Iterator[pa.Table]:
    """Read changed rows commit by commit, since those of several come in no order."""
    for version in range(since, table.version() + 1):
        for batch in table.load_cdf(starting_version=version, ending_version=version, columns=columns):
            yield pa.table(batch)
