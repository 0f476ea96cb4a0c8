"""SQLite: values of several types in one column, in whatever order they come, and rows without a watermark."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from toque.featurestore import BatchSource, FeatureStore, Field, Float64, Int64, SourceLoad, SqlTable, String

MANY = 70_000  # more than are read at once
WHOLE: list[Any] = [2] * MANY
VALUES: dict[str, tuple[list[Any], int]] = {
    "a fraction after whole numbers": ([*WHOLE, 2.5], 0),
    "a fraction before them": ([2.5, *WHOLE], 0),
    "a fraction among few": ([1, 2.5, 3], 0),
    "nothing first": ([None] * 100 + [2, 2.5], 0),
    "a number as text": ([1, "2.5", 3], 0),
    "a number beyond 2^53": ([2**53 + 1, 0.5], 0),
    "a text that is no number": ([*[1] * 50, "much", 2.5], 1),
}


def source(fs: FeatureStore, tmp_path: Path, rows: list[tuple[Any, Any]], dtype: Any = Float64) -> None:
    with closing(sqlite3.connect(tmp_path / "db")) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS tx (id INTEGER, user TEXT, at TEXT, amount)")
        given = [(number, "u", "2024-05-01T01:00:00Z", value) for number, value in rows]
        database.executemany("INSERT INTO tx VALUES (?, ?, ?, ?)", given)
    reads = SqlTable(f"sqlite:///{tmp_path}/db", "tx", "id")
    fs.apply([BatchSource("tx", reads, [Field("user", String), Field("amount", dtype)], timestamp="at")])


def load(fs: FeatureStore) -> SourceLoad | None:
    return fs.source_table("tx").load(lambda _name: "")


@pytest.mark.parametrize(("values", "rejected"), VALUES.values(), ids=VALUES.keys())
def test_values_of_several_types_are_read_as_declared(
    offline_fs: FeatureStore, tmp_path: Path, values: list[Any], rejected: int
) -> None:
    source(offline_fs, tmp_path, list(enumerate(values)))
    found = load(offline_fs)
    assert found is not None
    assert (found.rows, found.rejected) == (len(values) - rejected, rejected)
    read = offline_fs.source_table("tx").rows()["amount"].to_pylist()
    numbers = [None if each is None else float(each) for each in values if each != "much"]
    assert sorted(map(str, read)) == sorted(map(str, numbers))


def test_a_whole_number_beside_a_fraction_keeps_its_last_digit(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    source(offline_fs, tmp_path, [*((n, 2**53 + 1) for n in range(30)), (31, 0.5)], Int64)
    found = load(offline_fs)
    assert found is not None
    assert (found.rows, found.rejected) == (30, 1)
    assert set(offline_fs.source_table("tx").rows()["amount"].to_pylist()) == {2**53 + 1}


@pytest.mark.parametrize("marked", [0, 1, 3])
def test_a_row_without_a_watermark_is_named_once(
    offline_fs: FeatureStore, tmp_path: Path, marked: int
) -> None:
    source(offline_fs, tmp_path, [*((n, n) for n in range(marked)), (None, 7)])
    found = load(offline_fs)
    assert found is not None
    assert (found.rows, found.rejected) == (marked, 1)
    assert next(iter(found.reasons)).startswith("column 'id' has no value")
    assert load(offline_fs) is None
    source(offline_fs, tmp_path, [(None, 8), (10, 10)])
    found = load(offline_fs)
    assert found is not None
    assert (found.rows, found.rejected) == (1, 1)
    aside = offline_fs.source_table("tx").rejected.read()["row"].to_pylist()
    assert sorted('"amount": 7' in each for each in aside) == [False, True]
