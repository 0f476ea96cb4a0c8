"""Join of a shard's entity rows to the features on Ray Data: tasks on all nodes read ranges, join by key, and write files."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import ray
import ray.data

from toque.featurestore.offline.distributed import join_dataset
from toque.featurestore.offline.retrieval import PinnedRetrieval
from toque.functions.features.entity_rows import EntityRows
from toque.registry import Table
from toque.registry.store import Part, write_part

_ROWS_PER_TASK = 250_000
_NUMBER = "toque_entity_row"
_START, _STOP = "start", "stop"


def join_on_ray(
    shard: range, *, entities: EntityRows, job: PinnedRetrieval | None, table: Table, schema: pa.Schema
) -> list[Part]:
    """Join the entity rows of a range on the cluster, and write files of `table`; returns them in the order of their rows.

    job, schema: as those of a `ShardedBuild`.
    """
    starts = range(shard.start, shard.stop, _ROWS_PER_TASK)
    tasks = [{_START: at, _STOP: min(at + _ROWS_PER_TASK, shard.stop)} for at in starts]
    joined = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        partial(_read, entities=entities), batch_format="pyarrow", batch_size=1
    )
    if job is not None:
        between = (entities.first, entities.last)
        joined = join_dataset(job, joined, row_number=_NUMBER, between=between, rows=len(shard))
    written = joined.map_batches(
        partial(_write, table=table, schema=schema), batch_format="pyarrow", batch_size=None
    )
    found = sorted(written.take_all(), key=lambda row: int(row["first"]))  # a few numbers for each file
    return [Part(str(row["path"]), int(row["size_bytes"]), int(row["rows"])) for row in found]


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
