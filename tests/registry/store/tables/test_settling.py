"""What a table in a folder was given is on the disk when its verb returns, and before anything that it replaces goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from toque.registry import Table, Unavailable, open_store
from toque.registry.store import append_with_parts, overwrite_with_parts, remove_rows, write_part
from toque.registry.store.tables import files
from toque.registry.store.tables.files import settle
from toque.registry.store.tables.upkeep import compact_days, compact_table, drop_days

ROWS = pa.table({"n": [1, 2], "day": ["2026-01-01", "2026-01-02"]})
Verb = Callable[[Table], Any]


class Disk:
    """Files of the tables in a folder that had been synced at the last call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.synced: set[str] = set()

    def sync(self, _descriptor: int) -> None:
        self.synced = self.files()

    def files(self) -> set[str]:
        return {str(path) for path in self._folder.rglob("*") if path.is_file() and ".delta" in str(path)}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path)
    monkeypatch.setattr(files, "_sync_file_system", disk.sync)
    return disk


def compacted_day(table: Table) -> None:
    assert compact_days(table, ["2026-01-01"], at_least=2)[1] == 1


def replaced_by_parts(table: Table) -> None:
    flat = Table(table.store, "flat")
    flat.create(ROWS.schema)
    overwrite_with_parts(flat, [write_part(flat, ROWS)], ROWS.schema)


def added_by_parts(table: Table) -> None:
    flat = Table(table.store, "flat")
    flat.create(ROWS.schema)
    append_with_parts(flat, [write_part(flat, ROWS)], ROWS.schema, transactions={"a": 1})


VERBS: dict[str, Verb] = {
    "append": lambda table: table.append(ROWS),
    "append to a new table": lambda table: Table(table.store, "new/deep").append(ROWS, partition_by=["day"]),
    "overwrite": lambda table: table.overwrite(ROWS, partition_by=["day"]),
    "replace by parts": replaced_by_parts,
    "add parts": added_by_parts,
    "compact": compact_table,
    "compact a day": compacted_day,
    "drop days": lambda table: drop_days(table, before=date(2026, 1, 2)),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_all_files_of_a_verb_are_on_the_disk_when_it_returns(tmp_path: Path, disk: Disk, verb: Verb):
    table = Table(open_store(f"file://{tmp_path}/store"), "rows")
    for _ in range(3):
        table.append(ROWS, partition_by=["day"])
    before = disk.files()
    verb(table)
    assert disk.files() != before
    assert disk.files() <= disk.synced


class Everything:
    """A choice of all rows of one day."""

    def columns(self, schema: pa.Schema) -> list[str]:
        return [name for name in schema.names if name == "n"]

    def mask(self, rows: pa.Table) -> pa.Array:
        return pa.array([number == 1 for number in rows.column("n").to_pylist()])

    def mentions(self, _text: str) -> bool:
        return False


def test_a_summary_of_a_stream_is_on_the_disk_before_the_commits_that_it_sums_up_go(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
):
    store = open_store(f"file://{tmp_path}/store")
    table = Table(store, "features/default/streams/clicks")
    for _ in range(3):
        table.append(ROWS)
    table.open().create_checkpoint()
    for number in range(2):
        store.delete(f"tables/{table.name}.delta/_delta_log/{number:020d}.json")
    delete = type(store).delete

    def checked(self: Any, key: str) -> None:
        if "_delta_log/" in key:
            assert {path for path in disk.files() if path.endswith(".checkpoint.parquet")} <= disk.synced
        delete(self, key)

    monkeypatch.setattr(type(store), "delete", checked)
    remove_rows(table, Everything())
    assert table.read()["n"].to_pylist() == [2] * 3


def test_a_disk_that_fails_is_an_error_and_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = Table(open_store(f"file://{tmp_path}/store"), "rows")

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(files, "_sync_file_system", fail)
    with pytest.raises(Unavailable, match="could not be written to the disk"):
        table.append(ROWS)


def test_without_a_call_for_one_file_system_all_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, calls = open_store(f"file://{tmp_path}/a%20store"), []
    store.put("a", b"")
    monkeypatch.setattr(os, "sync", lambda: calls.append(1))
    settle(store)
    assert not calls
    monkeypatch.setattr(files, "_syncfs", lambda: None)
    settle(store)
    assert calls == [1]
