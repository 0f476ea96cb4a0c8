"""Hash partitioning of rows by key, and their packing for a shuffle.

A shuffle moves Arrow tables as bytes, one for each (block, partition): entity rows and feature rows of any schema meet in
one group, and few large values move instead of many small rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from toque.kernels.hashing import hash_strings

PART, ENTITIES, ROWS = "part", 0, 1
_SIDE, _PAYLOAD = "side", "payload"

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def key_hashes(table: pa.Table, keys: Sequence[str]) -> Hashes:
    """Hash the key columns of each row, typed as in the view, to (rows,) uint64."""
    mixed = np.zeros(table.num_rows, dtype=np.uint64)
    for key in keys:
        texts = table.column(key).cast(pa.string()).combine_chunks().dictionary_encode()
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hash_strings(texts).astype(np.uint64)
    return mixed


def pack(table: pa.Table, hashes: Hashes, *, side: int, partitions: int) -> pa.Table:
    """Pack a block as one serialized table for each partition that has rows in it.

    side: `ENTITIES` or `ROWS`.
    """
    partition = ((hashes >> np.uint64(17)) % np.uint64(partitions)).astype(np.int64)
    order = np.argsort(partition, kind="stable")
    bounds = np.searchsorted(partition[order], np.arange(partitions + 1))
    found = [p for p in range(partitions) if bounds[p] < bounds[p + 1]]
    ordered = table.take(pa.array(order))
    tables = [ordered.slice(bounds[p], bounds[p + 1] - bounds[p]) for p in found]
    if not found:  # an empty block still carries its schema
        found, tables = [0], [ordered]
    return pa.table(
        {
            PART: pa.array(found, pa.int32()),
            _SIDE: pa.array([side] * len(found), pa.int8()),
            _PAYLOAD: _payloads(tables),
        }
    )


def _payloads(tables: Sequence[pa.Table]) -> pa.LargeBinaryArray:
    """Serialize tables, each written once into the column's single buffer."""
    measured = pa.MockOutputStream()
    ends = [0, *(_write(table, measured) for table in tables)]
    buffer = pa.allocate_buffer(ends[-1])  # of the final size, since a growing one takes twice as much
    with pa.FixedSizeBufferWriter(buffer) as sink:
        for table in tables:
            _write(table, sink)
    offsets = pa.array(ends, pa.int64()).buffers()[1]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(tables), [None, offsets, buffer])


def _write(table: pa.Table, sink: pa.NativeFile) -> int:
    """Write a table to the sink; returns the position after it."""
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    end: int = sink.tell()
    return end


def unpack(group: pa.Table, side: int) -> pa.Table | None:
    """Unpack the rows of one side of a partition, None if it has no rows."""
    payloads = [
        payload
        for payload, its_side in zip(group.column(_PAYLOAD), group.column(_SIDE).to_pylist(), strict=True)
        if its_side == side
    ]
    tables = [pa.ipc.open_stream(payload.as_buffer()).read_all() for payload in payloads]
    return pa.concat_tables(tables) if tables else None
