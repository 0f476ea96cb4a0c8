"""Tables written by many workers in one commit: each writes files beside the table, and one process names them all.

A file that was written and never committed belongs to no version, and nobody reads it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.transaction import AddAction, RemoveAction

from toque.registry.errors import InvalidInput
from toque.registry.store.tables.files import file_system, with_stored_times
from toque.registry.store.tables.naming import TableSnapshot
from toque.registry.store.tables.table import Table, already_in, commit_properties, version_of_commit


@dataclass(frozen=True, slots=True)
class Part:
    """File of rows that belongs to no version yet.

    bounds: least and greatest value of some columns, by which readers leave the file out; nulls: how many they have.
    partition: values of the table's partition columns, which the file itself lacks.
    """

    path: str
    size_bytes: int
    rows: int
    bounds: Mapping[str, tuple[str | int, str | int]] = field(default_factory=dict, hash=False)
    nulls: Mapping[str, int] = field(default_factory=dict, hash=False)
    partition: Mapping[str, str] = field(default_factory=dict, hash=False)


def write_part(
    table: Table, rows: pa.Table, *, bounds: Sequence[str] = (), partition: Mapping[str, str] | None = None
) -> Part:
    """Write rows to a file of a table that exists, which `overwrite_with_parts` or `append_with_parts` makes a part of it.

    bounds: columns of times or integers, whose range the log will know.
    partition: the value of each column by which the table is partitioned, letters, digits and dashes; all rows have it.
    Raises: InvalidInput for a timestamp without a timezone.
    """
    values = dict(partition or {})
    rows = with_stored_times(rows.drop_columns(list(values)), table.name)
    folder = file_system(table.store, table.name)
    within = "/".join(f"{name}={value}" for name, value in values.items())
    if within:
        folder.create_dir(within, recursive=True)
    path = f"{within}/part-{uuid.uuid4()}.snappy.parquet".lstrip("/")
    coded = [
        each.name for each in rows.schema if not pa.types.is_floating(each.type)
    ]  # the others rarely repeat
    pq.write_table(rows, path, filesystem=folder, use_dictionary=coded)
    nulls = {name: rows.column(name).null_count for name in bounds}
    ranges = {
        name: least_and_most
        for name in bounds
        if nulls[name] < rows.num_rows and (least_and_most := _bounds(rows.column(name))) is not None
    }
    known = {name: count for name, count in nulls.items() if name in ranges or count == rows.num_rows}
    return Part(path, folder.get_file_info(path).size, rows.num_rows, ranges, known, values)


def read_part(table: Table, part: Part, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a file that `write_part` wrote, whether a version has it or not."""
    names = None if columns is None else list(columns)
    return pq.read_table(part.path, columns=names, filesystem=file_system(table.store, table.name))


def delete_part(table: Table, part: Part) -> None:
    """Delete a file that `write_part` wrote and no version will have."""
    table.store.delete(f"tables/{table.name}.delta/{part.path}")


def _bounds(column: pa.ChunkedArray) -> tuple[str | int, str | int] | None:
    """Least and greatest value as the log has them: times in whole milliseconds, rounded outwards; None beyond the calendar."""
    least, most = pc.min(column), pc.max(column)
    if not pa.types.is_timestamp(column.type):
        return least.as_py(), most.as_py()
    first, last = least.value // 1000, -(-most.value // 1000)
    try:
        return _time(first), _time(last)
    except OverflowError:
        return None


def _time(milliseconds: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def overwrite_with_parts(
    table: Table,
    parts: Sequence[Part],
    schema: pa.Schema,
    *,
    metadata: Mapping[str, str] | None = None,
    commit_id: str | None = None,
) -> TableSnapshot:
    """Replace all rows of a table without partitions by those of `parts`, in their order; see `Table.overwrite`.

    commit_id: under which it is done once, whoever asks again; by default a new one.
    """
    identity = commit_id or uuid.uuid4().hex
    transactions = {f"overwrite:{commit_id}": 0} if commit_id else {}
    commit = commit_properties(transactions, metadata, commit_id=identity)
    actions = _actions(parts)

    def write(opened: DeltaTable) -> tuple[bool, int]:
        already = already_in(opened, transactions)
        if not already:
            opened.create_write_transaction(
                actions, "overwrite", Schema.from_arrow(schema), commit_properties=commit
            )
        return already, opened.version()

    already, before = table.commit(write, schema=schema)  # of the table as it was opened
    newest = table.open()
    # Others may have written since, and an earlier call before.
    commits = newest.history(None if already else newest.version() - before)
    return TableSnapshot(name=table.name, version=version_of_commit(commits, identity))


def append_with_parts(
    table: Table,
    parts: Sequence[Part],
    schema: pa.Schema,
    *,
    transactions: Mapping[str, int],
    metadata: Mapping[str, str] | None = None,
) -> bool:
    """Add the rows of `parts` to a table without partitions, made if it does not exist, exactly once; see `Table.append`.

    schema: columns that the table lacks are added to it. Returns whether this call added them.
    Raises: InvalidInput if a column has another type than the table's.
    """
    commit = commit_properties(transactions, metadata)

    def write(opened: DeltaTable) -> bool:
        if already_in(opened, transactions):
            return False
        add_parts(opened, parts, schema, table.name, commit)
        return True

    return table.commit(write, schema=schema)


def add_parts(
    opened: DeltaTable, parts: Sequence[Part], schema: pa.Schema, name: str, commit: CommitProperties
) -> None:
    """Add the rows of `parts` to an open table in one commit; columns that it lacks are added to it.

    name: of the table, for messages. Raises: InvalidInput if a column has another type than the table's; CommitFailedError.
    """
    merged = _with_columns(opened, schema, name)
    opened.create_write_transaction(_actions(parts), "append", merged, commit_properties=commit)


def replace_with_parts(
    opened: DeltaTable, parts: Sequence[Part], schema: pa.Schema, name: str, commit: CommitProperties
) -> None:
    """Put the rows of `parts` in place of all of an open table; otherwise as `add_parts`."""
    merged = _with_columns(opened, schema, name)
    by = opened.metadata().partition_columns or None
    opened.create_write_transaction(
        _actions(parts), "overwrite", merged, partition_by=by, commit_properties=commit
    )


def _actions(parts: Sequence[Part]) -> list[AddAction | RemoveAction]:
    now = int(time.time() * 1000)
    return [
        AddAction(part.path, part.size_bytes, dict(part.partition), now, data_change=True, stats=_stats(part))
        for part in parts
    ]


def _stats(part: Part) -> str:
    least = {name: low for name, (low, _) in part.bounds.items()}
    most = {name: high for name, (_, high) in part.bounds.items()}
    known = {"minValues": least, "maxValues": most, "nullCount": dict(part.nulls)} if part.nulls else {}
    return json.dumps({"numRecords": part.rows} | known)


def _with_columns(opened: DeltaTable, schema: pa.Schema, name: str) -> Schema:
    """Add the columns that a table lacks; returns its schema. Raises: InvalidInput for a column of another type."""
    known = {each.name: each for each in opened.schema().fields}
    wanted = Schema.from_arrow(schema).fields
    for each in wanted:
        if each.name in known and known[each.name].type != each.type:
            raise InvalidInput(
                f"table {name}: column {each.name!r} is {known[each.name].type} there and {each.type} in the new rows; "
                "give the column another name"
            )
    if missing := [each for each in wanted if each.name not in known]:
        opened.alter.add_columns(missing)
    return opened.schema()
