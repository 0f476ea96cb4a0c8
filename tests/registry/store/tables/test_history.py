"""Rows are removed from a table's whole history: its snapshots stay, its files and its log forget."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tests.conditions.faults import FragileStore, KilledError
from toque.registry import InvalidInput, ObjectStore, open_store
from toque.registry.store import Table, find_rows, remove_rows, table_names
from toque.registry.store.tables.upkeep import trim_log

GONE = "person-7f3a9c21"
T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Person:
    """Rows whose `who` is the person."""

    def columns(self, schema: pa.Schema) -> list[str]:
        return [name for name in schema.names if name == "who"]

    def mask(self, rows: pa.Table) -> Any:
        return pc.equal(rows.column("who").cast(pa.string()), GONE)

    def mentions(self, text: str) -> bool:
        return GONE in text


def rows(*names: str, day: str = "2026-01-01") -> pa.Table:
    at = pa.array([T0] * len(names), pa.timestamp("us", "UTC"))
    return pa.table({"at": at, "who": list(names), "x": [1.5] * len(names), "day": [day] * len(names)})


def filled(store: ObjectStore) -> Table:
    """A table with the person in all versions after the first, compacted, deleted from, and with a checkpoint."""
    table = Table(store, "things/log")
    table.append(rows("anna", GONE), partition_by=["day"], transactions={"w": 1}, metadata={"kept": "yes"})
    table.append(rows(GONE, day="2026-01-02"))
    table.append(rows("zoe", day="2026-01-02"))
    opened(table).optimize.compact()
    opened(table).delete(f"who = '{GONE}' AND day = '2026-01-01'")
    opened(table).create_checkpoint()
    table.append(rows("max", GONE, GONE), transactions={"w": 2})
    return table


def opened(table: Table) -> DeltaTable:
    return DeltaTable(table.uri, storage_options=table.storage_options or None)


def names_in(table: Table, version: int | None = None) -> list[str]:
    return sorted(table.read(version=version).column("who").to_pylist())


def assert_gone(store: ObjectStore) -> None:
    """No object of the tables has the person in its bytes, nor in a decompressed column."""
    for key in store.list("tables/"):
        data = store.get(key)
        assert GONE.encode() not in data, key
        if key.endswith(".parquet"):
            assert GONE not in str(pq.read_table(io.BytesIO(data)).to_pylist()), key


@pytest.mark.parametrize("bounds", [(), ("at",), ("at", "x")])
@pytest.mark.parametrize("partitions", [(), ("day",)])
@pytest.mark.parametrize(
    "where",
    [
        pc.field("who") != "nobody",
        pc.field("x") < 2.0,
        pc.field("at") >= pa.scalar(T0, pa.timestamp("us", "UTC")),
        (pc.field("day") == "2026-01-01") & (pc.field("x") > 1.0),
    ],
)
def test_a_filter_still_finds_the_others_of_a_file_that_held_the_person(
    store: ObjectStore, bounds: tuple[str, ...], partitions: tuple[str, ...], where: pc.Expression
) -> None:
    table = Table(store, "things/log")
    table.append(rows("anna", GONE, f"{GONE}0"), partition_by=partitions, bounds=bounds)
    table.append(rows("zoe"))
    remove_rows(table, Person())
    assert sorted(table.read(where=where)["who"].to_pylist()) == ["anna", f"{GONE}0", "zoe"]
    assert sorted(table.dataset().to_table(filter=where)["who"].to_pylist()) == ["anna", f"{GONE}0", "zoe"]
    assert table.read(where=where & (pc.field("day") == "2026-01-02")).num_rows == 0


def test_every_version_stays_readable_without_the_rows(store: ObjectStore):
    table = filled(store)
    before = {version: names_in(table, version) for version in range(table.version() + 1)}
    found = find_rows(table, Person())
    assert sum(each.rows for each in found) == 5
    assert {span for each in found for span in each.versions} == {(1, 4), (2, 3), (4, 6), (6, 6)}
    remove_rows(table, Person())
    assert_gone(store)
    for version, names in before.items():
        assert names_in(table, version) == [name for name in names if name != GONE]
    assert names_in(table) == ["anna", "max", "zoe"]
    assert (table.transaction("w"), table.metadata(1)) == (2, {"kept": "yes"})
    assert find_rows(table, Person()) == []


def test_it_changes_nothing_where_there_is_nothing_to_remove(folder_store: ObjectStore):
    table = Table(folder_store, "things/log")
    table.append(rows("anna"), partition_by=["day"])
    before = {key: folder_store.get(key) for key in folder_store.list("tables/")}
    remove_rows(table, Person())
    assert {key: folder_store.get(key) for key in folder_store.list("tables/")} == before
    assert table_names(folder_store) == ["things/log"]


def test_a_partition_of_the_person_goes_with_its_folder_name(folder_store: ObjectStore):
    table = Table(folder_store, "by-person")
    table.append(rows("anna", GONE), partition_by=["who"])
    remove_rows(table, Person())
    assert_gone(folder_store)
    assert not [key for key in folder_store.list("tables/") if GONE in key]
    assert names_in(table) == ["anna"]


def test_a_follower_of_the_table_sees_the_removal(folder_store: ObjectStore):
    table = filled(folder_store)
    follower = opened(table)
    remove_rows(table, Person())
    table.append(rows("late"))
    follower.update_incremental()
    assert sorted(follower.to_pyarrow_table().column("who").to_pylist()) == ["anna", "late", "max", "zoe"]


def test_a_kill_before_any_of_its_writes_is_made_good_by_the_next_run(tmp_path: Path):
    template = tmp_path / "template"
    table = filled(open_store(f"file://{template}"))
    before = {version: names_in(table, version) for version in range(table.version() + 1)}
    fatal = 0
    while True:
        fatal += 1
        root = tmp_path / f"try-{fatal}"
        shutil.copytree(template, root)
        fragile, store = FragileStore(root), open_store(f"file://{root}")
        fragile.fatal = fatal
        try:
            remove_rows(Table(fragile, "things/log"), Person())
        except KilledError:
            seen = names_in(Table(store, "things/log"))  # between, no reader sees a row twice
            assert [name for name in seen if name != GONE] == ["anna", "max", "zoe"], fatal
        else:
            break
        remove_rows(Table(store, "things/log"), Person())
        assert_gone(store)
        for version, names in before.items():
            assert names_in(Table(store, "things/log"), version) == [n for n in names if n != GONE], fatal
        shutil.rmtree(root)
    assert fatal > 12


STREAM = "features/default/streams/clicks"


def cut_off(store: ObjectStore) -> Table:
    """A stream's table whose log begins at a checkpoint, and which still has files that nothing names."""
    table = Table(store, STREAM)
    for number in range(12):
        table.append(rows("anna" if number % 3 else GONE).drop_columns(["day"]), transactions={"w": number})
    opened(table).optimize.compact()
    table.append(rows("zoe", GONE).drop_columns(["day"]), transactions={"w": 12})
    for path in Path(table.uri.removeprefix("file://")).glob("_delta_log/*"):
        old = path.stat().st_mtime - 86_400
        os.utime(path, (old, old))
    opened(table).create_checkpoint()
    trim_log(table)
    table.append(rows("max", GONE).drop_columns(["day"]), transactions={"w": 13})
    return table


def log_of(store: ObjectStore) -> list[str]:
    found = store.list(f"tables/{STREAM}.delta/_delta_log/")
    return [key.rpartition("/")[2] for key in found if key.endswith(".json")]


def test_a_log_is_trimmed_to_a_checkpoint_and_keeps_rows_and_transactions(folder_store: ObjectStore):
    table = cut_off(folder_store)
    assert log_of(folder_store) == [f"{number:020d}.json" for number in (14, 15)]
    assert names_in(table) == sorted(["anna"] * 8 + [GONE] * 6 + ["max", "zoe"])
    assert table.transaction("w") == 13


def test_rows_are_removed_from_a_stream_whose_log_was_trimmed(folder_store: ObjectStore):
    table = cut_off(folder_store)
    assert sum(each.rows for each in find_rows(table, Person())) > 5
    remove_rows(table, Person())
    assert_gone(folder_store)
    assert names_in(table) == ["anna"] * 8 + ["max", "zoe"]
    assert table.transaction("w") == 13
    table.append(rows("late").drop_columns(["day"]), transactions={"w": 14})
    remove_rows(table, Person())
    assert names_in(table) == ["anna"] * 8 + ["late", "max", "zoe"]


def test_a_kill_while_a_trimmed_log_is_forgotten_is_made_good_by_the_next_run(tmp_path: Path):
    template = tmp_path / "template"
    cut_off(open_store(f"file://{template}"))
    for fatal in itertools.count(1):
        root = tmp_path / f"try-{fatal}"
        shutil.copytree(template, root)
        fragile, store = FragileStore(root), open_store(f"file://{root}")
        fragile.fatal = fatal
        try:
            remove_rows(Table(fragile, STREAM), Person())
        except KilledError:
            seen = names_in(Table(store, STREAM))
            assert [name for name in seen if name != GONE] == ["anna"] * 8 + ["max", "zoe"], fatal
        else:
            break
        remove_rows(Table(store, STREAM), Person())
        assert_gone(store)
        assert names_in(Table(store, STREAM)) == ["anna"] * 8 + ["max", "zoe"], fatal
        shutil.rmtree(root)
    assert fatal > 8


def test_rows_that_arrive_meanwhile_go_as_well(folder_store: ObjectStore, monkeypatch: pytest.MonkeyPatch):
    table = filled(folder_store)
    create = type(folder_store).create

    def late(self: Any, key: str, data: bytes) -> None:
        monkeypatch.undo()
        Table(folder_store, "things/log").append(rows("late", GONE))
        create(self, key, data)

    monkeypatch.setattr(type(folder_store), "create", late)
    remove_rows(table, Person())
    assert_gone(folder_store)
    assert names_in(table) == ["anna", "late", "max", "zoe"]


def test_a_log_without_its_beginning_is_refused(folder_store: ObjectStore):
    table = filled(folder_store)
    folder_store.delete("tables/things/log.delta/_delta_log/00000000000000000000.json")
    with pytest.raises(InvalidInput, match="gaps"):
        remove_rows(table, Person())
