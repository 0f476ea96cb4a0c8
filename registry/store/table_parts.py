"""Tables written by many workers in one commit: each writes files beside the table, and one process names them all.

A file that was written and never committed belongs to no version, and nobody reads it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.transaction import AddAction, RemoveAction

from registry.store.table_files import file_system
from registry.store.tables import (
    Table,
    TableSnapshot,
    commit_properties,
    version_of_commit,
    with_stored_times,
)


@dataclass(frozen=True, slots=True)
class Part:
    """File of rows that belongs to no version yet."""

    path: str
    size_bytes: int
    rows: int


def write_part(table: Table, rows: pa.Table) -> Part:
    """Write rows to a file of a table that exists, which `overwrite_with_parts` makes a part of it.

    Raises: InvalidInput for a timestamp without a timezone.
    """
    rows = with_stored_times(rows, table.name)
    folder = file_system(table.store, table.name)
    path = f"part-{uuid.uuid4()}.snappy.parquet"
    pq.write_table(rows, path, filesystem=folder)
    return Part(path, folder.get_file_info(path).size, rows.num_rows)


def overwrite_with_parts(
    table: Table, parts: Sequence[Part], schema: pa.Schema, *, metadata: Mapping[str, str] | None = None
) -> TableSnapshot:
    """Replace all rows of a table without partitions by those of `parts`, in their order; see `Table.overwrite`."""
    commit_id, now = uuid.uuid4().hex, int(time.time() * 1000)
    commit = commit_properties({}, metadata, commit_id=commit_id)
    actions: list[AddAction | RemoveAction] = [
        AddAction(
            each.path, each.size_bytes, {}, now, data_change=True, stats=json.dumps({"numRecords": each.rows})
        )
        for each in parts
    ]

    def write(found: DeltaTable | None) -> DeltaTable:
        opened = table.create(schema) if found is None else found
        opened.create_write_transaction(
            actions, "overwrite", Schema.from_arrow(schema), commit_properties=commit
        )
        return opened

    before = table.commit(write).version  # of the table as it was opened
    newest = table.open()
    commits = newest.history(newest.version() - before)  # others may have written since
    return TableSnapshot(name=table.name, version=version_of_commit(commits, commit_id))
