"""Listings of invocations: right in every order of queues and notes, and of few reads however many there are."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from toque.functions import function
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.queue import Note, QueueReader, QueueWriter
from toque.functions.runtime.errors import UnknownInvocation
from toque.registry import open_store
from toque.registry.store.object_store import ObjectStore

START = datetime(2026, 3, 1, tzinfo=UTC)


@function
def listed(a: int) -> int:
    return a


@function
def other(a: int) -> int:
    return a


class Clock:
    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path}")


def ids(ledger: Ledger, **options: Any) -> list[str]:
    return [each.id for each in ledger.invocations(**options)]


def test_pages_together_are_all_invocations_newest_first_whatever_the_queues_did(store: ObjectStore) -> None:
    chance, clock = random.Random(7), Clock()
    ledgers = [Ledger(store, actor=f"p{number}", clock=clock) for number in range(4)]
    reader = QueueReader(store, actor="e", clock=clock)
    submitted: list[tuple[datetime, str]] = []
    for number in range(120):
        clock.at += timedelta(seconds=chance.choice([0, 0, 1, 3, 400]))
        ledger = chance.choice(ledgers)
        submitted.append((clock.at, ledger.submit(listed, {"a": number})))
        if chance.random() < 0.3:  # an older one is noted again, by another process
            chance.choice(ledgers).notify(chance.choice(submitted)[1])
        list(reader.new_notes())  # closes what is silent
    wanted = [each for _, each in sorted(submitted, reverse=True)]
    assert ids(ledgers[0], limit=1000) == wanted
    found: list[str] = []
    while page := ids(ledgers[1], limit=7, after=found[-1] if found else None):
        found += page
    assert found == wanted


def test_the_newest_page_of_many_costs_few_reads(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(store, actor="p")
    everything = [ledger.submit(listed, {"a": number}) for number in range(600)]
    counts: Counter[str] = Counter()
    find = store.find
    monkeypatch.setattr(store, "find", lambda key: (counts.update([key.split("/")[0]]), find(key))[1])
    monkeypatch.setattr(store, "list", lambda *_, **__: pytest.fail("lists the store"))
    assert ids(ledger, limit=10) == everything[:-11:-1]
    assert counts["queues"] < 45
    assert counts["invocations"] < 45
    counts.clear()
    assert ids(ledger, limit=10, after=everything[300]) == everything[290:300][::-1]
    assert counts.total() < 2 * 90 + 600  # notes within two seconds of the cursor are read to be left out


def test_a_listing_reads_each_entry_once_and_of_other_functions_only_the_first(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(store, actor="p")
    wanted = [ledger.submit(listed, {"a": number}) for number in range(20)]
    for each in (*wanted, *(ledger.submit(other, {"a": number}) for number in range(20))):
        for body in (
            {"kind": "started", "worker": "w", "lease_s": 9.0, "digest": "d"},
            {"kind": "succeeded", "result": {"json": 1}},
        ):
            ledger.follow(each).append(lambda _, body=body: body)
    counts: Counter[str] = Counter()
    find = store.find
    monkeypatch.setattr(store, "find", lambda key: (counts.update([key.split("/")[0]]), find(key))[1])
    assert ids(ledger, function="listed") == wanted[::-1]
    assert counts["invocations"] == 20 + 20 * 3


def test_what_has_not_ended_is_found_by_the_checkpoint_and_the_notes_since(store: ObjectStore) -> None:
    ledger = Ledger(store, actor="p")
    one, two = (ledger.submit(listed, {"a": number}) for number in range(2))
    reader = QueueReader(store, actor="e")
    list(reader.new_notes())
    ledger.cancel(one)
    reader.checkpoint({two: START})
    three = Ledger(store, actor="q").submit(other, {"a": 3})
    assert ids(ledger, status="queued") == [three, two]
    assert ids(ledger, status="queued", after=three) == [two]
    assert [each.id for each in ledger.unfinished()] == [three, two]
    assert ids(ledger, status="queued", function="other") == [three]
    assert ids(ledger, status="cancelled") == [one]
    assert ids(ledger, function="listed") == [two, one]
    assert ids(ledger, status="succeeded") == []
    with pytest.raises(UnknownInvocation):
        ids(ledger, after="f" * 32)


def test_a_note_of_nothing_and_a_deleted_invocation_are_left_out(store: ObjectStore) -> None:
    ledger = Ledger(store, actor="p")
    kept = ledger.submit(listed, {"a": 1})
    gone = ledger.submit(listed, {"a": 2})
    ledger.cancel(gone)
    assert ledger.delete(gone)
    QueueWriter(store, actor="w").add(Note("0" * 32))
    assert ids(ledger) == [kept]
