"""Sources in databases: PostgreSQL, which is killed under load, DuckDB, and Iceberg tables with their catalog."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.featurestore.conftest import NOW
from tests.featurestore.sources.postgres import PostgresServer, postgres_folder
from tests.waiting import until
from toque.featurestore import Field, Float64, InvalidDefinition, String, UnreadableSource
from toque.featurestore.sources import BatchSource, IcebergRows, SourceTable, SqlTable
from toque.featurestore.sources.backfill import load_range
from toque.registry import ObjectStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    programs = postgres_folder()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def table_of(reads: Any, store: ObjectStore, **options: Any) -> SourceTable:
    schema = [Field("plane", String), Field("delay", Float64)]
    source = BatchSource("flights", reads, schema, "at", **options)
    return SourceTable(source, store, "default", actor="tests", clock=lambda: NOW)


def no_secrets(name: str) -> str:
    raise AssertionError(name)


def delays(table: SourceTable) -> list[float]:
    return sorted(table.rows()["delay"].to_pylist())


@pytest.mark.parametrize(
    ("kind", "marks"),
    [
        ("bigint", ("1", "2", "3")),
        ("timestamptz", ("'2013-01-01Z'", "'2013-01-02 10:00+02'", "'2013-01-03Z'")),
        ("date", ("'2013-01-01'", "'2013-01-02'", "'2013-01-03'")),
        ("text", ("'a'", "'b'", "'c'")),
    ],
)
def test_postgresql_is_read_on_by_a_watermark_of_any_type(
    postgres: PostgresServer, store: ObjectStore, kind: str, marks: tuple[str, ...]
) -> None:
    def insert(number: int) -> str:
        return (
            f"INSERT INTO flown_{kind} VALUES ('N{number}', '2013-01-01 12:00+02', {number}, {marks[number]})"  # noqa: S608
        )

    postgres.execute(
        f"CREATE TABLE flown_{kind} (plane text, at timestamptz, delay float8, mark {kind})",
        insert(0),
        insert(1),
    )
    table = table_of(SqlTable(postgres.url, f"flown_{kind}", "mark"), store)
    assert table.load(no_secrets).rows == 2  # type: ignore[union-attr]
    assert table.load(no_secrets) is None
    postgres.execute(insert(2))
    assert table.load(no_secrets).rows == 1  # type: ignore[union-attr]
    assert delays(table) == [0.0, 1.0, 2.0]
    assert set(table.rows()["event_timestamp"].to_pylist()) == {datetime(2013, 1, 1, 10, tzinfo=UTC)}
    postgres.execute(f"DELETE FROM flown_{kind}")  # noqa: S608  # as above
    with pytest.raises(UnreadableSource, match="no row is left"):
        table.load(no_secrets)


def test_each_row_is_loaded_once_from_a_server_that_is_killed_under_load(
    postgres: PostgresServer, store: ObjectStore
) -> None:
    postgres.execute("CREATE TABLE live (plane text, at timestamptz, delay float8, seq bigint)")
    table = table_of(SqlTable(postgres.url, "live", "seq"), store)
    written: list[int] = []
    done = threading.Event()

    def kill() -> None:
        """Kill the server twice, each time after some more rows, and start it again."""
        for _ in range(2):
            grown = len(written) + 20
            until(lambda: len(written) >= grown)  # noqa: B023 - it waits here
            postgres.kill()
            postgres.start()
        done.set()

    threads = [threading.Thread(target=_write, args=(postgres, written, done)), threading.Thread(target=kill)]
    for each in threads:
        each.start()
    deadline, refused = time.monotonic() + 240, 0
    while not (done.is_set() and len(delays(table)) == len(written)):
        assert time.monotonic() < deadline
        try:
            table.load(no_secrets)
        except UnreadableSource:
            refused += 1
    for each in threads:
        each.join()
    assert refused
    assert delays(table) == [float(each) for each in written]
    assert table.load(no_secrets) is None


def _write(postgres: PostgresServer, written: list[int], done: threading.Event) -> None:
    """Insert rows one by one; one whose commit was not confirmed is inserted again if it is not there."""
    number = 0
    while not done.is_set():
        row = f"'N1', now(), {number}, {number} WHERE NOT EXISTS (SELECT FROM live WHERE seq = {number})"
        try:
            postgres.execute(f"INSERT INTO live SELECT {row}")  # a test's own numbers
        except Exception:  # noqa: BLE001  # the server is down
            time.sleep(0.02)
        else:
            written.append(number)
            number += 1


def test_duckdb_is_read_through_the_driver_of_its_wheel(tmp_path: Path, store: ObjectStore) -> None:
    duckdb = pytest.importorskip("duckdb")
    file = tmp_path / "flights.duckdb"
    table = table_of(SqlTable(f"duckdb:///{file}", "flights", "seq"), store)
    with pytest.raises(UnreadableSource, match="does not exist"):
        table.load(no_secrets)
    assert not file.exists()

    def insert(values: str) -> None:
        with duckdb.connect(str(file)) as database:
            database.execute(
                'CREATE TABLE IF NOT EXISTS flights (plane text, "at" timestamptz, delay double, seq int)'
            )
            database.execute(f"INSERT INTO flights VALUES {values}")  # noqa: S608  # as above

    insert("('N1', '2013-01-01 00:00+00', 1, 1), ('N2', '2013-01-01 00:00+00', 2, 2)")
    assert table.load(no_secrets).rows == 2  # type: ignore[union-attr]
    insert("('N3', '2013-01-02 00:00+00', 3, 3)")
    assert table.load(no_secrets).rows == 1  # type: ignore[union-attr]
    assert table.load(no_secrets) is None
    assert delays(table) == [1.0, 2.0, 3.0]


@pytest.fixture
def catalog(tmp_path: Path) -> dict[str, str]:
    pytest.importorskip("pyiceberg")
    place = {"uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/lake"}
    return {"name": "theirs", "type": "sql"} | place


def flights(*delays: float, day: int = 1) -> pa.Table:
    at = [datetime(2013, 1, day, tzinfo=UTC) + timedelta(minutes=n) for n in range(len(delays))]
    return pa.table(
        {
            "plane": [f"N{each:g}" for each in delays],
            "at": pa.array(at, pa.timestamp("us", "UTC")),
            "delay": list(delays),
        }
    )


def iceberg_table(catalog: dict[str, str]) -> Any:
    from pyiceberg.catalog import load_catalog

    opened = load_catalog(**catalog)
    opened.create_namespace_if_not_exists("lake")
    return opened.create_table_if_not_exists("lake.flights", flights(0).schema)


def test_an_iceberg_table_is_read_on_by_its_snapshots(catalog: dict[str, str], store: ObjectStore) -> None:
    reads = IcebergRows("lake.flights", catalog | {"uri": "$CATALOG"})
    secrets = {"CATALOG": catalog["uri"]}
    assert reads.secret_names == ["CATALOG"]
    table = table_of(reads, store)
    with pytest.raises(UnreadableSource, match=r"lake\.flights"):
        table.load(secrets.__getitem__)
    theirs = iceberg_table(catalog)
    assert table.load(secrets.__getitem__) is None
    theirs.append(flights(1, 2))
    assert table.load(secrets.__getitem__).rows == 2  # type: ignore[union-attr]
    theirs.append(flights(3))
    theirs.append(flights(4, 5, day=2))
    found = table.load(secrets.__getitem__)
    assert found is not None
    assert found.rows == 3
    assert found.read[0].endswith(f"to {theirs.refresh().metadata.current_snapshot_id}")
    assert table.load(secrets.__getitem__) is None
    assert delays(table) == [1.0, 2.0, 3.0, 4.0, 5.0]
    theirs.delete("delay = 5.0")  # of a file of two rows: the other one is written anew
    theirs.delete("delay = 3.0")  # of a file of its own
    theirs.append(flights(6))
    found = table.load(secrets.__getitem__)
    assert found is not None
    assert (found.rows, found.removed) == (1, 2)
    assert delays(table) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    theirs.overwrite(flights(6, 7))
    found = table.load(secrets.__getitem__)
    assert found is not None
    assert (found.rows, found.removed) == (1, 3)  # one that was written anew is no new one
    assert delays(table) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def readings(*delays: float) -> pa.Table:
    """Rows of one plane at one time, as corrections of each other."""
    rows = flights(*delays)
    names, first = pa.array(["N1"] * len(delays)), pa.repeat(rows["at"][0], len(delays))
    return pa.table({"plane": names, "at": first, "delay": rows["delay"]})


def test_of_corrections_in_several_iceberg_snapshots_the_last_counts(
    catalog: dict[str, str], store: ObjectStore
) -> None:
    table = table_of(IcebergRows("lake.flights", catalog), store, unique=["plane"])
    theirs = iceberg_table(catalog)
    for last in (8, 16):  # the first load reads all files, the second those that are new
        for each in range(8):
            theirs.append(readings(last - 7 + each))
        table.load(no_secrets)
        assert delays(table) == [last]
    for each in (3, 1, 2):
        theirs.append(readings(each))
    day = NOW.replace(year=2013, month=1, day=1, hour=0, minute=0)
    load_range(table, no_secrets, start=day, end=day + timedelta(days=1))
    assert delays(table) == [2.0]


def test_an_iceberg_table_is_read_file_by_file(
    catalog: dict[str, str], store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyiceberg")
    from pyiceberg.io.pyarrow import ArrowScan

    files: list[int] = []
    read = ArrowScan.to_record_batches

    def counted(scan: ArrowScan, tasks: Any) -> Any:
        files.append(len(list(tasks)))
        return read(scan, tasks)

    monkeypatch.setattr(ArrowScan, "to_record_batches", counted)
    theirs = iceberg_table(catalog)
    for day in range(1, 6):
        theirs.append(flights(day, day=day))
    table_of(IcebergRows("lake.flights", catalog), store).load(no_secrets)
    assert files == [1] * 5


def test_an_iceberg_table_that_was_rolled_back_or_made_anew_is_refused(
    catalog: dict[str, str], store: ObjectStore
) -> None:
    table = table_of(IcebergRows("lake.flights", catalog), store)
    theirs = iceberg_table(catalog)
    theirs.append(flights(1))
    first = theirs.metadata.current_snapshot_id
    theirs.append(flights(2))
    assert table.load(no_secrets).rows == 2  # type: ignore[union-attr]
    theirs.manage_snapshots().rollback_to_snapshot(first).commit()
    with pytest.raises(UnreadableSource, match="rolled back or made anew"):
        table.load(no_secrets)
    theirs.append(flights(3))
    with pytest.raises(UnreadableSource, match="rolled back or made anew"):
        table.load(no_secrets)
    assert delays(table) == [1.0, 2.0]


def test_what_an_iceberg_declaration_must_not_hold() -> None:
    with pytest.raises(InvalidDefinition, match="name one, as s3"):
        IcebergRows("lake.flights", {"s3.secret-access-key": "hunter2"})
    with pytest.raises(InvalidDefinition, match="no namespace"):
        IcebergRows("flights", {})
