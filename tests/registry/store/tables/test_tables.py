import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from toque.registry import InvalidInput, NotFound, ObjectStore, Table, TableSnapshot, open_store
from toque.registry.store.tables.table import table_properties
from toque.registry.store.tables.upkeep import compact_table


def rows(*values: int) -> pa.Table:
    return pa.table({"a": list(values), "day": [f"d{value % 2}" for value in values]})


def test_append_creates_then_adds_and_every_version_stays_readable(store: ObjectStore):
    table = Table(store, "predictions/m")
    assert not table.exists()
    first = table.append(rows(1, 2), partition_by=["day"])
    second = table.append(rows(3))
    assert table.exists()
    assert (first.name, second.version) == ("predictions/m", table.version())
    assert sorted(table.read()["a"].to_pylist()) == [1, 2, 3]
    assert sorted(table.read(version=first.version)["a"].to_pylist()) == [1, 2]
    assert table.snapshot() == second
    assert str(second) == f"predictions/m@{second.version}"


def test_writers_that_create_a_table_at_one_time_all_have_it(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    for attempt in range(20):
        table, begin = Table(store, f"t{attempt}"), threading.Barrier(4)

        def create(value: int, table: Table = table, begin: threading.Barrier = begin) -> None:
            begin.wait()
            table.create(rows(value).schema)
            table.append(rows(value))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(create, range(4)))
        assert sorted(table.read()["a"].to_pylist()) == [0, 1, 2, 3]


def test_read_takes_columns_and_filters(store: ObjectStore):
    table = Table(store, "t")
    table.append(rows(1, 2, 3), partition_by=["day"])
    assert table.read(columns=["a"], where=[("day", "=", "d1"), ("a", ">", 1)]).to_pydict() == {"a": [3]}
    assert table.read(where=pc.field("a") == 2).to_pydict() == {"a": [2], "day": ["d0"]}
    assert table.schema().names == ["a", "day"]


def test_head_and_batches_are_pieces_of_what_read_gives(store: ObjectStore):
    table = Table(store, "t")
    first = table.append(rows(1, 2, 3))
    table.append(rows(4, 5))
    whole = table.read()
    assert table.head(2) == whole.slice(0, 2)
    assert table.head(9) == whole
    assert table.head(9, version=first.version).num_rows == 3
    assert pa.concat_tables(table.batches()) == whole
    assert pa.concat_tables(table.batches(columns=["a", "absent"])) == whole.select(["a"])


def test_partitions_may_have_any_name(tmp_path: Path):
    table = Table(open_store(f"file://{tmp_path}/a b%20c"), "t")
    data = pa.table({"a": range(6), "k": ["a b", "x/y", "100%", "é", "%2F", None]})
    table.append(data, partition_by=["k"])
    assert table.read().sort_by("a") == data
    assert pa.concat_tables(table.batches()).sort_by("a") == data


def test_a_transaction_is_applied_once(store: ObjectStore):
    table = Table(store, "t")
    assert table.transaction("w") is None
    table.append(rows(1), transactions={"w": 1})
    again = table.append(rows(1), transactions={"w": 1})
    assert table.read()["a"].to_pylist() == [1]
    assert again == table.snapshot()
    table.append(rows(2), transactions={"w": 2, "v": 1})
    assert (table.transaction("w"), table.transaction("v"), table.transaction("x")) == (2, 1, None)


def test_metadata_is_kept_with_its_version(store: ObjectStore):
    table = Table(store, "t")
    first = table.append(rows(1), metadata={"entities": "trips@3", "ü": "1"})
    second = table.append(rows(2))
    assert table.metadata(first.version) == {"entities": "trips@3", "ü": "1"}
    assert table.metadata(second.version) == {}


def test_overwrite_replaces_rows_and_schema(store: ObjectStore):
    table = Table(store, "t")
    first = table.append(rows(1))
    table.overwrite(pa.table({"b": ["x"]}), metadata={"why": "new"})
    assert table.read().to_pydict() == {"b": ["x"]}
    assert table.read(version=first.version)["a"].to_pylist() == [1]
    assert table.metadata() == {"why": "new"}


def test_overwrite_creates_too(store: ObjectStore):
    Table(store, "t").overwrite(rows(1), partition_by=["day"])
    assert Table(store, "t").read()["a"].to_pylist() == [1]


def test_times_come_back_as_they_were(store: ObjectStore):
    at = datetime(2013, 7, 1, 12, 0, 0, 123456, tzinfo=UTC)
    table = Table(store, "t")
    table.append(pa.table({"at": pa.array([at], pa.timestamp("us", "UTC"))}))
    assert table.schema().field("at").type == pa.timestamp("us", "UTC")
    assert table.read()["at"].to_pylist() == [at]


def test_naive_times_are_refused(folder_store: ObjectStore):
    naive = pa.table({"at": pa.array([0], pa.timestamp("us"))})
    for write in (Table(folder_store, "t").append, Table(folder_store, "t").overwrite):
        with pytest.raises(InvalidInput, match="'at'"):
            write(naive)
    assert not Table(folder_store, "t").exists()


def test_columns_that_do_not_fit_are_refused_unless_merged(folder_store: ObjectStore):
    table = Table(folder_store, "t")
    table.append(rows(1))
    with pytest.raises(InvalidInput, match="do not fit"):
        table.append(pa.table({"a": [2], "day": ["d"], "new": [1.5]}))
    table.append(pa.table({"a": [2], "day": ["d"], "new": [1.5]}), merge_schema=True)
    assert sorted(table.read()["new"].to_pylist(), key=str) == [1.5, None]


def test_absent_tables_and_versions_are_not_found(store: ObjectStore):
    table = Table(store, "nothing")
    for read in (table.read, table.version, table.schema, table.metadata):
        with pytest.raises(NotFound, match="nothing"):
            read()
    table.append(rows(1))
    for version in (7, -1):
        with pytest.raises(NotFound, match=str(version)):
            table.read(version=version)


@pytest.mark.parametrize("name", ["", "../t", "a//b", "/a", "a/", "a b"])
def test_names_that_are_paths_in_disguise_are_refused(folder_store: ObjectStore, name: str):
    with pytest.raises(InvalidInput):
        Table(folder_store, name)


def test_one_table_may_lie_below_the_name_of_another(folder_store: ObjectStore):
    Table(folder_store, "a").append(rows(1))
    Table(folder_store, "a/b").append(rows(2))
    assert Table(folder_store, "a").read()["a"].to_pylist() == [1]


def test_a_snapshot_is_a_frozen_value():
    assert TableSnapshot(name="t", version=1) == TableSnapshot.model_validate({"name": "t", "version": 1})
    assert len({TableSnapshot(name="t", version=1), TableSnapshot(name="t", version=1)}) == 1


def _append(url: str, writer: int) -> None:
    table = Table(open_store(url), "shared")
    for number in range(3):
        for _ in range(2):  # the second is a retry that has to change nothing
            table.append(pa.table({"id": [writer * 100 + number]}), transactions={f"w{writer}": number})


def test_processes_append_at_once_exactly_once(processes: ForkServerContext, store_url: str):
    with ProcessPoolExecutor(3, mp_context=processes) as pool:
        for future in [pool.submit(_append, store_url, writer) for writer in range(3)]:
            future.result()
    found = sorted(Table(open_store(store_url), "shared").read()["id"].to_pylist())
    assert found == sorted(writer * 100 + number for writer in range(3) for number in range(3))


def _append_the_same(url: str) -> None:
    Table(open_store(url), "raced").append(pa.table({"id": [1]}), transactions={"w": 1})


def test_the_same_transaction_from_many_processes_is_applied_once(
    processes: ForkServerContext, store_url: str
):
    with ProcessPoolExecutor(3, mp_context=processes) as pool:
        for future in [pool.submit(_append_the_same, store_url) for _ in range(6)]:
            future.result()
    assert Table(open_store(store_url), "raced").read()["id"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("unit", "zone"), [("s", "UTC"), ("ms", "UTC"), ("ns", "UTC"), ("us", "Europe/Berlin")]
)
def test_times_of_any_unit_and_timezone_are_read_again_as_microseconds_in_utc(
    store: ObjectStore, unit: str, zone: str
):
    at = datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)
    table = Table(store, "t")
    data = pa.table({"at": pa.array([at, None], pa.timestamp(unit, zone))})
    table.append(data)
    table.append(data)
    assert table.read()["at"].to_pylist() == [at, None] * 2
    table.overwrite(data)
    assert table.read()["at"].type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            pa.array([1_700_000_000_000_000_001], pa.timestamp("ns", "UTC")),
            r"'at' is timestamp\[ns.* round them",
        ),
        (pa.array([0], pa.timestamp("us")), r"'at' is timestamp\[us\] without a timezone"),
        (pa.array([[0]], pa.list_(pa.timestamp("ns", "UTC"))), r"'at' has times of type timestamp\[ns"),
    ],
)
def test_times_that_would_lose_something_are_refused_before_anything_is_written(
    store: ObjectStore, column: pa.Array, said: str
):
    table = Table(store, "t")
    for write in (table.append, table.overwrite):
        with pytest.raises(InvalidInput, match=said):
            write(pa.table({"at": column}))
    assert not table.exists()


def test_a_log_is_summed_up_every_ten_commits_so_that_opening_it_stays_cheap(tmp_path: Path):
    log = Table(open_store(f"file://{tmp_path}"), "predictions/late")
    for number in range(12):
        log.append(pa.table({"n": [number]}), transactions={"drain": number + 1})
    kept = sorted(path.name for path in tmp_path.rglob("*.checkpoint.parquet"))
    assert [int(name.partition(".")[0]) for name in kept] == [9]
    assert len(log.read()) == 12
    assert log.transaction("drain") == 12


def test_compaction_gives_a_table_of_an_earlier_release_the_properties_of_today(tmp_path: Path):
    log = Table(open_store(f"file://{tmp_path}"), "labels")
    earlier = {"delta.logRetentionDuration": "interval 36500 days", "delta.dataSkippingStatsColumns": "n"}
    DeltaTable.create(log.uri, pa.schema([("n", pa.int64())]), configuration=earlier)
    log.append(pa.table({"n": [1]}))
    for _ in range(2):
        compact_table(log)
        assert log.open().metadata().configuration == earlier | table_properties("labels")
    assert log.version() == 2  # the properties are one commit, once
    assert table_properties("labels")["delta.deletedFileRetentionDuration"] == "interval 7 days"
    assert table_properties("training/late")["delta.deletedFileRetentionDuration"] == "interval 36500 days"
