"""Loads of batch sources: each row once, bad ones aside, whatever changes or is killed in between."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.featurestore.conftest import NOW
from toque.featurestore import (
    Decimal,
    Field,
    Float64,
    InRange,
    Int64,
    InvalidDefinition,
    List,
    Map,
    NullShare,
    String,
    UnexpectedRows,
    UnreadableSource,
    Vector,
)
from toque.featurestore.applied.deserialize import batch_source
from toque.featurestore.sources import (
    BatchSource,
    CsvFiles,
    DeltaRows,
    ParquetFiles,
    SourceTable,
    SqlTable,
    load_log,
)
from toque.featurestore.sources import loading as loads
from toque.featurestore.sources.backfill import load_range
from toque.registry import ObjectStore, open_store

HEADER = "tail,at,delay\n"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


def declared(reads: Any, **options: Any) -> BatchSource:
    schema = [Field("plane", String), Field("delay", Float64)]
    return BatchSource(
        "flights", reads, schema, "at", **({"columns": {"plane": "tail"}, "timezone": "UTC"} | options)
    )


def table_of(source: BatchSource, store: ObjectStore) -> SourceTable:
    return SourceTable(source, store, "default", actor="tests", clock=lambda: NOW)


def no_secrets(name: str) -> str:
    raise AssertionError(name)


def delays(table: SourceTable, **options: Any) -> list[float | None]:
    return sorted(table.rows(**options)["delay"].to_pylist(), key=str)


def test_new_files_are_loaded_once(tmp_path: Path, store: ObjectStore) -> None:
    table = table_of(declared(CsvFiles(f"{tmp_path}/in/**/*.csv")), store)
    with pytest.raises(UnreadableSource, match="cannot be listed"):
        table.load(no_secrets)
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    assert table.load(no_secrets) is None
    (folder / "a.csv").write_text(HEADER + "N1,2013-01-01 10:00,3\nN2,2013-01-01T11:00:00Z,\n")
    (folder / "a.txt").write_text("no rows")
    first = table.load(no_secrets)
    assert first is not None
    assert (first.number, first.rows, first.rejected) == (1, 2, 0)
    assert (first.first, first.last) == (
        datetime(2013, 1, 1, 10, tzinfo=UTC),
        datetime(2013, 1, 1, 11, tzinfo=UTC),
    )
    assert table.load(no_secrets) is None
    (folder / "b.csv").write_text(HEADER + "N3,2013-01-02,5\n")
    second = table_of(table.source, store).load(no_secrets)
    assert second is not None
    assert (second.number, second.rows, [Path(each).name for each in second.read]) == (2, 1, ["b.csv"])
    assert delays(table) == [3.0, 5.0, None]
    assert delays(table, after=1) == [5.0]
    assert delays(table, end=datetime(2013, 1, 1, 10, 30, tzinfo=UTC)) == [3.0]
    assert table.rows()["known_at"].unique().to_pylist() == [NOW]


def test_lines_added_to_a_file_are_read_on_and_a_half_written_one_waits(
    tmp_path: Path, store: ObjectStore
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(HEADER + "N1,2013-01-01,1\nN1,2013-01-0")
    table = table_of(declared(CsvFiles(str(file))), store)
    assert table.load(no_secrets).rows == 1  # type: ignore[union-attr]
    assert table.load(no_secrets) is None
    with file.open("a") as opened:
        opened.write("2,2\nN1,2013-01-03,3\n")
    assert table.load(no_secrets).rows == 2  # type: ignore[union-attr]
    assert delays(table) == [1.0, 2.0, 3.0]
    file.write_text(HEADER + "N1,2013-01-01,9\nN1,2013-01-02,2\nN1,2013-01-03,3\nN1,2013-01-04,4\n")
    with pytest.raises(UnreadableSource, match="what was read of it changed"):
        table.load(no_secrets)
    assert delays(table) == [1.0, 2.0, 3.0]


def test_parquet_of_any_time_unit_is_read_and_a_torn_file_left_for_later(
    tmp_path: Path, store: ObjectStore
) -> None:
    at = pl.Series("at", [datetime(2013, 1, 1, 12)])  # noqa: DTZ001  # naive, on purpose
    at = at.dt.cast_time_unit("ns")
    frame = pl.DataFrame({"tail": ["N1"], "at": at, "delay": [7], "other": [1]})
    frame.write_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-9])
    table = table_of(declared(ParquetFiles(f"{tmp_path}/*.parquet"), timezone="America/New_York"), store)
    found = table.load(no_secrets)
    assert found is not None
    assert found.rows == 1
    assert list(found.unreadable) == [f"{tmp_path}/b.parquet"]
    assert table.rows()["event_timestamp"].to_pylist() == [datetime(2013, 1, 1, 17, tzinfo=UTC)]
    with pytest.raises(UnreadableSource, match="not a whole Parquet file"):
        table.load(no_secrets)
    (tmp_path / "b.parquet").write_bytes(whole)
    assert table.load(no_secrets).rows == 1  # type: ignore[union-attr]


def test_rows_that_do_not_fit_are_kept_aside_with_reasons(tmp_path: Path, store: ObjectStore) -> None:
    (tmp_path / "a.csv").write_text(
        HEADER
        + "N1,2013-01-01,1\n"
        + "N2,2013-01-01,late\n"
        + "N3,yesterday,3\n"
        + ",2013-01-01,4\n"
        + "N5,2013-01-01,99999\n"
        + "N6,2013-01-01\n"
        + "N7,,7\n"
    )
    reads = CsvFiles(f"{tmp_path}/*.csv")
    source = declared(reads, unique=["plane"], expectations=[InRange("delay", most=2000)], bad_share=0.9)
    table = table_of(source, store)
    found = table.load(no_secrets)
    assert found is not None
    assert (found.rows, found.rejected) == (1, 6)
    assert found.reasons == {
        "column 'delay' is not Float64": 1,
        "column 'at' is not a time": 1,
        "column 'tail' has no value": 1,
        "column 'delay' is outside [None, 2000]": 1,
        "the line has more or fewer values than there are columns": 1,
        "column 'at' has no value": 1,
    }
    aside = table.rejected.read().to_pylist()
    (late,) = [json.loads(each["row"]) for each in aside if "Float64" in each["reason"]]
    assert late == {"at": "2013-01-01", "tail": "N2", "delay": "late"}
    assert {each["load"] for each in aside} == {1}


def test_a_source_that_changed_is_refused_whole(tmp_path: Path, store: ObjectStore) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01,1\nN2,2013-01-01,late\n")
    table = table_of(declared(CsvFiles(f"{tmp_path}/*.csv")), store)
    with pytest.raises(UnexpectedRows, match=r"1 of 2 rows do not fit.*'delay' is not Float64"):
        table.load(no_secrets)
    assert table.state().number == 0
    assert delays(table) == []
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01,\n" * 20)
    strict = table_of(declared(CsvFiles(f"{tmp_path}/*.csv"), expectations=[NullShare("delay", 0.5)]), store)
    with pytest.raises(UnexpectedRows, match="null in 100"):
        strict.load(no_secrets)
    (tmp_path / "a.csv").write_text("tail,when\nN1,2013\n")
    with pytest.raises(UnreadableSource, match="has no column 'at'"):
        table.load(no_secrets)
    naive = table_of(declared(CsvFiles(f"{tmp_path}/*.csv"), timezone=""), store)
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01,\n")
    with pytest.raises(UnreadableSource, match="say which one they are in"):
        naive.load(no_secrets)


def test_a_row_that_comes_again_is_stored_once_and_a_corrected_one_counts(
    tmp_path: Path, store: ObjectStore
) -> None:
    table = table_of(declared(CsvFiles(f"{tmp_path}/*.csv"), unique=["plane"]), store)
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01,1\nN2,2013-01-01,2\nN2,2013-01-01,2\n")
    assert table.load(no_secrets).rows == 2  # type: ignore[union-attr]
    (tmp_path / "b.csv").write_text(HEADER + "N1,2013-01-01,1\nN2,2013-01-01,20\nN3,2013-01-01,\n")
    found = table.load(no_secrets)
    assert found is not None
    assert (found.rows, found.known) == (2, 1)
    assert delays(table) == [1.0, 20.0, None]
    (tmp_path / "c.csv").write_text(HEADER + "N3,2013-01-01,\n")
    again = table.load(no_secrets)
    assert again is not None
    assert (again.number, again.rows, again.known) == (3, 0, 1)


@pytest.mark.parametrize("part_rows", [1, 1 << 20], ids=["files of their own", "one file"])
def test_of_versions_of_a_row_in_one_load_the_last_one_counts(
    part_rows: int, tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_log, "PART_ROWS", part_rows)
    table = table_of(declared(CsvFiles(f"{tmp_path}/*.csv"), unique=["plane"]), store)

    def load(name: str, *versions: int) -> list[float | None]:
        for number, delay in enumerate(versions):
            (tmp_path / f"{name}-{number}.csv").write_text(HEADER + f"N1,2013-01-01,{delay}\n")
        assert table.load(no_secrets) is not None
        return delays(table)

    assert load("a", 1, 2, 1) == [1.0]
    assert load("b", 2, 1) == [1.0]  # it changed, and changed back to what is stored
    assert load("c", 2, 1, 3) == [3.0]
    assert load("d", 3, 4) == [4.0]


def test_the_last_version_of_a_row_counts_after_files_of_a_load_were_merged(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_log, "PART_ROWS", 1)
    monkeypatch.setattr(loads, "SMALL_FILES", 3)
    table = table_of(declared(CsvFiles(f"{tmp_path}/*.csv"), unique=["plane"]), store)
    for number, others in enumerate((0, 50, 500)):  # files are merged by size
        rows = "".join(f"M{other},2013-01-01,0\n" for other in range(others))
        (tmp_path / f"{number}.csv").write_text(HEADER + rows + f"N1,2013-01-01,{number + 1}\n")
    table.load(no_secrets)
    assert len(DeltaTable(table.table.uri).file_uris()) == 1
    assert max(delay for delay in delays(table) if delay is not None) == 3.0


@pytest.mark.parametrize("mark", ["integer", "time"])
def test_a_database_is_read_on_by_its_watermark(tmp_path: Path, store: ObjectStore, mark: str) -> None:
    values = [1, 2, 3] if mark == "integer" else [f"2013-01-0{day} 00:00:00" for day in (1, 2, 3)]
    database = sqlite3.connect(tmp_path / "flights.db")
    database.execute(f"CREATE TABLE flights (tail TEXT, at TEXT, delay REAL, seq {mark})")
    rows = [(f"N{n}", "2013-01-01T00:00:00+00:00", float(n), values[n]) for n in range(2)]
    database.executemany("INSERT INTO flights VALUES (?, ?, ?, ?)", rows)
    database.commit()
    source = declared(SqlTable("$WAREHOUSE", "(SELECT * FROM flights)", "seq"))
    table = table_of(source, store)
    secrets = {"WAREHOUSE": f"sqlite:///{tmp_path}/flights.db"}
    assert table.load(secrets.__getitem__).rows == 2  # type: ignore[union-attr]
    assert table.load(secrets.__getitem__) is None
    database.execute("INSERT INTO flights VALUES ('N9', '2013-01-02T00:00:00+02:00', 9, ?)", (values[2],))
    database.commit()
    assert table.load(secrets.__getitem__).rows == 1  # type: ignore[union-attr]
    assert delays(table) == [0.0, 1.0, 9.0]
    assert max(table.rows()["event_timestamp"].to_pylist()) == datetime(2013, 1, 1, 22, tzinfo=UTC)
    database.execute("DELETE FROM flights WHERE tail = 'N9'")
    database.commit()
    with pytest.raises(UnreadableSource, match="went back"):
        table.load(secrets.__getitem__)


def test_a_delta_table_is_read_on_by_its_versions(tmp_path: Path, store: ObjectStore) -> None:
    uri = f"{tmp_path}/their.delta"

    def write(tail: str, delay: float) -> None:
        at = pa.array([NOW], pa.timestamp("us", "UTC"))
        write_deltalake(uri, pa.table({"tail": [tail], "at": at, "delay": [delay]}), mode="append")

    write("N1", 1.0)
    table = table_of(declared(DeltaRows(uri)), store)
    assert table.load(no_secrets).rows == 1  # type: ignore[union-attr]
    write("N2", 2.0)
    write("N3", 3.0)
    DeltaTable(uri).optimize.compact()
    assert table.load(no_secrets).rows == 2  # type: ignore[union-attr]
    assert delays(table) == [1.0, 2.0, 3.0]


def test_of_the_commits_of_a_delta_table_that_one_load_reads_the_last_counts(
    tmp_path: Path, store: ObjectStore
) -> None:
    uri, at = f"{tmp_path}/their.delta", pa.array([NOW], pa.timestamp("us", "UTC"))
    table = table_of(declared(DeltaRows(uri), unique=["plane"]), store)
    for last in (7, 15):
        for delay in range(last - 7, last + 1):
            rows = pa.table({"tail": ["N1"], "at": at, "delay": [float(delay)]})
            write_deltalake(uri, rows, mode="append")
        table.load(no_secrets)
        assert delays(table) == [float(last)]


def test_a_load_that_was_killed_after_its_commit_is_recorded_by_the_next(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(declared(CsvFiles(f"{tmp_path}/*.csv")), store)
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01,1\n")

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    for name in ("append_with_parts", "_record_committed"):
        with monkeypatch.context() as patched:
            original = getattr(loads, name, None) or getattr(SourceTable, name)
            calls: list[int] = []

            def once(
                *given: Any,
                calls: list[int] = calls,
                original: Any = original,
                name: str = name,
                **named: Any,
            ) -> Any:
                calls.append(1)
                if name == "append_with_parts" or len(calls) == 2:
                    raise Killed
                return original(*given, **named)

            patched.setattr(loads if name == "append_with_parts" else SourceTable, name, once)
            with pytest.raises(Killed):
                table.load(no_secrets)
        assert table_of(table.source, store).state().number == 0
    assert delays(table) == [1.0]  # committed, and not recorded
    assert table_of(table.source, store).load(no_secrets) is None
    assert table.state().loads[-1].rows == 1
    assert delays(table) == [1.0]


def test_of_two_loads_at_once_one_counts(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = declared(CsvFiles(f"{tmp_path}/*.csv"))
    one, other = table_of(source, store), table_of(source, store)
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01,1\n")
    original = loads.append_with_parts

    def overtaken(*given: Any, **named: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(loads, "append_with_parts", original)
            other.load(no_secrets)
        return original(*given, **named)

    monkeypatch.setattr(loads, "append_with_parts", overtaken)
    one.load(no_secrets)
    assert delays(one) == [1.0]
    assert one.state().number == 1


def test_many_small_loads_leave_few_files_and_a_new_column_is_null_before(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loads, "SMALL_FILES", 4)
    source = declared(CsvFiles(f"{tmp_path}/*.csv"))
    table = table_of(source, store)
    for number in range(9):
        at = datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=number)
        (tmp_path / f"{number}.csv").write_text(
            f"tail,at,delay,seats\nN1,{at.isoformat()},{number},{number}\n"
        )
        table.load(no_secrets)
    assert len(DeltaTable(table.table.uri).file_uris()) < 5
    assert delays(table) == [float(n) for n in range(9)]
    wider = (
        declared(source.reads, schema=None)
        if False
        else BatchSource(
            "flights", source.reads, [*source.schema, Field("seats", Int64)], "at", columns={"plane": "tail"}
        )
    )
    (tmp_path / "9.csv").write_text("tail,at,delay,seats\nN1,2013-02-01T00:00Z,9,150\n")
    table_of(wider, store).load(no_secrets)
    assert table_of(wider, store).rows()["seats"].to_pylist().count(None) == 9


def test_vectors_lists_maps_and_decimals_are_loaded_and_bad_ones_kept_aside(
    tmp_path: Path, store: ObjectStore
) -> None:
    shares = pa.array([[("b", 1.0), ("a", 0.5)], None, []], pa.map_(pa.string(), pa.float64()))
    given = pa.table(
        {
            "at": [NOW - timedelta(hours=i) for i in range(3)],
            "v": [[1.0, 2.0], [3.0], None],
            "words": [["x"], [], None],
            "shares": shares,
            "price": ["1.50", "2", "3"],
        }
    )
    pq.write_table(given, tmp_path / "a.parquet")
    schema = [
        Field("v", Vector(2)),
        Field("words", List(String)),
        Field("shares", Map(Float64)),
        Field("price", Decimal(9, 2)),
    ]
    table = table_of(
        BatchSource("typed", ParquetFiles(f"{tmp_path}/*.parquet"), schema, "at", bad_share=1), store
    )
    loaded = table.load(no_secrets)
    assert loaded is not None
    assert (loaded.rows, loaded.rejected) == (2, 1)
    rows = table.rows().sort_by("event_timestamp").select(["v", "words", "shares"]).to_pylist()
    assert rows == [
        {"v": None, "words": None, "shares": []},
        {"v": [1.0, 2.0], "words": ["x"], "shares": [("a", 0.5), ("b", 1.0)]},
    ]


def undated(file: Path) -> BatchSource:
    schema = [Field("row", Int64), Field("delay", Float64)]
    return BatchSource("rows", CsvFiles(str(file)), schema, row_number="row", unique=["row"], bad_share=0.5)


def test_rows_without_time_and_key_are_numbered_and_happen_when_they_are_loaded(
    tmp_path: Path, store: ObjectStore
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("delay\n5\nmuch\n7\n8\n")
    table = table_of(undated(file), store)
    assert table.load(no_secrets).rows == 3  # type: ignore[union-attr]
    assert table.load(no_secrets) is None
    rows = table.rows()
    assert dict(zip(rows["row"].to_pylist(), rows["delay"].to_pylist(), strict=True)) == {
        0: 5.0,
        2: 7.0,
        3: 8.0,
    }
    times = rows["event_timestamp"].to_pylist()
    assert all(NOW - timedelta(seconds=1) < at <= NOW for at in times)
    assert len(set(times)) == 3
    assert times != sorted(times)  # not the order of the file
    with file.open("a") as opened:
        opened.write("9\n")
    later = SourceTable(table.source, store, "default", actor="tests", clock=lambda: NOW + timedelta(hours=1))
    assert later.load(no_secrets).rows == 1  # type: ignore[union-attr]
    last = later.rows(after=1, columns=["delay"]).to_pylist()
    assert [(row["row"], row["delay"]) for row in last] == [(4, 9.0)]
    assert last[0]["event_timestamp"] > max(times)
    with pytest.raises(InvalidDefinition, match="gives its rows their times when it loads them"):
        load_range(later, no_secrets, start=NOW, end=NOW + timedelta(days=1))


def test_a_load_that_was_killed_numbers_the_same_rows_again(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("delay\n5\n6\n")
    table = table_of(undated(file), store)
    with monkeypatch.context() as patched:
        patched.setattr(loads, "append_with_parts", _killed)
        with pytest.raises(KeyboardInterrupt):
            table.load(no_secrets)
    assert table_of(table.source, store).load(no_secrets).rows == 2  # type: ignore[union-attr]
    with monkeypatch.context() as patched, file.open("a") as opened:
        opened.write("7\n")
        opened.flush()
        patched.setattr(SourceTable, "_record_committed", _killed)  # after the commit, before the journal
        with pytest.raises(KeyboardInterrupt):
            table_of(table.source, store).load(no_secrets)
    with file.open("a") as opened:
        opened.write("8\n")
    table_of(table.source, store).load(no_secrets)
    rows = table_of(table.source, store).rows()
    assert sorted(zip(rows["row"].to_pylist(), rows["delay"].to_pylist(), strict=True)) == [
        (0, 5.0), (1, 6.0), (2, 7.0), (3, 8.0)
    ]  # fmt: skip


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_number_of_rows_is_an_integer_of_the_schema_and_survives_its_description() -> None:
    source = undated(Path("a.csv"))
    assert batch_source(json.loads(json.dumps(source.describe()))) == source
    assert (
        "row_number" not in declared(CsvFiles("a.csv")).semantics()
    )  # definitions of before keep their digest
    with pytest.raises(InvalidDefinition, match="row_number='delay' must be an Int64 field"):
        BatchSource("rows", CsvFiles("a.csv"), [Field("delay", Float64)], row_number="delay")


def test_one_column_may_say_when_rows_happened_and_when_they_became_known(
    tmp_path: Path, store: ObjectStore
) -> None:
    (tmp_path / "a.csv").write_text(HEADER + "N1,2013-01-01T10:00:00Z,1\nN2,yesterday,2\n")
    table = table_of(declared(CsvFiles(f"{tmp_path}/*.csv"), known_at="at", bad_share=0.5), store)
    load = table.load(no_secrets)
    assert load is not None
    assert (load.rows, load.reasons) == (1, {"column 'at' is not a time": 1})
    rows = table.rows()
    assert rows["known_at"].equals(rows["event_timestamp"])
    assert json.loads(table.rejected.read()["row"][0].as_py())["at"] == "yesterday"
