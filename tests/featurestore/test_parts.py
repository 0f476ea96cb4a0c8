"""How rows are cut for a shuffle: every row once, all of a key in one partition, and only those that are asked for."""

import numpy as np
import pyarrow as pa
import pytest

from featurestore.parts import ENTITIES, PART, ROWS, AskedKeys, key_hashes, pack, unpack

TABLE = pa.table(
    {"plane": [f"N{n % 50}" for n in range(1_000)], "place": [n % 3 for n in range(1_000)], "x": range(1_000)}
)
HASHES = key_hashes(TABLE, ["plane", "place"])


def rows_of(packed: pa.Table) -> dict[int, pa.Table]:
    groups = {p: packed.filter(pa.compute.equal(packed[PART], p)) for p in packed[PART].to_pylist()}
    return {p: rows for p, group in groups.items() if (rows := unpack(group, ROWS)) is not None}


@pytest.mark.parametrize("parts", [1, 7, 64])
def test_every_row_travels_once_and_all_of_a_key_together(parts: int) -> None:
    packed = [
        pack(TABLE.slice(at, 300), HASHES[at : at + 300], side=ROWS, parts=parts)
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


def test_sides_are_kept_apart_and_an_empty_block_still_tells_its_schema() -> None:
    both = pa.concat_tables(
        [
            pack(TABLE, HASHES, side=ENTITIES, parts=1),
            pack(TABLE.slice(0, 0).drop_columns(["x"]), HASHES[:0], side=ROWS, parts=1),
        ]
    )
    assert unpack(both, ENTITIES) == TABLE
    assert unpack(both, ROWS) == TABLE.slice(0, 0).drop_columns(["x"])
    assert unpack(both.slice(0, 1), ROWS) is None


def test_rows_of_keys_that_nobody_asks_for_stay_and_all_others_travel() -> None:
    wanted = np.array([n % 50 < 10 for n in range(1_000)])
    asked = AskedKeys.of([HASHES[wanted][:50], HASHES[wanted][50:]], rows=int(wanted.sum()))
    assert asked.may_have(HASHES)[wanted].all()
    (rows,) = rows_of(pack(TABLE, HASHES, side=ROWS, parts=1, asked=asked)).values()
    there = set(rows["x"].to_pylist())
    assert there >= set(np.flatnonzero(wanted).tolist())
    assert len(there) < 400  # 200 wanted; of the 800 others about one in fifty has a wanted one's bit
    assert rows["x"].to_pylist() == sorted(there)


def test_few_others_pass_whatever_the_number_of_rows() -> None:
    rng = np.random.default_rng(1)
    for rows in (1, 100, 3_000, 200_000):
        asked = AskedKeys.of([rng.integers(0, 2**64, rows, dtype=np.uint64)], rows=rows)
        others = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
        assert asked.may_have(others).mean() < 0.14  # 1/8 of the bits at most, and 5 s.e.


def test_a_table_without_keys_is_one_partition() -> None:
    packed = pack(TABLE, key_hashes(TABLE, []), side=ROWS, parts=7)
    assert packed[PART].to_pylist() == [0]
