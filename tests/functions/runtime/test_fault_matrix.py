"""Durable verbs under faults: each request of each verb fails, is late, is lost, is forbidden, or is the last of its process.

Afterwards what was accepted has ended or is listed, nothing happened twice, nothing is half there, and the same verb succeeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conditions.faults import Fault, FaultyStore, Verb, run_cells
from tests.functions.runtime.durable.direct import run_once
from toque.functions import Context, Cron, call, function, sleep, use_context, wait_for
from toque.functions.runtime.durable import queue, store_requests, workers
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.triggers import schedule
from toque.functions.runtime.triggers.events import publish
from toque.registry.store import FolderStore, ObjectStore

effects: Counter[str] = Counter()
bank_answers = [True]


@function
def pay(order: int) -> str:
    if not bank_answers[0]:
        raise ValueError("the bank is away")
    effects[f"pay {order}"] += 1
    return "paid"


@function
def approve(order: int) -> str:
    call(pay, order)
    return f"{wait_for('approval')}"


@function
def fulfil(order: int) -> str:
    try:
        call(decline, order)
    except ValueError:
        effects["caught"] += 1
    call(pay, order)
    sleep(0)
    return call(pay, order + 1)


@function
def decline(order: int) -> str:
    effects["decline"] += 1
    raise ValueError("declined")


for each in (pay, approve, fulfil):
    each.in_thread = True  # whose start is not what is tested


class World:
    """Platform in this process: a client whose store may fail, and executors on a store that answers."""

    def __init__(self, store: FaultyStore) -> None:
        effects.clear()
        bank_answers[0] = True
        self.faulty = store
        self.context = Context(store.store, store.store.url, actor="ada")
        self.invocations: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Start the processes anew, with nothing but what is stored."""
        self.client = Ledger(self.faulty, actor="client")
        self.executor = self.new_executor(self.context)
        self.failing = self.new_executor(replace(self.context, store=self.faulty))

    def new_executor(self, context: Context) -> Executor:
        executor = Executor(context, Ledger(context.store, actor="executor"))
        executor.capacity = 1000
        return executor

    def submit(self, what: Any = pay, key: str | None = "k") -> str:
        invocation = self.client.submit(what, {"order": 7}, key=key)
        if invocation not in self.invocations:
            self.invocations.append(invocation)
        return invocation

    def read(self) -> Record:
        return Ledger(self.context.store, actor="reader").read(self.invocations[0])

    def settle(self, *, executor: Executor | None = None, status: str = "succeeded") -> None:
        """Run rounds of an executor, by default one that was started for this, until the invocations have a status."""
        platform = executor or self.new_executor(self.context)
        with use_context(self.context):
            for _ in range(200):
                platform.poll()
                for invocation in list(platform._open):  # what is postponed is not waited for
                    platform._open[invocation] = platform.ledger.clock()
                for dispatch in list(platform._workers.values()):
                    dispatch.wait(5)
                if all(platform.ledger.read(each).status == status for each in self.invocations):
                    break
        statuses = {platform.ledger.read(each).status for each in self.invocations}
        assert statuses <= {status}, f"{statuses} instead of {status}"

    def end_leases(self) -> int:
        """End the leases of workers that are gone, which otherwise keep their runs for a while; returns how many there were ever."""
        ledger = Ledger(self.context.store, actor="executor")
        for invocation in self.invocations:
            followed = ledger.follow(invocation)
            failure = {"type": "WorkerLost", "message": "gone"}
            lost = {"kind": "lost", "failure": failure, "due": followed.record.submitted_at.isoformat()}
            followed.append(lambda record, lost=lost: lost if record.status == "running" else None)
        return sum(ledger.read(invocation).lost for invocation in self.invocations)

    def listed(self) -> set[str]:
        return {record.id for record in Ledger(self.context.store, actor="reader").unfinished()}

    def check_dead_letters(self) -> None:
        ledger = Ledger(self.context.store, actor="reader")
        dead = {each for each in self.invocations if ledger.read(each).status == "dead"}
        assert set(ledger.dead_letters.all()) == dead


def ended_once(world: World, invocations: int = 1) -> None:
    world.settle()
    assert len(world.invocations) == invocations
    assert effects == {"pay 7": invocations}
    assert world.listed() <= set(world.invocations)
    world.check_dead_letters()


def dead(store: FaultyStore) -> World:
    world = World(store)
    bank_answers[0] = False
    world.submit()
    world.settle(status="dead")
    world.restart()
    bank_answers[0] = True
    return world


def waiting(store: FaultyStore) -> World:
    world = World(store)
    world.submit(approve)
    world.settle(executor=world.executor, status="waiting")
    world.executor.poll()  # and a checkpoint after that
    return world


def cancelled(world: World) -> None:
    world.settle(executor=world.executor, status="cancelled")
    assert effects == {"pay 7": 1}
    assert not world.listed()
    world.check_dead_letters()


def signalled(world: World) -> None:
    world.settle(executor=world.executor)  # which has looked since before the signal
    assert world.read().result == {"json": "yes"}
    assert effects == {"pay 7": 1}
    entries = world.client.journal(world.invocations[0]).entries()
    assert sum(entry.body["kind"] == "signalled" for entry in entries) == 1


def queued(store: FaultyStore) -> World:
    world = World(store)
    for number in range(3):
        world.submit(key=f"k{number}")
    return world


def all_paid(world: World) -> None:
    assert world.listed() | ended(world) == set(world.invocations)
    lost = world.end_leases()
    world.settle()
    assert (
        3 <= effects["pay 7"] <= 3 + lost
    )  # a run whose worker dies before its result is recorded runs again


def ended(world: World) -> set[str]:
    ledger = Ledger(world.context.store, actor="reader")
    return {each for each in world.invocations if ledger.read(each).ended}


def poll(world: World) -> None:
    with use_context(world.context):
        world.failing.poll()
        for dispatch in list(world.failing._workers.values()):
            dispatch.wait(5)


def run_attempt_of(what: Any) -> Callable[[World], None]:
    def act(world: World) -> None:
        run_once(replace(world.context, store=world.faulty), what, world.invocations[0])

    return act


def of_workflow(store: FaultyStore) -> World:
    world = World(store)
    world.submit(fulfil)
    return world


def of_approval(store: FaultyStore) -> World:
    world = World(store)
    world.submit(approve)
    return world


def fulfilled(world: World) -> None:
    lost = world.end_leases()
    world.settle()
    # At least once: a step whose worker dies between effect and record runs again. No step twice otherwise, and none that is recorded.
    assert all(count <= 1 + lost for count in effects.values()), effects
    assert set(effects) == {"decline", "caught", "pay 7", "pay 8"}
    steps = [step.function for step in world.read().steps]
    assert steps == ["decline", "pay", "sleep", "pay"]


def approved(world: World) -> None:
    lost = world.end_leases()
    world.settle(status="waiting", executor=world.executor)
    world.executor.poll()
    assert world.listed() == set(world.invocations)
    Ledger(world.context.store, actor="ada").signal(world.invocations[0], "approval", "yes")
    world.settle(executor=world.executor)
    assert 1 <= effects["pay 7"] <= 1 + lost


def publish_order(world: World) -> int:
    return publish("orders", {"order": 7}, key="order-7", used=replace(world.context, store=world.faulty))


def published_once(world: World) -> None:
    entries = Ledger(world.context.store, actor="r").store.list("events/orders/entries/")
    assert len(list(entries)) == 1


def finished(store: FaultyStore) -> World:
    world = World(store)
    world.submit()
    world.settle()
    world.restart()
    return world


def deleted(world: World) -> None:
    store = world.context.store
    assert not list(store.list(f"invocations/{world.invocations[0]}/"))
    assert not world.listed()
    assert list(Ledger(store, actor="r").invocations()) == []
    effects.clear()
    world.submit()  # its key runs again, once
    ended_once(world)


SALARIES = schedule.Schedule("salaries", pay, Cron("0 6 * * *", arguments={"order": 7}))
SIX = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)


def scheduled(store: FaultyStore) -> World:
    world = World(store)
    tick(world, SIX - timedelta(hours=1))
    return world


def tick(world: World, at: datetime = SIX) -> None:
    """Run what is due, as a ticker that has just started."""
    schedule._ScheduleRunner(replace(world.context, store=world.faulty), SALARIES).fire(at)


def paid_once(world: World) -> None:
    for hours in (
        1,
        23,
    ):  # a later ticker takes up the tick, and one after its invocation was deleted leaves it
        tick(world, SIX + timedelta(hours=hours))
        world.invocations = [each.id for each in world.client.invocations()]
        world.settle()
        assert effects == {"pay 7": 1}
        for invocation in world.invocations:
            world.client.delete(invocation)


VERBS = [
    Verb("submit", prepare=World, act=World.submit, restart=World.restart, check=ended_once),
    Verb("redrive", prepare=dead, act=lambda world: world.client.redrive(world.invocations[0]), restart=World.restart, check=ended_once),
    Verb("cancel", prepare=waiting, act=lambda world: world.client.cancel(world.invocations[0]), restart=World.restart, check=cancelled),
    Verb("signal", prepare=waiting, act=lambda world: world.client.signal(world.invocations[0], "approval", "yes"), restart=World.restart, check=signalled),
    Verb("poll", prepare=queued, act=poll, restart=World.restart, check=all_paid),
    Verb("step and sleep", prepare=of_workflow, act=run_attempt_of(fulfil), again=lambda _: None, restart=World.restart, check=fulfilled),
    Verb("wait_for", prepare=of_approval, act=run_attempt_of(approve), again=lambda _: None, restart=World.restart, check=approved),
    Verb("publish", prepare=World, act=publish_order, restart=World.restart, check=published_once),
    Verb("delete", prepare=finished, act=lambda world: world.client.delete(world.invocations[0]), restart=World.restart, check=deleted),
    Verb("tick", prepare=scheduled, act=tick, restart=World.restart, check=paid_once),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_requests, "_FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(queue, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(workers, "THREADS", 1000)


@pytest.mark.parametrize("verb", VERBS, ids=str)
def test_a_verb_is_whole_or_not_at_all_whichever_request_fails(
    verb: Verb[World], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    def new_store(number: int) -> ObjectStore:
        return FolderStore(tmp_path / str(number))

    matrix = run_cells(verb, new_store)
    record_property("cells", matrix.cells)
    assert matrix.cells > len(Fault)
    assert not matrix.failures, matrix
