"""Retention of invocations: it ends however often it is cut, costs what it deletes, and takes nothing that is kept."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from tests.conditions.faults import Fault, FaultyStore, KilledError, Verb, run_cells
from toque.functions import Context, function
from toque.functions.maintenance.retention import Walk, _drop_invocations
from toque.functions.runtime.durable.ledger import DeadLetters, Ledger
from toque.functions.runtime.durable.slots import refused_entry
from toque.functions.runtime.durable.store_requests import READERS
from toque.functions.runtime.durable.values import put_value
from toque.functions.runtime.errors import DeclarationError
from toque.registry import utc_now
from toque.registry.journal.deletions import deleted_journals
from toque.registry.store import FolderStore, ObjectStore

DAYS = 30
LARGE = 1_100_000


@function
def note(text: str) -> str:
    return text


class History:
    """Invocations of a workspace: of forty days ago and of now, ended and not, submitted by several processes."""

    def __init__(self, store: FaultyStore, *, ended: int = 2, young: int = 1, processes: int = 1) -> None:
        self.store = store
        self.context = Context(store, store.store.url, actor="ada")
        self.old, self.kept = list[str](), list[str]()
        self._days = timedelta()
        clients = [
            Ledger(store.store, actor=f"client-{n}", clock=lambda: utc_now() + self._days)
            for n in range(processes)
        ]
        self._days = timedelta(days=-40)
        for number in range(ended):
            self.old.append(self._submit(clients[number % processes], f"old {number}", ended=True))
        DeadLetters(store.store, actor="x").add(self.old[0])
        self.kept.append(self._submit(clients[0], "never ends", ended=False))
        late = self._submit(clients[-1], "ended lately", ended=False)
        self._days = timedelta()
        clients[-1].cancel(late)
        self.kept.append(late)
        for number in range(young):
            self.kept.append(self._submit(clients[number % processes], f"young {number}", ended=bool(number)))

    def _submit(self, client: Ledger, text: str, *, ended: bool) -> str:
        invocation = client.submit(note, {"text": text})
        if ended:
            client.cancel(invocation)
        return invocation

    def retain(self) -> tuple[int, int]:
        return _drop_invocations(self.context, utc_now() - timedelta(days=DAYS))

    def gone(self) -> list[str]:
        reader = Ledger(self.store.store, actor="reader")
        return [each for each in self.old if reader.find(each) is None]

    def check(self) -> None:
        store = self.store.store
        reader = Ledger(store, actor="reader")
        assert self.gone() == self.old
        assert not any(list(store.list(f"invocations/{each}/")) for each in self.old)
        assert deleted_journals(store) == {f"invocations/{each}" for each in self.old}
        assert reader.dead_letters.all() == ()
        assert all(reader.find(each) for each in self.kept)
        assert {each.id for each in reader.unfinished()} == {self.kept[0], self.kept[2]}
        before = len(list(store.list("deletions/")))
        assert History.retain(self)[0] == 0
        assert len(list(store.list("deletions/"))) == before


@pytest.mark.slow
def test_nothing_is_half_deleted_whichever_request_fails(tmp_path: Path) -> None:
    def new_store(number: int) -> ObjectStore:
        return FolderStore(tmp_path / str(number))

    matrix = run_cells(
        Verb("retain", prepare=History, act=History.retain, check=History.check),
        new_store,
        faults=[Fault.UNAVAILABLE_BEFORE, Fault.KILLED_AFTER],
    )
    assert matrix.cells > 30
    assert not matrix.failures, matrix


def test_nights_that_are_cut_delete_all_in_the_end(tmp_path: Path) -> None:
    history = History(FaultyStore(FolderStore(tmp_path)), ended=120, young=20, processes=5)
    remaining = [len(history.old)]
    for _ in range(40):
        with history.store.faults.inject(Fault.KILLED_BEFORE, 250), suppress(KilledError):
            history.retain()
        remaining.append(len(history.old) - len(history.gone()))
        if not remaining[-1]:
            break
    assert remaining[-1] == 0, remaining
    history.retain()
    history.check()


def test_a_night_costs_what_it_deletes_however_many_are_kept(tmp_path: Path) -> None:
    requests: list[int] = []
    for young in (5, 50):
        history = History(FaultyStore(FolderStore(tmp_path / str(young))), young=young)
        with history.store.faults.inject() as faults:
            walk = Walk(
                Ledger(history.store, actor="ada"), utc_now() - timedelta(days=DAYS), kept=lambda _: None
            )
            walk.run()
        assert walk.deleted == len(history.old)
        requests.append(len(faults.requests))
    assert abs(requests[0] - requests[1]) <= 2 * READERS  # of the last read of each queue


@pytest.mark.parametrize("nights", [1, 3])
def test_a_large_value_goes_with_the_last_that_names_it(tmp_path: Path, nights: int) -> None:
    store = FolderStore(tmp_path)
    history = History(FaultyStore(store))
    old = Ledger(store, actor="x", clock=lambda: utc_now() - timedelta(days=40))
    young = Ledger(store, actor="y")
    texts = {name: name * LARGE for name in "abc"}
    gone = old.submit(note, {"text": texts["a"]})
    old.cancel(gone)
    old.submit(note, {"text": texts["b"]})  # has not ended
    again = old.submit(note, {"text": texts["c"]})
    old.cancel(again)
    for key in store.list("values/"):
        then = time.time() - 40 * 86_400
        os.utime(tmp_path / key, (then, then))
    recent = young.submit(note, {"text": texts["c"]})
    results = sum(history.retain()[1] for _ in range(nights))
    assert results == 1
    assert len(list(store.list("values/"))) == 2
    assert young.arguments(young.read(recent)) == {"text": texts["c"]}


@pytest.mark.parametrize("state", ["open", "dead", "cancelled", "succeeded"])
def test_what_a_workflow_submitted_stays_as_long_as_the_workflow_may_be_replayed(
    tmp_path: Path, state: str
) -> None:
    """A replay names its children's keys again: one that was deleted would run a second time."""
    days, store = timedelta(days=-40), FolderStore(tmp_path / "store")
    client = Ledger(store, actor="client", clock=lambda: utc_now() + days)
    parent, old = (client.submit(note, {"text": f"workflow {number}"}) for number in range(2))
    child, of_old = (client.submit(note, {"text": "charge"}, key=f"{name}/0") for name in (parent, old))
    grandchild = client.submit(note, {"text": "ship"}, key=f"{child}/0")
    alike = client.submit(note, {"text": "charge"}, key="order/7")  # a caller's own key, of no workflow
    invocations = (parent, child, grandchild, old, of_old, alike)
    for ended in invocations[1:]:
        client.cancel(ended)
    days = timedelta()
    if state == "succeeded":
        client.follow(parent).append(lambda _: {"kind": "succeeded", "result": put_value(store, None)})
    elif state == "dead":
        client.follow(parent).append(lambda _: refused_entry(DeclarationError("no room")))
    elif state == "cancelled":
        client.cancel(parent)
    assert client.read(parent).status == ("queued" if state == "open" else state)
    context, reader = Context(store, store.url, actor="ada"), Ledger(store, actor="reader")
    for _ in range(3):  # a child goes after its parent
        _drop_invocations(context, utc_now() - timedelta(days=DAYS))
        there = [name for name in invocations if reader.find(name) is not None]
        assert set(there) >= {parent} | ({child, grandchild} if state != "succeeded" else set())
    assert there == ([parent] if state == "succeeded" else [parent, child, grandchild])
    if state == "dead":
        client.redrive(parent)
    client.cancel(parent)
    for _ in range(3):
        _drop_invocations(context, utc_now() + timedelta(days=1))
    assert [name for name in invocations if reader.find(name) is not None] == []
