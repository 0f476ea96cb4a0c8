"""`max_concurrency` holds across executors that share nothing but the store."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from toque.functions import Context, Retries, function, use_context
from toque.functions.runtime.durable.concurrency import ConcurrencySlots
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger


@function(max_concurrency=2, retries=Retries(max_lost=9, backoff_s=0.01))
def few(path: str, number: int) -> int:
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"+{number}:{os.getpid()}\n")
    time.sleep(0.1)
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"-{number}:{os.getpid()}\n")
    return number


@pytest.fixture
def three_executors(used: Context) -> Iterator[list[Executor]]:
    """Run three executors with ledgers, readers and workers of their own, each in a thread."""
    executors = [Executor(used, Ledger(used.store, actor=f"executor{each}")) for each in range(3)]
    stop = threading.Event()

    def run(executor: Executor) -> None:
        with use_context(used):
            while not stop.wait(0.01):
                executor.poll()

    threads = [threading.Thread(target=run, args=(each,)) for each in executors]
    for thread in threads:
        thread.start()
    yield executors
    stop.set()
    for thread in threads:
        thread.join()
    for each in executors:
        each.close()


def most_at_once(lines: list[str]) -> int:
    """Count the most runs at one time; a process has one run at a time."""
    running: set[str] = set()
    most = 0
    for line in lines:
        pid = line.partition(":")[2]
        if line[0] == "+":
            running.add(pid)
            most = max(most, len(running))
        else:
            running.discard(pid)
    return most


@pytest.mark.usefixtures("backend")
def test_three_executors_together_run_no_more_than_the_limit(
    three_executors: list[Executor], traces: Any, eventually: Callable[..., None]
) -> None:
    submitted = [few.submit(traces.path, number) for number in range(12)]
    eventually(lambda: all(each.status() == "succeeded" for each in submitted), within_s=60)
    lines = traces.read()
    assert len(lines) == 24
    assert most_at_once(lines) <= 2


def test_a_killed_worker_s_slot_is_free_again(
    three_executors: list[Executor], traces: Any, eventually: Callable[..., None]
) -> None:
    submitted = [few.submit(traces.path, number) for number in range(6)]
    killed = traces.wait_for(1)[0].partition(":")[2]
    with open(traces.path, "a") as file:  # noqa: PTH123
        file.write(f"-killed:{killed}\n")  # nothing else says that its run is over
    os.kill(int(killed), signal.SIGKILL)
    eventually(lambda: all(each.status() == "succeeded" for each in submitted), within_s=60)
    assert most_at_once(traces.read()) <= 2


def test_a_slot_is_released_when_its_holder_s_lease_ends(
    used: Context, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    ledger = Ledger(used.store, actor="ada", lease_s=0.2)
    slots = ConcurrencySlots.of(few, ledger)
    assert slots is not None
    holders = [few.submit(str(tmp_path / "t"), each).id for each in range(3)]
    assert slots.acquire("a", holders[0])
    assert slots.acquire("b", holders[1])
    assert not slots.acquire("c", holders[2])
    for worker, invocation in (("a", holders[0]), ("b", holders[1])):
        claim = {"kind": "started", "worker": worker, "lease_s": ledger.lease_s, "digest": few.digest}
        ledger.follow(invocation).append(lambda _, claim=claim: claim)
    other = ConcurrencySlots.of(few, ledger)
    assert other is not None
    eventually(other.available)
    assert other.acquire("c", holders[2])
    other.release("c")
    assert other.acquire("d", holders[2])


def test_a_function_without_a_limit_takes_no_slot(used: Context) -> None:
    @function
    def plain(a: int) -> int:
        return a

    assert ConcurrencySlots.of(plain, Ledger(used.store, actor="ada")) is None
    plain.submit(1).result(60)
    assert list(used.store.list("concurrency/")) == []
