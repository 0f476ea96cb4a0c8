"""Copies of a store that is written meanwhile, and copies that are killed: what arrives is the store of one moment."""

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from tests.conditions.faults import FragileStore, KilledError
from toque.registry import Journal, ObjectStore, Table, open_store
from toque.registry.errors import RegistryError
from toque.registry.journal.heads import journal_counts
from toque.registry.store.tables.upkeep import drop_days
from toque.registry.transfer import copy_store, find_marker
from toque.registry.transfer.copying import _Copy

WRITERS = 4


class Chatter:
    """A writer whose every entry names what was written before it: a value, and the newest entries of the others."""

    def __init__(self, store: ObjectStore, name: int, heads: dict[int, int]) -> None:
        self._store, self._name, self._heads = store, name, heads
        self._journal = Journal(store, f"events/{'dbca'[name]}", actor=f"w{name}")

    def write(self) -> None:
        """Write a value, then an entry that names it and the others' heads, then a cursor behind the entry."""
        number = self._heads.get(self._name, 0)
        named = dict(self._heads)
        self._store.put(f"values/{self._name}/{number}.json", b"{}")
        self._journal.append({"value": number, "heads": named}, at=number)
        self._heads[self._name] = number + 1
        self._store.put(f"subscriptions/{self._name}.json", json.dumps({"next": number + 1}).encode())


def is_consistent(store: ObjectStore) -> int:
    """Check that every entry, cursor and commit in a store has what it names; returns the number of entries."""
    counts = journal_counts(store)
    total = 0
    for name in range(WRITERS):
        journal = Journal(store, f"events/{'dbca'[name]}", actor="check")
        count = journal.verify() if counts.get(journal.path) else 0
        assert count == counts.get(journal.path, 0)
        for entry in journal.entries():
            assert store.find(f"values/{name}/{entry.body['value']}.json") is not None
            for other, head in entry.body["heads"].items():
                assert counts.get(f"events/{'dbca'[int(other)]}", 0) >= head, (name, entry.number, other)
        cursor = store.find(f"subscriptions/{name}.json")
        assert cursor is None or json.loads(cursor)["next"] <= count
        total += count
    return total


@contextmanager
def chattering(store: ObjectStore, *, table: bool = True) -> Iterator[None]:
    """Keep writers at work, and a table growing, within the block."""
    ended, heads = threading.Event(), dict[int, int]()
    store.put("subscriptions/first.json", b"{}")
    failures: list[BaseException] = []

    def chat(name: int) -> None:
        writer = Chatter(store, name, heads)
        while not ended.wait(random.uniform(0, 0.02)):
            writer.write()

    def grow() -> None:
        while not ended.wait(0.1):
            Table(store, "labels").append(
                pa.table({"x": [1, 2], "day": ["2013-01-01"] * 2}), partition_by=["day"]
            )

    def guarded(work: object, *arguments: object) -> None:
        try:
            work(*arguments)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001  # whatever ends a writer fails the test
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(chat, name)) for name in range(WRITERS)]
    threads += [threading.Thread(target=guarded, args=(grow,))] if table else []
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def test_a_copy_of_a_store_that_is_written_is_a_moment_of_it(store: ObjectStore, tmp_path: Path):
    target = open_store(f"file://{tmp_path}/copy")
    seen = rows = rounds = 0
    deadline = time.monotonic() + 120
    with chattering(store):
        while rounds < 2 or not (seen and rows):
            assert time.monotonic() < deadline
            report = copy_store(store, target)
            assert report.findings == ()
            now, rows, rounds = is_consistent(target), report.verified.rows, rounds + 1
            assert now >= seen
            seen = now
    assert copy_store(store, target).findings == ()
    assert is_consistent(target) == sum(journal_counts(store).values())


def test_a_plain_listing_would_not_be_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The test above can fail: with everything that is listed in the copy, entries name what is not there."""
    source = open_store(f"file://{tmp_path}/a")
    late = source.now().replace(year=2100)
    times = iter(range(10_000))
    monkeypatch.setattr(type(source), "now", lambda _: late.replace(microsecond=next(times)))
    with chattering(source, table=False):
        for attempt in range(20):
            target = open_store(f"file://{tmp_path}/{attempt}")
            try:
                copy_store(source, target)
                is_consistent(target)
            except (AssertionError, RegistryError):
                return
    pytest.fail("a copy without a moment was consistent 20 times")


@pytest.mark.parametrize("copies_before", [0, 1])
def test_a_killed_copy_is_taken_up_again(tmp_path: Path, copies_before: int):
    """Killed before each of its writes in turn; between two copies what is there is the store of a moment, too."""
    source = open_store(f"file://{tmp_path}/a")
    heads: dict[int, int] = {}
    writers = [Chatter(source, name, heads) for name in range(WRITERS)]
    for each in writers * 2:
        each.write()
    Table(source, "labels").append(pa.table({"x": [1], "day": ["2013-01-01"]}))
    at, whole = 1, False
    while not whole:
        folder = tmp_path / f"copy{at}"
        if copies_before:
            copy_store(source, open_store(folder.as_uri()))
            for each in writers:
                each.write()
        whole = _copied_until(source, folder, at)
        if copies_before:  # what was interrupted can be restored as it is
            restored = open_store(f"file://{tmp_path}/restored{at}")
            assert copy_store(open_store(folder.as_uri()), restored).findings == ()
            is_consistent(restored)
        assert copy_store(source, open_store(folder.as_uri())).findings == ()
        assert is_consistent(open_store(folder.as_uri())) == sum(heads.values())
        at += 1 if at < 4 else 7
    assert at > 20


class Dead(FragileStore):
    """A target whose writer, once killed, writes nothing more in any of its threads."""

    def _write(self, write: Any, *arguments: Any) -> None:
        super()._write(write if self.writes < self.fatal else _die, *arguments)


def _die(*_: object) -> None:
    raise KilledError


def _copied_until(source: ObjectStore, folder: Path, at: int) -> bool:
    """Copy until the copier is killed before its write number `at`; returns whether it came to its end."""
    target = Dead(folder)
    target.fatal = at
    try:
        copy_store(source, target)
    except KilledError:
        return False
    return True


def test_what_goes_while_it_is_copied_makes_another_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Retention drops a day between the listing and the copying: the table of the copy must not miss its files."""
    source, target = open_store(f"file://{tmp_path}/a"), open_store(f"file://{tmp_path}/b")
    days = ["2013-01-01", "2013-02-01"]
    Table(source, "labels").append(pa.table({"x": [1, 2], "day": days}), partition_by=["day"])
    listed, said = _Copy._list, list[str]()

    def list_and_lose(copy: _Copy) -> object:
        whole_at = listed(copy)
        drop_days(Table(source, "labels"), before=date(2013, 1, 15))
        return whole_at

    monkeypatch.setattr(_Copy, "_list", list_and_lose)
    report = copy_store(source, target, report=said.append)
    assert report.findings == ()
    assert any("went while it was copied" in line for line in said)
    assert DeltaTable(Table(target, "labels").uri).to_pyarrow_table().num_rows == 1


def test_an_interrupted_first_copy_is_no_source(tmp_path: Path):
    source = open_store(f"file://{tmp_path}/a")
    Chatter(source, 0, {}).write()
    assert not _copied_until(source, tmp_path / "b", 4)
    half = open_store(f"file://{tmp_path}/b")
    assert find_marker(half).under_way  # type: ignore[union-attr]
    with pytest.raises(RegistryError, match="never ended"):
        copy_store(half, open_store(f"file://{tmp_path}/c"))
