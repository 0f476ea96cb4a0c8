"""What dies at the worst moment loses nothing: executors, workers, submitters."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from functions import Context
from functions.runtime import invocation as invocations
from functions.runtime.ledger import Ledger

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def kitchen() -> Any:
    sys.path.insert(0, str(Path(__file__).parent))
    import kitchen

    yield kitchen
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture
def quick_leases(used: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Workers whose silence is noticed after a second."""
    ledger = Ledger(used.store, actor=used.actor, lease_s=1.0)
    monkeypatch.setitem(invocations._ledgers, (used.store_url, used.actor), ledger)
    return used


@pytest.fixture
def executor(used: Context) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Start executors in processes of their own."""
    running: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        environment = os.environ | {
            "TOQUE_STORE": used.store_url,
            "TOQUE_ACTOR": used.actor,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
        }
        code = "import kitchen; kitchen.main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def test_a_workflow_whose_worker_is_killed_after_each_step_runs_each_step_once(
    used: Context, kitchen: Any, traces: Any, soon: Callable[..., None]
) -> None:
    invocation = kitchen.ten_steps.submit(traces.path, pause_s=0.1)
    executor = invocations.executor_of(used)
    for number in range(1, 10):
        soon(lambda: executor.poll() and len(invocation.record().steps) >= number)  # noqa: B023
        executor._workers[invocation.id][1].kill()
    words = [f"step{number}" for number in range(10)]
    assert invocation.result(60) == words
    assert traces.read() == words
    assert invocation.record().lost == 9


@pytest.mark.slow
def test_a_workflow_survives_the_death_of_its_executor(
    used: Context, kitchen: Any, traces: Any, executor: Any, soon: Callable[..., None]
) -> None:
    invocation = kitchen.ten_steps.submit(traces.path, pause_s=0.2)
    process = executor()
    traces.wait_for(3)
    os.kill(process.pid, signal.SIGKILL)  # its workers end with it; their lease is over a while later
    process.wait()
    executor()
    soon(lambda: invocation.status() == "succeeded", within_s=60)
    words = [f"step{number}" for number in range(10)]
    assert invocation.result(5) == words
    assert traces.read() == words


def test_a_worker_that_is_killed_is_noticed_at_once(used: Context, kitchen: Any, traces: Any) -> None:
    executor = invocations.executor_of(used)
    invocation = kitchen.risky.submit(traces.path, 1)
    executor.poll()
    (first,) = traces.wait_for(1)
    os.kill(int(first.partition(":")[2]), signal.SIGKILL)
    assert invocation.result(30) == 1
    record = invocation.record()
    assert (record.lost, record.attempts) == (1, 1)
    assert len(traces.read()) == 2


def test_a_worker_that_falls_silent_is_replaced_when_its_lease_is_over(
    quick_leases: Context, kitchen: Any, traces: Any, soon: Callable[..., None]
) -> None:
    invocation = kitchen.peel.submit(traces.path, "x")
    followed = invocations.ledger_of(quick_leases).follow(invocation.id)
    started = {"kind": "started", "worker": "gone", "lease_s": 1.0, "digest": kitchen.peel.digest}
    followed.append(lambda _: started)
    soon(lambda: invocations.run_pending(quick_leases) == 0)
    assert invocation.result(5) == "x"
    assert invocation.record().lost == 1


@pytest.mark.slow
def test_two_hundred_invocations_survive_workers_killed_at_random(
    used: Context, kitchen: Any, traces: Any, soon: Callable[..., None]
) -> None:
    dice, killed = random.Random(7), set()
    submitted = [kitchen.risky.submit(traces.path, number) for number in range(200)]

    def kill_some() -> bool:
        for line in traces.read()[-4:]:
            pid = int(line.partition(":")[2])
            if pid not in killed and dice.random() < 0.05:
                killed.add(pid)
                _kill(pid)
        return invocations.run_pending(used) == 0

    soon(kill_some, within_s=120)
    statuses = [each.status() for each in submitted]
    assert statuses == ["succeeded"] * 200
    assert [each.result(5) for each in submitted] == list(range(200))
    assert killed


def _kill(pid: int) -> None:
    try:
        if b"nursery" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):  # it ended by itself, before or while it was looked at
        return


def test_a_workflow_with_steps_of_other_code_says_that_it_cannot_go_on(
    used: Context, kitchen: Any, traces: Any, monkeypatch: pytest.MonkeyPatch, soon: Callable[..., None]
) -> None:
    invocation = kitchen.ten_steps.submit(traces.path)
    followed = invocations.ledger_of(used).follow(invocation.id)
    started = {"kind": "started", "worker": "gone", "lease_s": 0.0, "digest": "older"}
    stepped = {"kind": "step", "function": "peel", "arguments": "", "result": {"json": "step0"}}
    for body in (started, stepped):
        followed.append(lambda _, body=body: body)
    soon(lambda: invocations.run_pending(used) == 0)
    record = invocation.record()
    assert (record.status, record.failure and record.failure.type) == ("dead", "CodeChanged")
    assert invocations.ledger_of(used).dead_letters.all() == (invocation.id,)
