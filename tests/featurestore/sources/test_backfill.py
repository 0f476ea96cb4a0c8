"""Backfills: a range of a source is loaded again, each row once, and the loads of what is new do not notice."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.featurestore.conftest import NOW
from toque.featurestore import Field, Float64, InvalidDefinition, InvalidRows, String, UnexpectedRows
from toque.featurestore.sources import (
    BatchSource,
    CsvFiles,
    DeltaRows,
    IcebergRows,
    ParquetFiles,
    SourceTable,
    SqlTable,
)
from toque.featurestore.sources import backfill as backfills
from toque.featurestore.sources.backfill import load_range
from toque.registry import ObjectStore, open_store

START = datetime(2013, 1, 1, tzinfo=UTC)
DAYS = 12
HEADER = "plane,at,delay\n"


def table_of(reads: Any, store: ObjectStore, **options: Any) -> SourceTable:
    schema = [Field("plane", String), Field("delay", Float64)]
    source = BatchSource("flights", reads, schema, "at", **({"unique": ["plane"]} | options))
    return SourceTable(source, store, "default", actor="tests", clock=lambda: NOW)


def no_secrets(name: str) -> str:
    raise AssertionError(name)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def rows_of(delay: float) -> pa.Table:
    """A row at noon of each day."""
    at = [START + timedelta(days=n, hours=12) for n in range(DAYS)]
    times = pa.array(at, pa.timestamp("us", "UTC"))
    return pa.table({"plane": ["N1"] * DAYS, "at": times, "delay": [delay] * DAYS})


def delays(table: SourceTable) -> list[float]:
    found = pl.DataFrame(table.rows()).sort("event_timestamp")
    return found.get_column("delay").to_list()


def csv(folder: Path) -> Any:
    pl.DataFrame(rows_of(2)).write_csv(folder / "a.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    return CsvFiles(f"{folder}/*.csv")


def parquet(folder: Path) -> Any:
    pl.DataFrame(rows_of(2)).write_parquet(folder / "a.parquet", row_group_size=1)
    return ParquetFiles(f"{folder}/*.parquet")


def naive_parquet(folder: Path) -> Any:
    naive = pl.DataFrame(rows_of(2)).with_columns(
        pl.col("at").dt.replace_time_zone(None).dt.cast_time_unit("ns")
    )
    naive.write_parquet(folder / "a.parquet", row_group_size=1)
    return ParquetFiles(f"{folder}/*.parquet")


def delta(folder: Path) -> Any:
    write_deltalake(folder / "their.delta", rows_of(2), mode="overwrite")
    return DeltaRows(f"{folder}/their.delta")


def unevenly_described_delta(folder: Path) -> Any:
    """Half of the files come from a writer that kept no least and greatest time of them."""
    uri, rows = folder / "their.delta", rows_of(2)
    write_deltalake(uri, rows.slice(0, 4), configuration={"delta.dataSkippingStatsColumns": "plane"})
    DeltaTable(uri).alter.set_table_properties({"delta.dataSkippingStatsColumns": "at"})
    write_deltalake(uri, rows.slice(4), mode="append")
    return DeltaRows(f"{uri}")


def iceberg(folder: Path) -> Any:
    from pyiceberg.catalog import load_catalog

    catalog = {
        "type": "sql",
        "uri": f"sqlite:///{folder}/catalog.db",
        "warehouse": f"file://{folder}/lake",
    }
    opened = load_catalog("default", **catalog)
    opened.create_namespace("lake")
    opened.create_table("lake.flights", rows_of(2).schema).append(rows_of(2))
    return IcebergRows("lake.flights", catalog)


def sqlite(folder: Path) -> Any:
    with sqlite3.connect(folder / "flights.db") as database:
        database.execute("CREATE TABLE flights (plane TEXT, at TEXT, delay REAL, seq INTEGER)")
        for number, row in enumerate(rows_of(2).to_pylist()):
            values = (row["plane"], row["at"].isoformat(), row["delay"], number)
            database.execute("INSERT INTO flights VALUES (?, ?, ?, ?)", values)
    return SqlTable(f"sqlite:///{folder}/flights.db", "flights", "seq")


def duckdb(folder: Path) -> Any:
    rows = rows_of(2)
    with pytest.importorskip("duckdb").connect(str(folder / "flights.duckdb")) as database:
        database.register("given", rows)
        database.execute("CREATE TABLE flights AS SELECT *, row_number() OVER () AS seq FROM given")
    return SqlTable(f"duckdb:///{folder}/flights.duckdb", "flights", "seq")


@pytest.mark.parametrize(
    "reader", [csv, parquet, naive_parquet, delta, unevenly_described_delta, iceberg, sqlite, duckdb]
)
def test_a_range_is_loaded_once_and_the_position_stays(
    tmp_path: Path, store: ObjectStore, reader: Any
) -> None:
    zone = {"timezone": "UTC"} if reader is naive_parquet else {}
    table = table_of(reader(tmp_path), store, **zone)
    between = {"start": START + timedelta(days=3), "end": START + timedelta(days=6, hours=12)}
    first = load_range(table, no_secrets, **between)
    assert (first.rows, first.known, first.backfill) == (3, 0, (between["start"], between["end"]))
    assert first.first == START + timedelta(days=3, hours=12)
    assert table.state().position == {":backfill": None}
    again = load_range(table, no_secrets, **between)
    assert (again.rows, again.known) == (0, 3)
    rest = table.load(no_secrets)
    assert rest is not None
    assert (rest.rows, rest.known) == (DAYS - 3, 3)
    position = table.state().position
    whole = load_range(table, no_secrets, start=START, end=START + timedelta(days=DAYS))
    assert (whole.rows, whole.known) == (0, DAYS)
    assert table.state().position == position
    assert table.load(no_secrets) is None
    assert delays(table) == [2.0] * DAYS
    total = table.state().loads[-1].total
    assert total is not None
    assert total.rows == DAYS


def test_of_corrected_rows_the_last_counts_whatever_was_read_before(
    tmp_path: Path, store: ObjectStore
) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01T00:00Z,1\nN2,2013-01-01T00:00Z,1\n")
    table = table_of(CsvFiles(f"{tmp_path}/*.csv"), store)
    table.load(no_secrets)
    (tmp_path / "b.csv").write_text(HEADER + "N1,2013-01-01T00:00Z,2\n")
    table.load(no_secrets)
    assert sorted(delays(table)) == [1.0, 2.0]
    between = {"start": START, "end": START + timedelta(days=1)}
    assert load_range(table, no_secrets, **between).rows == 0
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01T00:00Z,1\nN2,2013-01-01T00:00Z,5\n")
    assert load_range(table, no_secrets, **between).rows == 1
    assert sorted(delays(table)) == [2.0, 5.0]


def test_a_range_of_many_rows_is_loaded_in_steps_and_a_killed_one_goes_on(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfills, "STEP_ROWS", 3)
    table = table_of(parquet(tmp_path), store)
    between = {"start": START, "end": START + timedelta(days=DAYS)}

    class KilledError(BaseException):
        pass

    commits: list[int] = []
    original = SourceTable.commit

    def commit(of: SourceTable, load: Any) -> None:
        if len(commits) == 2:
            raise KilledError
        commits.append(load.number)
        original(of, load)

    with monkeypatch.context() as patched:
        patched.setattr(SourceTable, "commit", commit)
        with pytest.raises(KilledError):
            load_range(table, no_secrets, **between)
    done = len(delays(table))
    assert 2 <= done <= 6
    rest = load_range(table_of(table.source.reads, store), no_secrets, **between)
    assert (rest.rows, rest.known) == (DAYS - done, 0)
    assert delays(table) == [2.0] * DAYS
    assert table.state().position == {":backfill": None}


def test_rows_that_do_not_fit_are_kept_aside_once(tmp_path: Path, store: ObjectStore) -> None:
    (tmp_path / "a.csv").write_text(
        HEADER
        + "N1,2013-01-01T00:00Z,1\nN2,2013-01-01T00:00Z,late\nN3,soon,late\nN4,2013-01-09T00:00Z,late\n"
    )
    table = table_of(CsvFiles(f"{tmp_path}/*.csv"), store, bad_share=0.5)
    between = {"start": START, "end": START + timedelta(days=1)}
    assert [load_range(table, no_secrets, **between).rejected for _ in range(2)] == [1, 0]
    assert table.rejected.read().num_rows == 1
    strict = table_of(CsvFiles(f"{tmp_path}/*.csv"), store)
    with pytest.raises(UnexpectedRows, match="1 of 1 rows do not fit"):
        load_range(strict, no_secrets, start=START + timedelta(days=8), end=START + timedelta(days=9))


def test_what_cannot_be_loaded_again_is_refused(tmp_path: Path, store: ObjectStore) -> None:
    with pytest.raises(InvalidDefinition, match="declare `unique`"):
        load_range(table_of(csv(tmp_path), store, unique=[]), no_secrets, start=START, end=NOW)
    with pytest.raises(InvalidRows, match="must be before"):
        load_range(table_of(csv(tmp_path), store), no_secrets, start=START, end=START)
