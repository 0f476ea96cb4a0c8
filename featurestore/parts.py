"""Rows by the hash of their keys: which partition each belongs to, whether anybody asks for it, how it travels there.

What travels are Arrow tables as bytes, one for each (block, partition): entity rows and feature rows of any schema meet in
one group, and few large values move instead of many small rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kernels.hashing import hash_strings

PART, ENTITIES, ROWS = "part", 0, 1
_SIDE, _PAYLOAD = "side", "payload"
_BITS_A_ROW = 8  # of those asked for: one key in nine that nobody asks for then passes
_LEAST_BITS, _MOST_BITS = 10, 28

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def key_hashes(table: pa.Table, keys: Sequence[str]) -> Hashes:
    """One hash a row, (rows,) uint64, of its key columns, which have the types of their view."""
    mixed = np.zeros(table.num_rows, dtype=np.uint64)
    for key in keys:
        texts = table.column(key).cast(pa.string()).combine_chunks().dictionary_encode()
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hash_strings(texts).astype(np.uint64)
    return mixed


class AskedKeys:
    """The keys that entity rows ask for, as one bit for each range of hashes; rows of other keys need not travel.

    bits: of 2^n ranges, packed; a key that is asked for always passes, and few others do.
    """

    def __init__(self, bits: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.bits = bits

    @classmethod
    def of(cls, hashes: Iterable[Hashes], *, rows: int) -> "AskedKeys":
        """hashes: of the entity rows, piece by piece; rows: how many in all."""
        exponent = min(max((rows * _BITS_A_ROW).bit_length(), _LEAST_BITS), _MOST_BITS)
        flags = np.zeros(1 << exponent, dtype=np.bool_)
        for piece in hashes:
            flags[piece >> np.uint64(64 - exponent)] = True
        return cls(np.packbits(flags, bitorder="little"))

    def may_have(self, hashes: Hashes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """False, for each hash, where it is sure that nobody asks for it."""
        exponent = (len(self.bits) * 8).bit_length() - 1
        at = hashes >> np.uint64(64 - exponent)
        found: np.ndarray[Any, np.dtype[np.bool_]] = (
            self.bits[at >> np.uint64(3)] >> (at & np.uint64(7)).astype(np.uint8) & 1
        ).astype(np.bool_)
        return found


def pack(
    table: pa.Table, hashes: Hashes, *, side: int, parts: int, asked: AskedKeys | None = None
) -> pa.Table:
    """A block as one serialized table for each partition that has rows in it.

    side: `ENTITIES` or `ROWS`; asked: rows of other keys are left out.
    """
    rows = np.arange(table.num_rows) if asked is None else np.flatnonzero(asked.may_have(hashes))
    part = ((hashes[rows] >> np.uint64(17)) % np.uint64(parts)).astype(np.int64)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(parts + 1))
    found = [p for p in range(parts) if bounds[p] < bounds[p + 1]]
    payloads = [_to_bytes(table.take(pa.array(rows[order[bounds[p] : bounds[p + 1]]]))) for p in found]
    if not found:  # its schema still has to be known
        found, payloads = [0], [_to_bytes(table.slice(0, 0))]
    return pa.table(
        {
            PART: pa.array(found, pa.int32()),
            _SIDE: pa.array([side] * len(found), pa.int8()),
            _PAYLOAD: pa.array(payloads, pa.large_binary()),
        }
    )


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack(group: pa.Table, side: int) -> pa.Table | None:
    """The rows of one side of a partition, None if it has none."""
    payloads = [
        payload
        for payload, its_side in zip(group.column(_PAYLOAD), group.column(_SIDE).to_pylist(), strict=True)
        if its_side == side
    ]
    tables = [pa.ipc.open_stream(payload.as_buffer()).read_all() for payload in payloads]
    return pa.concat_tables(tables) if tables else None
