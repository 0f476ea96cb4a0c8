"""Intake of the executor: whichever request fails, whatever another executor closed, however long the backlog is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.conditions.faults import Fault, FaultyStore
from toque.functions import Context, function, wait_for
from toque.functions.runtime.durable import executor as rounds
from toque.functions.runtime.durable import queue, workers
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.queue import Note, QueueReader, QueueWriter
from toque.ray_apps.leader_lease import Leadership
from toque.ray_apps.ticker import Ticker, keep_lead, run_in_each
from toque.registry import Unavailable, utc_now
from toque.registry.errors import Damaged
from toque.registry.store.object_store import ObjectStore


@function
def noop(a: int) -> int:
    return a


@function
def approve(a: int) -> int:
    wait_for("approval")
    return a


@function
def approve_in_time(a: int) -> int:
    return int(wait_for("approval", timeout_s=3600))


for each in (noop, approve, approve_in_time):
    each.in_thread = True


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(workers, "THREADS", 1000)


def executor_on(used: Context, store: Any = None) -> Executor:
    here = replace(used, store=store or used.store)
    executor = Executor(here, Ledger(here.store, actor="executor"))
    executor.capacity = 1000
    return executor


def poll(executor: Executor, until: Callable[[], bool], *, rounds: int = 200) -> None:
    for _ in range(rounds):
        executor.poll()
        if until():
            return
        for dispatch in list(executor._workers.values()):
            dispatch.wait(5)
    raise AssertionError("not within the rounds")


def status_of(used: Context, invocation: str) -> str:
    return Ledger(used.store, actor="reader").read(invocation).status


def test_a_queue_that_cannot_be_read_keeps_no_other_waiting(used: Context) -> None:
    """Its damage stays: each round reports it, takes in the notes of the others, and moves no place past what it gave."""
    ledgers = [Ledger(used.store, actor=f"gateway-{number}") for number in range(3)]
    executor = executor_on(used)
    first = [ledger.submit(noop, {"a": 0}) for ledger in ledgers]
    poll(executor, lambda: all(status_of(used, each) == "succeeded" for each in first))
    damaged = ledgers[1]._queue._journal
    later = [ledger.submit(noop, {"a": 1}) for ledger in ledgers for _ in range(3)]
    key = damaged.key(2)
    whole = used.store.get(key)
    used.store.put(key, whole.replace(b"invocation", b"invocatiom"))
    for _ in range(20):
        with pytest.raises(Damaged):
            executor.poll()
        for dispatch in list(executor._workers.values()):
            dispatch.wait(5)
    ended = [each for each in later if status_of(used, each) == "succeeded"]
    assert len(ended) == 7  # all of two queues, and the one before the damage
    used.store.put(key, whole)
    poll(executor_on(used), lambda: all(status_of(used, each) == "succeeded" for each in later))


def test_a_backlog_is_taken_in_by_parts_and_read_many_at_once(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "NOTES_AT_ONCE", 16)
    writers = [QueueWriter(used.store, actor=f"w{number}") for number in range(3)]
    notes = [f"{number}-{each}" for each in range(40) for number in range(3)]
    for name in notes:
        writers[int(name[0])].add(Note(name))
    reader, parts = QueueReader(used.store, actor="r"), []
    while part := reader.new_notes():
        parts.append([note.invocation for note in part])
    assert sorted(name for part in parts for name in part) == sorted(notes)
    assert len(parts) > 1
    assert all(len(part) < 16 + 3 * 32 for part in parts)


def test_a_queue_that_another_executor_opened_and_closed_meanwhile_is_read(used: Context) -> None:
    """Of an executor that led, did not for an hour, and leads again with what it knew."""
    now = [utc_now()]
    clock = lambda: now[0]  # noqa: E731
    reader, other = (QueueReader(used.store, actor=name, clock=clock) for name in ("first", "other"))
    QueueWriter(used.store, actor="w", clock=clock).add(Note("before"))
    assert [note.invocation for note in reader.new_notes()] == ["before"]
    QueueWriter(used.store, actor="v", clock=clock).add(Note("meanwhile"))
    for _ in range(3):
        other.new_notes()
        now[0] += timedelta(minutes=11)
    assert "meanwhile" in [note.invocation for note in reader.new_notes()]


@pytest.mark.parametrize("at", range(1, 8))
def test_a_checkpoint_that_cannot_be_resumed_from_is_read_again(used: Context, at: int) -> None:
    ledger, first = Ledger(used.store, actor="client"), executor_on(used)
    first.capacity = 0
    invocations = [ledger.submit(noop, {"a": number}) for number in range(3)]
    first._function_with_room = lambda _: None  # no worker is free
    first.poll()
    store = FaultyStore(used.store)
    second = executor_on(used, store)
    with store.faults.inject(Fault.UNAVAILABLE_BEFORE, at):
        try:
            second.poll()
        except Unavailable:
            assert store.faults.struck is not None
    second._open = {each: utc_now() for each in second._open}  # what is postponed is not waited for
    poll(second, lambda: all(status_of(used, each) == "succeeded" for each in invocations))


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize("workflow", [approve, approve_in_time])
def test_a_signal_whose_entry_comes_after_its_note_was_read_wakes_the_workflow(
    used: Context,
    workflow: Any,
    takes_over: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    """By the executor that read the note, and by one that has taken over since, from the checkpoint."""
    ledger, executor = Ledger(used.store, actor="client"), executor_on(used)
    invocation = ledger.submit(workflow, {"a": 1})
    poll(executor, lambda: status_of(used, invocation) == "waiting")
    executor.poll()
    followed = ledger.follow(invocation)
    ledger._queue.add(Note(invocation, after=followed.record.length))  # and its writer stalls
    for _ in range(3):
        executor.poll()
    assert invocation in executor._open
    if takes_over:
        executor = executor_on(used)
        executor.poll()
    followed.append(lambda _: {"kind": "signalled", "signal": "approval", "value": 1})
    executor._open[invocation] = utc_now()  # its next look
    poll(executor, lambda: status_of(used, invocation) == "succeeded")


def test_an_announced_entry_that_never_comes_is_given_up(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, executor = Ledger(used.store, actor="client"), executor_on(used)
    invocation = ledger.submit(approve, {"a": 1})
    poll(executor, lambda: status_of(used, invocation) == "waiting")
    monkeypatch.setattr(queue, "ANNOUNCED_S", 0.0)
    ledger._queue.add(Note(invocation, after=100))
    executor.poll()
    executor._open = dict.fromkeys(executor._open, utc_now())
    executor.poll()
    assert not executor._open
    assert [record.id for record in ledger.unfinished()] == [invocation]


def test_workflows_that_wait_for_a_person_are_listed_by_every_executor(used: Context) -> None:
    ledger = Ledger(used.store, actor="client")
    waiting = {ledger.submit(approve, {"a": number}) for number in range(3)}
    executor = executor_on(used)
    poll(executor, lambda: all(status_of(used, each) == "waiting" for each in waiting))
    for _ in range(3):
        executor.poll()
        executor = executor_on(used)  # the next one begins at the checkpoint
        executor.poll()
        assert {record.id for record in ledger.invocations(status="waiting")} == waiting
        assert {record.id for record in ledger.unfinished()} == waiting
    for each in waiting:
        ledger.signal(each, "approval")
    poll(executor, lambda: all(status_of(used, each) == "succeeded" for each in waiting))
    executor.poll()
    assert not list(ledger.unfinished())


class SlowStore:
    """Store of which each request takes a while, and which knows how many were under way at once."""

    def __init__(self, store: ObjectStore, latency_s: float) -> None:
        self.store, self.latency_s = store, latency_s

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name not in {"find", "find_aged", "create", "put"}:
            return method

        def slow(*args: Any, **named: Any) -> Any:
            time.sleep(self.latency_s)
            return method(*args, **named)

        return slow


def test_a_leader_keeps_its_lead_over_a_backlog_of_many_rounds(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A two hundredth of 10,000 invocations at 50 ms: 200 at 10 ms, with limits a two hundredth."""
    monkeypatch.setattr(rounds, "ROUND_S", 0.05)
    monkeypatch.setattr(rounds, "RECORDS_AT_ONCE", 16)
    monkeypatch.setattr(queue, "NOTES_AT_ONCE", 32)
    monkeypatch.setattr("toque.ray_apps.ticker.HANGS_S", 10.0)
    ledger = Ledger(used.store, actor="client")
    invocations = [ledger.submit(noop, {"a": number}) for number in range(200)]
    executor = executor_on(used, SlowStore(used.store, 0.01))
    done = threading.Event()

    def work(_: str) -> None:
        executor.poll()
        if not executor._open:
            done.set()

    due = Ticker(
        lambda: {"invocations": lambda: run_in_each(["default"], work, done=due.note_progress)},
        is_leader=lambda: True,
        interval_s=0.01,
    )
    lead = Leadership([(_Held(), 0.0)])
    due.start()
    while not done.wait(0.05):
        keep_lead(lead, due, lambda: False)
        assert lead.is_leader or not due.prepared
    due.stop()
    assert due.ticks > 5
    assert {status_of(used, each) for each in invocations} == {"succeeded"}


class _Held:
    """Lease that nobody else wants."""

    def renew(self) -> float:
        return float("inf")

    def is_free(self) -> bool:
        return True

    def release(self) -> None:
        raise AssertionError("the lead is given up")
