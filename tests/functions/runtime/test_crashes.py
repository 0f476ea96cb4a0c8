"""Crashes of executors, workers and submitters, none of which loses an invocation."""

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from toque.functions import Context
from toque.functions.runtime.durable import invocation as invocations
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def samples() -> Iterator[Any]:
    os.environ["PYTHONPATH"] = (
        f"{ROOT}{os.pathsep}{Path(__file__).parent}"  # of Ray's workers; put back later
    )
    sys.path.insert(0, str(Path(__file__).parent))
    import sample_functions

    yield sample_functions
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture
def quick_leases(used: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Context with leases of one second."""
    ledger = Ledger(used.store, actor=used.actor, lease_s=1.0)
    monkeypatch.setitem(invocations._ledgers, (used.store_url, used.actor), ledger)
    return used


def test_a_worker_that_is_killed_is_noticed_at_once(used: Context, samples: Any, traces: Any) -> None:
    executor = invocations.executor_of(used)
    invocation = samples.killable.submit(traces.path, 1)
    executor.poll()
    (first,) = traces.wait_for(1)
    os.kill(int(first.partition(":")[2]), signal.SIGKILL)
    assert invocation.result(60) == 1
    record = invocation.record()
    assert (record.lost, record.attempts) == (1, 1)
    assert len(traces.read()) == 2


def test_a_worker_without_heartbeats_is_replaced_when_its_lease_ends(
    quick_leases: Context, samples: Any, traces: Any, eventually: Callable[..., None]
) -> None:
    invocation = samples.append_word.submit(traces.path, "x")
    followed = invocations.ledger_of(quick_leases).follow(invocation.id)
    started = {"kind": "started", "worker": "gone", "lease_s": 1.0, "digest": samples.append_word.digest}
    followed.append(lambda _: started)
    eventually(lambda: invocations.run_pending(quick_leases) == 0)
    assert invocation.result(5) == "x"
    assert invocation.record().lost == 1


def test_an_ended_worker_that_nobody_waits_for_frees_capacity(
    used: Context, samples: Any, traces: Any, eventually: Callable[..., None]
) -> None:
    executor = Executor(used, invocations.ledger_of(used), capacity=1)
    first, second = samples.append_word.submit(traces.path, "x"), samples.append_word.submit(traces.path, "y")
    executor.drive(first.id, wait_s=0)
    eventually(lambda: first.status() == "succeeded")
    eventually(lambda: executor.drive(second.id, wait_s=0.01) or second.status() == "succeeded")
    executor.close()


MANY = 200


@pytest.mark.parametrize(
    ("backend", "count"),
    [
        pytest.param("local", 40, marks=pytest.mark.slow),
        pytest.param("local", MANY, marks=pytest.mark.proof),
        pytest.param("ray", MANY, marks=[pytest.mark.proof, pytest.mark.ray]),
    ],
    indirect=["backend"],
)
@pytest.mark.usefixtures("backend")
def test_no_invocation_is_lost_when_workers_are_killed_at_random(
    used: Context, samples: Any, traces: Any, eventually: Callable[..., None], count: int
) -> None:
    dice, killed = random.Random(7), set()
    submitted = [
        (samples.killable if number % 2 else samples.killable_once).submit(traces.path, number)
        for number in range(count)
    ]

    def kill_some() -> bool:
        lines = traces.read()
        stuck = [[each for each in lines if each.startswith(f"{number}:")][:1] for number in samples.HANGING]
        chosen = [line for line in lines[-4:] if dice.random() < 0.1]
        for pid in {int(line.partition(":")[2]) for line in sum(stuck, chosen)} - killed:
            killed.add(pid)
            _kill(pid)
        return invocations.run_pending(used) == 0

    eventually(kill_some, within_s=600)
    records = [each.record() for each in submitted]
    dead = [each.id for each in records if each.status == "dead"]
    assert {each.status for each in records} <= {"succeeded", "dead"}
    assert {each.function for each in records if each.status == "dead"} <= {"killable_once"}
    assert submitted[0].id in dead
    assert records[1].lost >= 1
    ledger = invocations.ledger_of(used)
    assert sorted(ledger.dead_letters.all()) == sorted(dead)
    for each in dead:
        ledger.redrive(each)
    eventually(lambda: invocations.run_pending(used) == 0, within_s=60)
    assert [each.result(5) for each in submitted] == list(range(count))
    assert ledger.dead_letters.all() == ()


def _kill(pid: int) -> None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"forkserver" in command or b"ray::" in command:
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):  # it ended by itself, before or while it was looked at
        return
