"""Reader of a Delta table elsewhere: the rows that its commits added since the version that was read before.

What a DELETE, UPDATE or MERGE took away is counted and stays where it was loaded; changed rows come as new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from toque.featurestore.definitions.batch_source import Piece, Position, Secrets, TimeRange
from toque.featurestore.errors import UnreadableSource
from toque.featurestore.sources.removed_rows import RemovedRows

_CHANGE = "_change_type"
_ADDED = ["insert", "update_postimage"]  # arrays are made where they are used: the first one imports pandas
_REMOVED = ["delete", "update_preimage"]
_KEEPING = frozenset({"OPTIMIZE", "VACUUM START", "VACUUM END", "CREATE TABLE"})


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
        removed: list[int] = []
        read = (
            partial(_snapshot, table, list(columns), within)
            if known is None
            else partial(_added, table, known + 1, list(columns), removed)
        )
        name = f"version {newest}" if known is None else f"versions {known + 1} to {newest}"
        yield Piece(name, {"version": newest}, read, removed=removed)


def _snapshot(table: DeltaTable, columns: list[str], within: TimeRange | None) -> Iterator[pa.Table]:
    try:
        dataset = table.to_pyarrow_dataset()
        condition = None if within is None else within.condition(dataset.schema)
        for file in reversed(list(dataset.get_fragments())):  # the log's order is the newest commit first
            for batch in file.to_batches(dataset.schema, columns=columns, filter=condition):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, DeltaError, OSError) as error:
        raise UnreadableSource(f"Delta table cannot be read: {error}") from error


def _added(table: DeltaTable, since: int, columns: list[str], removed: list[int]) -> Iterator[pa.Table]:
    """Read the rows that commits added, one after the other; compaction adds none. removed: takes the numbers of rows that went."""
    try:
        newest = table.version()
        operations = {each["version"]: each.get("operation") for each in table.history(newest - since + 1)}
        gone = RemovedRows()
        for version in range(since, newest + 1):  # those of several come in no order
            for rows in _changes(table, version, columns) if operations.get(version) not in _KEEPING else ():
                gone.add(_of_kinds(rows, _REMOVED).select(columns))
            for rows in _changes(table, version, columns):
                yield gone.without(_of_kinds(rows, _ADDED).select(columns))
        removed.append(gone.count)
    except (pa.ArrowException, DeltaError, OSError) as error:
        raise UnreadableSource(f"Delta table cannot be read: {error}") from error


def _changes(table: DeltaTable, version: int, columns: list[str]) -> Iterator[pa.Table]:
    """Read what a commit changed, row by row."""
    for batch in table.load_cdf(
        starting_version=version, ending_version=version, columns=[*columns, _CHANGE]
    ):
        yield _without_views(pa.table(batch))


def _without_views(rows: pa.Table) -> pa.Table:
    """Copy texts that are views of others, which pyarrow cannot filter."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return rows.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in rows.schema]))


def _of_kinds(rows: pa.Table, kinds: list[str]) -> pa.Table:
    return rows.filter(pc.is_in(rows.column(_CHANGE), value_set=pa.array(kinds)))
