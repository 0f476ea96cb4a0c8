"""Packing of rows for a shuffle: every row once, and all rows of a key in one partition."""

import pyarrow as pa
import pytest

from toque.featurestore.offline.partitioning import ENTITIES, PART, ROWS, key_hashes, pack, unpack

TABLE = pa.table(
    {"plane": [f"N{n % 50}" for n in range(1_000)], "place": [n % 3 for n in range(1_000)], "x": range(1_000)}
)
HASHES = key_hashes(TABLE, ["plane", "place"])


def rows_of(packed: pa.Table) -> dict[int, pa.Table]:
    groups = {p: packed.filter(pa.compute.equal(packed[PART], p)) for p in packed[PART].to_pylist()}
    return {p: rows for p, group in groups.items() if (rows := unpack(group, ROWS)) is not None}


@pytest.mark.parametrize("parts", [1, 7, 64])
def test_every_row_is_packed_once_and_each_key_has_one_partition(parts: int) -> None:
    packed = [
        pack(TABLE.slice(at, 300), HASHES[at : at + 300], side=ROWS, partitions=parts)
        for at in range(0, 1_000, 300)
    ]
    by_part = rows_of(pa.concat_tables(packed))
    assert sorted(x for rows in by_part.values() for x in rows["x"].to_pylist()) == list(range(1_000))
    keys = [
        set(zip(rows["plane"].to_pylist(), rows["place"].to_pylist(), strict=True))
        for rows in by_part.values()
    ]
    assert sum(map(len, keys)) == len(set().union(*keys)) == 150
    assert set(by_part) <= set(range(parts))


def test_sides_are_unpacked_apart_and_an_empty_block_keeps_its_schema() -> None:
    both = pa.concat_tables(
        [
            pack(TABLE, HASHES, side=ENTITIES, partitions=1),
            pack(TABLE.slice(0, 0).drop_columns(["x"]), HASHES[:0], side=ROWS, partitions=1),
        ]
    )
    assert unpack(both, ENTITIES) == TABLE
    assert unpack(both, ROWS) == TABLE.slice(0, 0).drop_columns(["x"])
    assert unpack(both.slice(0, 1), ROWS) is None


def test_a_table_without_keys_is_one_partition() -> None:
    packed = pack(TABLE, key_hashes(TABLE, []), side=ROWS, partitions=7)
    assert packed[PART].to_pylist() == [0]
