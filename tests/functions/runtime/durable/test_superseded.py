"""A run whose invocation is no longer its own ends wherever it runs, with nobody left who could kill it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from toque.functions import Context, function
from toque.functions.runtime.durable import attempt as attempts
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record

LEASE_S = 0.6
begun, ended = threading.Event(), threading.Event()


@function
def burn(pids: str) -> int:
    """Work on, with a process of its own, until somebody ends it."""
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        Path(pids).with_suffix(".new").write_text(f"{os.getpid()} {sleeper.pid}")
        Path(pids).with_suffix(".new").rename(pids)
        while True:
            time.sleep(0.01)


@function
def turn() -> int:
    """Work on in a thread of a process that others use."""
    begun.set()
    try:
        while True:
            time.sleep(0.01)
    finally:
        ended.set()


turn.in_thread = True


def cancel(ledger: Ledger, invocation: str) -> None:
    ledger.cancel(invocation)


def cancel_and_redrive(ledger: Ledger, invocation: str) -> None:
    ledger.cancel(invocation)
    ledger.redrive(invocation)


def give_to_another(ledger: Ledger, invocation: str) -> None:
    """Let another executor take the run for lost, and another worker claim it."""
    followed = ledger.follow(invocation)
    failure = {"type": "WorkerLost", "message": "silent"}
    claim = {"kind": "started", "worker": "another", "lease_s": 600.0, "digest": followed.record.digest}
    for body in ({"kind": "lost", "failure": failure, "due": followed.record.due.isoformat()}, claim):
        followed.append(lambda _, body=body: body)


CHANGES = [cancel, cancel_and_redrive, give_to_another]


@pytest.fixture
def first(used: Context) -> Iterator[Executor]:
    """Executor that starts a run and leads no longer: it polls no more while the run goes on."""
    executor = Executor(used, Ledger(used.store, actor="first", lease_s=LEASE_S))
    begun.clear()
    ended.clear()
    yield executor
    executor.close()


def start(executor: Executor, what: Any, arguments: dict[str, Any]) -> str:
    invocation = Ledger(executor.context.store, actor="client").submit(what, arguments)
    executor.poll()
    return invocation


@pytest.mark.parametrize("change", CHANGES)
def test_its_process_ends_with_what_it_started(
    first: Executor, tmp_path: Path, eventually: Callable[..., None], change: Callable[[Ledger, str], None]
) -> None:
    path = tmp_path / "pids"
    invocation = start(first, burn, {"pids": str(path)})
    eventually(path.exists)
    change(Ledger(first.context.store, actor="client"), invocation)
    pids = [int(pid) for pid in path.read_text().split()]
    eventually(lambda: not any(_runs(pid) for pid in pids))
    before = read(first, invocation)
    first._workers[invocation].wait(10)
    first._reap()  # it leads again, and sees that its worker has died: this says nothing of who has the run now
    after = read(first, invocation)
    assert (after.status, after.worker, after.lost) == (before.status, before.worker, before.lost)


@pytest.mark.parametrize("change", CHANGES)
def test_its_thread_ends_and_the_process_goes_on(
    first: Executor, eventually: Callable[..., None], change: Callable[[Ledger, str], None]
) -> None:
    invocation = start(first, turn, {})
    assert begun.wait(10)
    change(Ledger(first.context.store, actor="client"), invocation)
    before = read(first, invocation)
    assert ended.wait(10)
    assert first._workers[invocation].wait(10)
    after = read(first, invocation)
    assert (after.status, after.worker, after.length) == (before.status, before.worker, before.length)


def test_it_ends_where_the_invocation_was_deleted_too(
    first: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_BEATS_TO_LOOK", 2)
    invocation = start(first, turn, {})
    assert begun.wait(10)
    client = Ledger(first.context.store, actor="client")
    journal = client.journal(invocation)
    for key in list(
        first.context.store.list(f"{journal.path}/entries/")
    ):  # cancelled and deleted between two beats
        first.context.store.delete(key)
    assert ended.wait(10)


def test_a_run_that_is_its_own_ends_by_itself(first: Executor, eventually: Callable[..., None]) -> None:
    """Its last entry is its own, and no reason to end a process that has yet to give back its slot."""
    for _ in range(3):
        invocation = start(first, short, {})
        eventually(lambda invocation=invocation: first.poll() >= 0 and read(first, invocation).ended)
        assert read(first, invocation).status == "succeeded"
        assert read(first, invocation).lost == 0


@function(max_concurrency=1)
def short() -> int:
    time.sleep(LEASE_S / 2)
    return 1


def read(executor: Executor, invocation: str) -> Record:
    return Ledger(executor.context.store, actor="reader").read(invocation)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
