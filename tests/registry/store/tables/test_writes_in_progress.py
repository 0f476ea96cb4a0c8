"""Files of a write in progress are never taken for dead, however long it takes; those of a killed writer go in the end."""

from __future__ import annotations

import os
import time
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from toque.registry import open_store
from toque.registry.store import Table, remove_rows
from toque.registry.store.tables.history import FilesInProgress
from toque.registry.store.tables.parts import append_with_parts, write_part
from toque.registry.store.tables.upkeep import drop_days

GONE, OTHER = "user-1234", "user-12345"
HOUR_S = 3_600
any_age = pytest.mark.parametrize("hours", [0, 2, 30, 6 * 24])


class Person:
    """Rows whose `who` is the person."""

    def columns(self, schema: pa.Schema) -> list[str]:
        return [name for name in schema.names if name == "who"]

    def mask(self, rows: pa.Table) -> pa.Array:
        return pc.equal(rows.column("who"), GONE).combine_chunks()

    def mentions(self, text: str) -> bool:
        return GONE in text and OTHER not in text


def people(*names: str) -> pa.Table:
    return pa.table({"who": list(names)})


def aged(table: Table, path: str, hours: float) -> None:
    file = Path(table.uri.removeprefix("file://"), path)
    then = time.time() - hours * HOUR_S
    os.utime(file, (then, then))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = Table(open_store(f"file://{tmp_path}"), "training/set")
    table.append(people(GONE, OTHER))
    return table


@any_age
def test_a_removal_of_rows_leaves_the_finished_files_of_a_build(table: Table, hours: int) -> None:
    parts = [write_part(table, people(name)) for name in (OTHER, "zoe")]
    for part in parts:
        aged(table, part.path, hours)
    remove_rows(table, Person())
    append_with_parts(table, parts, people(OTHER).schema, transactions={"build": 1})
    assert sorted(table.read()["who"].to_pylist()) == [OTHER, OTHER, "zoe"]


@any_age
def test_files_in_progress_with_such_rows_are_reported_once_all_else_is_gone(
    table: Table, hours: int
) -> None:
    part = write_part(table, people(GONE, "zoe"))
    aged(table, part.path, hours)
    with pytest.raises(FilesInProgress, match=part.path):
        remove_rows(table, Person())
    assert table.read()["who"].to_pylist() == [OTHER]
    append_with_parts(table, [part], people(OTHER).schema, transactions={"build": 1})
    remove_rows(table, Person())
    assert sorted(table.read()["who"].to_pylist()) == [OTHER, "zoe"]


def test_what_a_killed_build_left_goes_in_the_end(table: Table) -> None:
    part = write_part(table, people(GONE))
    with pytest.raises(FilesInProgress):
        remove_rows(table, Person())
    aged(table, part.path, 8 * 24)
    remove_rows(table, Person())
    assert not Path(table.uri.removeprefix("file://"), part.path).exists()


@any_age
def test_retention_leaves_files_of_a_load_of_expired_days(tmp_path: Path, hours: int) -> None:
    table = Table(open_store(f"file://{tmp_path}"), "things")
    days = pa.table({"who": [OTHER, OTHER], "day": ["2026-01-01", "2026-03-01"]})
    table.append(days, partition_by=["day"])
    late = pa.table({"who": [OTHER], "day": ["2026-01-02"]})
    part = write_part(table, late, partition={"day": "2026-01-02"})
    aged(table, part.path, hours)
    drop_days(table, before=date(2026, 2, 1))
    append_with_parts(table, [part], days.schema, transactions={"load": 1})
    assert sorted(table.read()["day"].to_pylist()) == ["2026-01-02", "2026-03-01"]
