"""Training sets that do not fit a share of a node's memory: joined on Ray Data over all nodes, and never whole in one place.

Tasks read ranges of the entity table, join them to the features by a hash of their keys, and write files beside the
training set's table; the caller handles their names and commits them at once. The rows, and their order, are those of the
small way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray
import ray.data

from featurestore import InvalidRows
from featurestore.offline.distributed import join_dataset
from featurestore.offline.pinned_retrieval import PinnedRetrieval
from functions.features.entity_rows import EntityRows
from registry import Table
from registry.store import Part, write_part

_ROWS_PER_TASK = 250_000
_NUMBER = "toque_entity_row"
_START, _STOP = "start", "stop"


@dataclass(frozen=True, slots=True)
class WrittenParts:
    """Files of a training set in the order of its rows."""

    parts: list[Part]

    @property
    def rows(self) -> int:
        """Number of rows in all files."""
        return sum(part.rows for part in self.parts)


def write_parts(
    job: PinnedRetrieval, entities: EntityRows, table: Table, *, schema: pa.Schema
) -> WrittenParts:
    """Join features to entity rows on the cluster, and write files for `table`, whose rows stay as they are.

    job: a retrieval of the features for no rows; schema: of its result.
    Raises: InvalidRows if no row is left.
    """
    count = entities.pinned().count
    starts = range(0, count, _ROWS_PER_TASK)
    tasks = [{_START: at, _STOP: min(at + _ROWS_PER_TASK, count)} for at in starts]
    if not tasks:
        raise InvalidRows(entities.none_left())
    read = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        partial(_read, entities=entities), batch_format="pyarrow", batch_size=1
    )
    joined = join_dataset(job, read, row_number=_NUMBER, between=(entities.first, entities.last))
    if not table.exists():
        table.create(schema)
    written = joined.map_batches(
        partial(_write, table=table, schema=schema), batch_format="pyarrow", batch_size=None
    )
    found = sorted(written.take_all(), key=lambda row: int(row["first"]))  # a few numbers for each file
    if not found:
        raise InvalidRows(entities.none_left())
    parts = [Part(str(row["path"]), int(row["size_bytes"]), int(row["rows"])) for row in found]
    return WrittenParts(parts)


def _read(task: pa.Table, *, entities: EntityRows) -> pa.Table:
    """Read the entity rows of a range, numbered as in the table."""
    start, stop = task.column(_START)[0].as_py(), task.column(_STOP)[0].as_py()
    pinned = entities.pinned()
    read = [_numbered(pinned.schema.empty_table(), 0)]
    for rows in pinned.slices(start, stop, rows=_ROWS_PER_TASK):
        read.append(entities.choose(_numbered(rows, start)))
        start += rows.num_rows
    return pa.concat_tables(read)


def _numbered(rows: pa.Table, first: int) -> pa.Table:
    return rows.append_column(_NUMBER, pa.array(np.arange(first, first + rows.num_rows)))


def _write(rows: pa.Table, *, table: Table, schema: pa.Schema) -> pa.Table:
    """Write a file of joined rows; returns its name and what its rows are."""
    if not rows.num_rows:
        return pa.table({})
    first = rows.column(_NUMBER)[0].as_py()
    part = write_part(table, rows.select(schema.names).cast(schema))
    return pa.table(
        {
            "first": [first],
            "path": [part.path],
            "size_bytes": [part.size_bytes],
            "rows": [part.rows],
        }
    )
