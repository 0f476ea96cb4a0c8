"""Sources as they are in life: rows go, files are still being copied, one of them is bad, and clocks are put back."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake import Field as DeltaField
from pyarrow import fs

from tests.conditions.clocks import Change, any_change
from tests.featurestore.conftest import NOW
from toque.featurestore import (
    BatchSource,
    CsvFiles,
    DeltaRows,
    Field,
    Float64,
    Freshness,
    InRange,
    NullShare,
    ParquetFiles,
    SqlTable,
    String,
    UnexpectedRows,
    UnreadableSource,
)
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.sources import SourceTable, files, load_log, loading
from toque.registry import ObjectStore, open_store
from toque.registry.journal import Journal

MOMENT = datetime(2024, 5, 1, 10, tzinfo=UTC)
TIMES = pa.timestamp("us", "UTC")


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    folder = tmp_path / "landing"
    folder.mkdir()
    return folder


def table_of(reads: Any, store: ObjectStore, **options: Any) -> SourceTable:
    schema = [Field("user", String), Field("v", Float64)]
    source = BatchSource("tx", reads, schema, **{"timestamp": "at", "timezone": "UTC"} | options)
    return SourceTable(source, store, "default", actor="tests", clock=lambda: NOW)


def no_secrets(name: str) -> str:
    raise AssertionError(name)


def stored(table: SourceTable) -> list[tuple[str, float]]:
    return sorted(zip(table.rows()["user"].to_pylist(), table.rows()["v"].to_pylist(), strict=True))


def rows(**values: float) -> pa.Table:
    at = pa.array([MOMENT] * len(values), TIMES)
    return pa.table({"user": list(values), "v": list(values.values()), "at": at})


def delete(uri: str) -> None:
    DeltaTable(uri).delete("user = 'a'")


def update(uri: str) -> None:
    DeltaTable(uri).update(updates={"v": "10.0"}, predicate="user = 'a'")


def merge(uri: str) -> None:
    new = rows(a=10.0, e=5.0)
    merged = DeltaTable(uri).merge(new, "t.user = s.user", source_alias="s", target_alias="t")
    merged.when_matched_update_all().when_not_matched_insert_all().execute()


def overwrite(uri: str) -> None:
    write_deltalake(uri, rows(a=10.0, b=2.0), mode="overwrite")


STAY = {"b": 2.0, "c": 3.0, "d": 4.0}
CHANGES: dict[str, tuple[Callable[[str], None], dict[str, float], int]] = {
    "DELETE": (delete, {"a": 1.0} | STAY, 1),
    "UPDATE": (update, {"a": 10.0} | STAY, 1),
    "MERGE": (merge, {"a": 10.0, "e": 5.0} | STAY, 1),
    "overwrite": (overwrite, {"a": 10.0} | STAY, 2),
}


@pytest.mark.parametrize("follows", [True, False], ids=["change data", "plain"])
@pytest.mark.parametrize(("change", "wanted", "removed"), CHANGES.values(), ids=CHANGES.keys())
def test_rows_that_change_or_go_in_a_delta_table_stop_no_load(
    tmp_path: Path,
    store: ObjectStore,
    change: Callable[[str], None],
    wanted: dict[str, float],
    removed: int,
    follows: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    uri = f"{tmp_path}/their.delta"
    feed = {"delta.enableChangeDataFeed": "true"} if follows else {}
    write_deltalake(uri, rows(a=1.0, b=2.0, c=3.0), configuration=feed)
    table = table_of(DeltaRows(uri), store, unique=["user"])
    table.load(no_secrets)
    change(uri)
    write_deltalake(uri, rows(d=4.0), mode="append")
    load = table.load(no_secrets)
    assert load is not None
    assert dict(stored(table)) == wanted
    assert load.removed == removed
    assert table.load(no_secrets) is None


def test_a_row_that_a_delete_only_wrote_anew_is_no_new_one(tmp_path: Path, store: ObjectStore) -> None:
    uri = f"{tmp_path}/their.delta"
    write_deltalake(uri, pa.concat_tables([rows(a=1.0), rows(b=2.0), rows(b=2.0)]))
    table = table_of(DeltaRows(uri), store)  # nothing names a row here
    table.load(no_secrets)
    DeltaTable(uri).delete("user = 'a'")
    load = table.load(no_secrets)
    assert load is not None
    assert (load.rows, load.removed) == (0, 1)
    assert stored(table) == [("a", 1.0), ("b", 2.0), ("b", 2.0)]


@pytest.mark.parametrize("versions", [1, 2, 3, 5], ids=["fewer", "as many", "one more", "more"])
def test_a_delta_table_that_was_made_anew_is_refused(
    tmp_path: Path, store: ObjectStore, versions: int
) -> None:
    uri = f"{tmp_path}/their.delta"
    for values in (rows(a=1.0), rows(b=2.0)):
        write_deltalake(uri, values, mode="append")
    table = table_of(DeltaRows(uri), store)
    table.load(no_secrets)
    shutil.rmtree(uri)
    for _ in range(versions):
        write_deltalake(uri, rows(new=3.0), mode="append")
    with pytest.raises(UnreadableSource, match=r"was made anew; load it under another name"):
        table.load(no_secrets)
    assert stored(table) == [("a", 1.0), ("b", 2.0)]


@pytest.mark.parametrize("forth", [False, True], ids=["back", "back and forth"])
def test_a_delta_table_that_was_rolled_back_is_refused(
    tmp_path: Path,
    store: ObjectStore,
    forth: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    uri = f"{tmp_path}/their.delta"
    for values in (rows(a=1.0), rows(b=2.0)):
        write_deltalake(uri, values, mode="append")
    table = table_of(DeltaRows(uri), store)
    table.load(no_secrets)
    for version in (0, 1) if forth else (0,):
        DeltaTable(uri).restore(version)
    write_deltalake(uri, rows(c=3.0), mode="append")
    for _ in range(2):
        with pytest.raises(
            UnreadableSource, match=r"rolled back by its version 2.*load it under another name"
        ):
            table.load(no_secrets)
    assert stored(table) == [("a", 1.0), ("b", 2.0)]


def add_column(uri: str) -> None:
    DeltaTable(uri).alter.add_columns([DeltaField("w", "double")])


def set_property(uri: str) -> None:
    DeltaTable(uri).alter.set_table_properties({"delta.logRetentionDuration": "interval 90 days"})


def append_wider(uri: str) -> None:
    wider = rows(c=3.0).append_column("w", pa.array([1.0]))
    write_deltalake(uri, wider, mode="append", schema_mode="merge")


def compact(uri: str) -> None:
    DeltaTable(uri).optimize.compact()


def vacuum(uri: str) -> None:
    DeltaTable(uri).vacuum(dry_run=False)


HOUSEKEEPING = [add_column, set_property, append_wider, compact, vacuum]


@pytest.mark.parametrize("follows", [True, False], ids=["change data", "plain"])
@pytest.mark.parametrize("change", HOUSEKEEPING, ids=lambda each: each.__name__)
def test_what_their_owner_does_to_a_delta_table_stops_no_load(
    tmp_path: Path,
    store: ObjectStore,
    change: Callable[[str], None],
    follows: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    uri = f"{tmp_path}/their.delta"
    feed = {"delta.enableChangeDataFeed": "true"} if follows else {}
    write_deltalake(uri, rows(a=1.0), configuration=feed)
    write_deltalake(uri, rows(b=2.0), mode="append")
    table = table_of(DeltaRows(uri), store)
    table.load(no_secrets)
    change(uri)
    table.load(no_secrets)
    write_deltalake(uri, rows(d=4.0), mode="append", schema_mode="merge")
    table.load(no_secrets)
    came = [("c", 3.0)] if change is append_wider else []
    assert stored(table) == [("a", 1.0), ("b", 2.0), *came, ("d", 4.0)]


def sql(tmp_path: Path) -> tuple[sqlite3.Connection, SqlTable]:
    database = sqlite3.connect(tmp_path / "their.db")
    database.execute("CREATE TABLE tx (user TEXT, v REAL, at TEXT, updated INTEGER)")
    return database, SqlTable(f"sqlite:///{tmp_path}/their.db", "tx", "updated")


def insert(database: sqlite3.Connection, user: str, v: Any, updated: int) -> None:
    database.execute("INSERT INTO tx VALUES (?, ?, '2024-05-01T10:00:00Z', ?)", (user, v, updated))
    database.commit()


def test_rows_that_come_with_the_last_watermark_are_loaded_once(tmp_path: Path, store: ObjectStore) -> None:
    database, reads = sql(tmp_path)
    table = table_of(reads, store, unique=["user"])
    wanted = []
    for number, updated in enumerate([100, 100, 100, 101, 101, 103]):
        insert(database, f"u{number}", float(number), updated)
        wanted.append((f"u{number}", float(number)))
        assert table.load(no_secrets).rows == 1  # type: ignore[union-attr]
        assert stored(table) == wanted
        assert table.load(no_secrets) is None
    insert(database, "late", 7.0, 103)
    insert(database, "new", 8.0, 104)
    assert table.load(no_secrets).rows == 2  # type: ignore[union-attr]
    database.execute("UPDATE tx SET v = 80 WHERE user = 'new'")  # its watermark stays
    database.commit()
    assert table.load(no_secrets).rows == 1  # type: ignore[union-attr]
    assert dict(stored(table))["new"] == 80.0


def test_a_bad_row_of_the_last_watermark_is_kept_aside_once(tmp_path: Path, store: ObjectStore) -> None:
    database, reads = sql(tmp_path)
    table = table_of(reads, store, unique=["user"], bad_share=0.5)
    insert(database, "a", 1.0, 100)
    insert(database, "bad", "much", 100)
    assert table.load(no_secrets).rejected == 1  # type: ignore[union-attr]
    assert table.load(no_secrets) is None
    insert(database, "b", 2.0, 100)
    load = table.load(no_secrets)
    assert load is not None
    assert (load.rows, load.rejected) == (1, 0)
    assert table.rejected.read().num_rows == 1


def test_rows_of_the_last_watermark_that_nothing_names_are_refused_and_not_lost(
    tmp_path: Path, store: ObjectStore
) -> None:
    database, reads = sql(tmp_path)
    table = table_of(reads, store)
    insert(database, "a", 1.0, 100)
    table.load(no_secrets)
    assert table.load(no_secrets) is None
    insert(database, "b", 2.0, 100)
    with pytest.raises(UnreadableSource, match=r"1 rows have come with updated of 100.*declare `unique`"):
        table.load(no_secrets)
    named = table_of(reads, store, unique=["user"])
    named.load(no_secrets)
    assert stored(named) == [("a", 1.0), ("b", 2.0)]


@pytest.mark.parametrize(
    ("same", "went", "came"),
    [
        *((3, went, came) for went in range(3) for came in range(3)),
        *(
            (2_000, went, came) for went, came in [(0, 1), (1, 2), (2, 0)]
        ),  # the number of so many is known alone
    ],
)
def test_rows_of_the_last_watermark_that_take_the_place_of_others_are_not_passed_over(
    tmp_path: Path, store: ObjectStore, same: int, went: int, came: int
) -> None:
    database, reads = sql(tmp_path)
    table = table_of(reads, store)
    for number in range(same):
        insert(database, f"u{number}", float(number), 100)
    table.load(no_secrets)
    for number in range(went):
        database.execute("DELETE FROM tx WHERE user = ?", (f"u{number}",))
    for number in range(came):
        insert(database, f"new{number}", 9.0, 100)
    insert(database, "later", 7.0, 101)
    if came:
        with pytest.raises(UnreadableSource, match=r"rows have come with updated of 100.*declare `unique`"):
            table.load(no_secrets)
    else:
        table.load(no_secrets)
        assert ("later", 7.0) in stored(table)


def test_a_file_that_is_still_being_copied_is_read_by_the_next_load(
    landing: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(rows(x=1.0), landing / "whole")
    whole = (landing / "whole").read_bytes()
    (landing / "x.parquet").write_bytes(whole[:100])
    pq.write_table(rows(y=2.0), landing / "y.parquet")
    read = files._parquet

    def read_later(*arguments: Any) -> Any:
        (landing / "x.parquet").write_bytes(whole)  # the copy ends after the listing
        yield from read(*arguments)

    table = table_of(ParquetFiles(f"{landing}/*.parquet"), store)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_parquet", read_later)
        load = table.load(no_secrets)
    assert load is not None
    assert "still being written" in load.unreadable[f"{landing}/x.parquet"]
    assert stored(table) == [("y", 2.0)]
    table.load(no_secrets)
    assert stored(table) == [("x", 1.0), ("y", 2.0)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_that_was_changed_after_it_was_read_holds_back_no_other(
    landing: Path, store: ObjectStore, kind: str
) -> None:
    reader = {"csv": CsvFiles, "parquet": ParquetFiles}[kind]

    def write(name: str, *users: str) -> None:
        values = rows(**dict.fromkeys(users, 1.0))
        if kind == "parquet":
            pq.write_table(values, landing / f"{name}.parquet")
        else:
            lines = [f"{user},1,2024-05-01T10:00:00Z\n" for user in users]
            (landing / f"{name}.csv").write_text("user,v,at\n" + "".join(lines))

    table = table_of(reader(f"{landing}/*.{kind}"), store)
    write("a", "first")
    table.load(no_secrets)
    write("a", "other", "more")
    with pytest.raises(UnreadableSource, match="what was read of it changed"):
        table.load(no_secrets)
    write("b", "second")
    load = table.load(no_secrets)
    assert load is not None
    assert list(load.unreadable) == [f"{landing}/a.{kind}"]
    assert stored(table) == [("first", 1.0), ("second", 1.0)]


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("place", [1, 500, 999])
def test_a_file_with_a_corrected_line_is_told_wherever_that_is(
    landing: Path,
    store: ObjectStore,
    place: int,
    grown: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    lines = ["user,v,at", *(f"u{number:05},{number:05},2024-05-01T10:00:00Z" for number in range(1_000))]
    path = landing / "a.csv"
    path.write_text("\n".join(lines) + "\n")
    table = table_of(CsvFiles(f"{landing}/*.csv"), store, unique=["user"])
    table.load(no_secrets)
    lines[place] = lines[place].replace(f",{place - 1:05},", ",99999,")
    path.write_text("\n".join([*lines, "later,1,2024-05-01T10:00:00Z"] if grown else lines) + "\n")
    os.utime(path, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(UnreadableSource, match="what was read of it changed"):
            table.load(no_secrets)


QUOTED = {
    "opened": '"Bob,1,2024-05-01T10:00:00Z',
    "opened within": 'a,"1,2024-05-01T10:00:00Z',
    "opened twice": '"Bob,1,"2024-05-01T10:00:00Z',
    "opened after one": '"Bob","1,2024-05-01T10:00:00Z',
    "escaped at the end": '"Bob"",1,2024-05-01T10:00:00Z',
    "opened after a mark": '5" pipe,"1,2024-05-01T10:00:00Z',
}
CLOSED = {
    "quoted": ('"Bob",1,2024-05-01T10:00:00Z', "Bob"),
    "a delimiter": ('"Bob, A.",1,2024-05-01T10:00:00Z', "Bob, A."),
    "escaped": ('"Bob ""B"" ",1,2024-05-01T10:00:00Z', 'Bob "B" '),
    "a mark": ('5" pipe,1,2024-05-01T10:00:00Z', '5" pipe'),
    "two marks": ('5" by 6",1,2024-05-01T10:00:00Z', '5" by 6"'),
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [40, 1 << 20])
@pytest.mark.parametrize("place", [0, 50, 99])
@pytest.mark.parametrize("line", QUOTED.values(), ids=QUOTED.keys())
def test_a_quote_that_nobody_closes_takes_no_other_line(
    landing: Path,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    place: int,
    block: int,
    end: str,
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", block)
    lines = [f"u{number},1,2024-05-01T10:00:00Z" for number in range(99)]
    lines.insert(place, line)
    (landing / "a.csv").write_bytes(end.join(["user,v,at", *lines, ""]).encode())
    table = table_of(CsvFiles(f"{landing}/*.csv"), store)
    load = table.load(no_secrets)
    assert load is not None
    assert (load.rows, load.rejected) == (99, 1)
    assert table.rejected.read()["row"].to_pylist() == [line]


@pytest.mark.parametrize("block", [40, 1 << 20])
@pytest.mark.parametrize(("line", "user"), CLOSED.values(), ids=CLOSED.keys())
def test_a_line_with_quotes_is_read_as_it_is(
    landing: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, line: str, user: str, block: int
) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", block)
    (landing / "a.csv").write_text(f"user,v,at\n{line}\nu1,2,2024-05-01T10:00:00Z\n{line}\n")
    table = table_of(CsvFiles(f"{landing}/*.csv"), store)
    table.load(no_secrets)
    assert stored(table) == sorted([(user, 1.0), (user, 1.0), ("u1", 2.0)])


@pytest.mark.parametrize("value", ["9e999", "-9e999", "'text'", "x'00'"])
def test_a_watermark_beyond_which_nothing_comes_is_told_and_passes_once_it_is_corrected(
    tmp_path: Path, store: ObjectStore, value: str
) -> None:
    database, reads = sql(tmp_path)
    table = table_of(reads, store)
    insert(database, "a", 1.0, 1)
    table.load(no_secrets)
    database.execute("CREATE TABLE free AS SELECT * FROM tx")
    database.execute(f"INSERT INTO free VALUES ('odd', 1, '2024-05-01T10:00:00Z', {value})")  # noqa: S608
    database.execute("DROP TABLE tx")
    database.execute("ALTER TABLE free RENAME TO tx")
    insert(database, "b", 2.0, 2)
    if value != "-9e999":  # less than any other: it is not read, as one that came late
        for _ in range(2):
            with pytest.raises(UnreadableSource, match=r"column 'updated' is .*query in parentheses"):
                table.load(no_secrets)
        database.execute("DELETE FROM tx WHERE user = 'odd'")
        database.commit()
    table.load(no_secrets)
    assert stored(table) == [("a", 1.0), ("b", 2.0)]


@pytest.mark.parametrize("named", [True, False], ids=["named", "without time"])
@pytest.mark.parametrize("behind", [timedelta(microseconds=1), timedelta(seconds=9), timedelta(minutes=50)])
def test_a_correction_that_is_loaded_by_a_clock_behind_counts(
    landing: Path, store: ObjectStore, behind: timedelta, *, named: bool
) -> None:
    options: dict[str, Any] = {"unique": ["user"]} if named else {"timestamp": "", "timezone": "UTC"}
    table = table_of(CsvFiles(f"{landing}/*.csv"), store, **options)
    for number, clock in enumerate([NOW, NOW - behind, NOW]):
        (landing / f"{number}.csv").write_text(f"user,v,at\na,{number},2013-05-01T10:00:00Z\n")
        table._clock = lambda at=clock: at
        table.load(no_secrets)
    times = [each.at for each in table.state().loads]
    assert times == sorted(set(times))
    rows = table.rows()
    assert (rows["v"].to_pylist() if named else rows.sort_by(EVENT_TIMESTAMP)["v"].to_pylist()[-1:]) == [2.0]


def test_a_file_that_grew_under_an_earlier_release_is_read_on(landing: Path, store: ObjectStore) -> None:
    path = landing / "a.csv"
    path.write_text("user,v,at\na,1,2024-05-01T10:00:00Z\n")
    table = table_of(CsvFiles(f"{landing}/*.csv"), store)
    with pytest.MonkeyPatch.context() as patch:
        system = fs.LocalFileSystem()
        ends = partial(files._digest_of_ends, system, str(path))
        patch.setattr(files, "_digests", lambda *given: [ends(end) for end in given[2]])
        table.load(no_secrets)
    with path.open("a") as opened:
        opened.write("b,2,2024-05-01T10:00:00Z\n")
    table.load(no_secrets)
    assert stored(table) == [("a", 1.0), ("b", 2.0)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_that_goes_after_it_was_listed_holds_back_no_other(
    landing: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for user in ("gone", "stays"):
        path = landing / f"{user}.{kind}"
        if kind == "parquet":
            pq.write_table(rows(**{user: 1.0}), path)
        else:
            path.write_text(f"user,v,at\n{user},1,2024-05-01T10:00:00Z\n")
    listed = files._listed

    def rotated(reader: Any) -> Any:
        found = listed(reader)
        (landing / f"gone.{kind}").unlink()
        return found

    table = table_of({"csv": CsvFiles, "parquet": ParquetFiles}[kind](f"{landing}/*.{kind}"), store)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_listed", rotated)
        load = table.load(no_secrets)
    assert load is not None
    assert list(load.unreadable) == [f"{landing}/gone.{kind}"]
    assert stored(table) == [("stays", 1.0)]


def unnamed_files(table: SourceTable) -> set[str]:
    """List the files of a source's tables that no version names."""
    found: set[str] = set()
    for each in (table.table, table.rejected):
        root = f"tables/{each.name}.delta/"
        named = set(each.open().file_uris()) if each.exists() else set()
        stored = [
            key for key in each.store.list(root) if key.endswith(".parquet") and "_delta_log" not in key
        ]
        found |= {key for key in stored if not any(uri.endswith(key) for uri in named)}
    return found


@pytest.mark.parametrize("part_rows", [1, 1 << 20], ids=["files of their own", "one file"])
@pytest.mark.parametrize(
    "misfit", ["a row", "a file", "every file", "unreadable", "stale", "repeated", "nothing new"]
)
def test_a_load_leaves_no_file_and_no_row_where_an_erasure_cannot_reach(
    landing: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, misfit: str, part_rows: int
) -> None:
    monkeypatch.setattr(load_log, "PART_ROWS", part_rows)

    def write(name: str, values: list[str]) -> None:
        rows = "".join(
            f"{name}-{number},{value},2024-05-01T10:00:00Z\n" for number, value in enumerate(values)
        )
        (landing / f"{name}.csv").write_text("user,v,at\n" + rows)

    good, bad = [str(number) for number in range(30)], ["ssn-123"] * 30
    options: dict[str, Any] = {"unique": ["user"]}
    if misfit == "stale":
        options["expectations"] = [Freshness(timedelta(minutes=1))]
    table = table_of(CsvFiles(f"{landing}/*.csv"), store, **options)
    write("a", bad if misfit == "every file" else good)
    write(
        "b", bad if misfit in {"a file", "every file"} else [*good, *bad[:1]] if misfit == "a row" else good
    )
    if misfit == "unreadable":  # after rows of it were written
        (landing / "c.csv").write_bytes(
            b"user,v,at\n" + b"c,1,2024-05-01T10:00:00Z\n" * 30 + b"\xff,1,x\n" * 3
        )
    for _ in range(2):
        refusal = ""
        try:
            table.load(no_secrets)
        except (UnexpectedRows, UnreadableSource) as error:
            refusal = str(error)
        assert "ssn-123" not in refusal
        if misfit == "repeated":
            shutil.copy(landing / "a.csv", landing / "again.csv")
    assert unnamed_files(table) == set()
    journals = [key for key in store.list("features/") if "/tables/" not in key]
    assert not any(b"ssn-123" in store.get(key) for key in journals)


@pytest.mark.parametrize("killed_at", range(5))
def test_rejected_rows_are_aside_once_with_those_of_a_file_that_came_after_a_kill(
    landing: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    class Killed(BaseException):
        pass

    def write(name: str) -> None:
        row = ",2024-05-01T10:00:00Z\n"
        (landing / f"{name}.csv").write_text(f"user,v,at\n{name},1{row}bad-{name},much{row}")

    steps = iter(range(100))

    def killing(original: Any) -> Any:
        def step(*given: Any, **named: Any) -> Any:
            if next(steps) == killed_at:
                raise Killed
            return original(*given, **named)

        return step

    table = table_of(CsvFiles(f"{landing}/*.csv"), store, bad_share=0.9)
    write("a")
    with monkeypatch.context() as patch:
        for name in ("write_part", "append_with_parts"):
            patch.setattr(loading, name, killing(getattr(loading, name)))
        patch.setattr(Journal, "append", killing(Journal.append))
        with suppress(Killed):
            table.load(no_secrets)
    write("b")
    for _ in range(2):
        table_of(table.source.reads, store, bad_share=0.9).load(no_secrets)
    aside = sorted(json.loads(row)["user"] for row in table.rejected.read()["row"].to_pylist())
    assert (stored(table), aside) == ([("a", 1.0), ("b", 1.0)], ["bad-a", "bad-b"])
    assert sum(each.rejected for each in table.state().loads) == 2


@pytest.mark.parametrize(
    ("bad", "options"),
    [
        ("much", {}),
        ("1e9", {"expectations": [InRange("v", most=100)]}),
        ("", {"expectations": [NullShare("v", most=0.3)]}),
    ],
    ids=["not a number", "out of range", "all null"],
)
def test_one_bad_file_holds_back_no_other(
    landing: Path, store: ObjectStore, bad: str, options: dict[str, Any]
) -> None:
    def write(name: str, value: str) -> None:
        lines = [f"{name}{number},{value},2024-05-01T10:00:00Z\n" for number in range(30)]
        (landing / f"{name}.csv").write_text("user,v,at\n" + "".join(lines))

    table = table_of(CsvFiles(f"{landing}/*.csv"), store, **options)
    write("b", bad)
    with pytest.raises(UnexpectedRows):
        table.load(no_secrets)
    for number, name in enumerate("ac", 1):
        write(name, "1")
        load = table.load(no_secrets)
        assert load is not None
        assert list(load.unreadable) == [f"{landing}/b.csv"]
        assert len(stored(table)) == 30 * number
    write("b", "2")
    table.load(no_secrets)
    assert len(stored(table)) == 90


@any_change
def test_a_local_time_that_comes_twice_or_never_is_kept_aside(
    landing: Path, store: ObjectStore, change: Change
) -> None:
    lines = [
        f"{user},1,{at}\n"
        for user, at in zip("abc", (change.before, change.during, change.after), strict=True)
    ]
    (landing / "a.csv").write_text("user,v,at\n" + "".join(lines))
    share = {} if change.twice else {"bad_share": 0.5}
    table = table_of(CsvFiles(f"{landing}/*.csv"), store, timezone=change.zone, **share)
    load = table.load(no_secrets)
    assert load is not None
    twice = f"column 'at' is a local time that comes twice in {change.zone}"
    assert load.reasons == {twice if change.twice else "column 'at' is not a time": 1}
    times = dict(
        zip(table.rows()["user"].to_pylist(), table.rows()["event_timestamp"].to_pylist(), strict=True)
    )
    for user, at in (("a", change.before), ("c", change.after)):
        assert times[user] == datetime.fromisoformat(at).replace(tzinfo=ZoneInfo(change.zone))


@any_change
def test_both_times_of_a_repeated_hour_are_told_by_their_offset(
    landing: Path, store: ObjectStore, change: Change
) -> None:
    moments = change.moments()
    lines = [f"u{number},1,{moment.isoformat()}\n" for number, moment in enumerate(moments)]
    (landing / "a.csv").write_text("user,v,at\n" + "".join([*lines, "z,1,2024-06-01 00:00\n"]))
    table = table_of(CsvFiles(f"{landing}/*.csv"), store, timezone=change.zone)
    table.load(no_secrets)
    times = table.rows()["event_timestamp"].to_pylist()
    assert set(moments) <= set(times)
    assert len(times) == len(moments) + 1


def test_a_load_of_named_rows_holds_few_of_those_that_are_stored(
    landing: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files come in no order of time, so each load meets the whole history."""
    rng, count = np.random.default_rng(0), 5_000
    table = table_of(ParquetFiles(f"{landing}/*.parquet"), store, unique=["user"])
    held: list[int] = []
    by_place = SourceTable._by_place

    def counted(source: SourceTable, found: pa.Table) -> Any:
        held.append(found.num_rows)
        return by_place(source, found)

    monkeypatch.setattr(SourceTable, "_by_place", counted)
    monkeypatch.setattr(loading, "_SCANNED_ROWS", 1_000)
    year = timedelta(days=365) // timedelta(microseconds=1)
    first: pa.Table | None = None
    for number in range(6):
        at = pa.array(rng.integers(0, year, count)).cast(TIMES)
        users = [f"{number}-{row}" for row in range(count)]
        new = pa.table({"user": users, "v": rng.random(count), "at": at})
        first = new if first is None else first
        again = first.slice(0, 10).set_column(1, "v", pa.array([float(number)] * 10))
        pq.write_table(pa.concat_tables([new, again]), landing / f"{number}.parquet")
        table.load(no_secrets)
    assert max(held) <= 2 * 6 * 10  # versions of the rows that come again
    values = dict(stored(table))
    assert len(values) == 6 * count
    assert {values[f"0-{row}"] for row in range(10)} == {5.0}
