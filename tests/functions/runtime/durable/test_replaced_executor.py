"""An executor that is replaced hands its runs over: another begins them again at once, however often, and none is lost for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conditions.faults import Fault, FaultyStore
from toque.functions import Context, function
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.ledger import Ledger

LEASE_S = 600.0  # nobody waits for it


@function(retries=Retries(max_lost=1), max_concurrency=1)
def train(folder: str) -> int:
    """Work until somebody says that it may end; each beginning leaves a file."""
    Path(folder, f"begun {time.monotonic_ns()}").touch()
    while not Path(folder, "end").exists():
        time.sleep(0.01)
    return 7


@pytest.fixture
def executors(used: Context) -> Iterator[Callable[[], Executor]]:
    started: list[Executor] = []

    def start() -> Executor:
        executor = Executor(used, Ledger(used.store, actor="executor", lease_s=LEASE_S))
        started.append(executor)
        return executor

    yield start
    for executor in started:
        executor.close()


@pytest.mark.parametrize("times", [1, 4])
def test_a_run_is_begun_again_at_once_and_is_not_lost(
    used: Context,
    executors: Callable[[], Executor],
    tmp_path: Path,
    eventually: Callable[..., None],
    times: int,
) -> None:
    ledger = Ledger(used.store, actor="client")
    invocation = ledger.submit(train, {"folder": str(tmp_path)})
    for number in range(times):
        executor = executors()
        eventually(
            lambda number=number, executor=executor: (
                executor.poll() >= 0 and len(list(tmp_path.glob("begun *"))) == number + 1
            )
        )
        executor.close()
        record = ledger.read(invocation)
        assert (record.status, record.lost) == ("queued", 0)
    (tmp_path / "end").touch()
    last = executors()
    eventually(lambda: last.poll() >= 0 and ledger.find_status(invocation) == "succeeded")
    assert ledger.read(invocation).lost == 0


def test_what_another_worker_has_and_what_has_ended_is_left_alone(
    used: Context, executors: Callable[[], Executor], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    ledger, executor = Ledger(used.store, actor="client"), executors()
    invocation = ledger.submit(train, {"folder": str(tmp_path)})
    eventually(lambda: executor.poll() >= 0 and ledger.find_status(invocation) == "running")
    followed = ledger.follow(invocation)
    failure = {"type": "WorkerLost", "message": "silent"}
    claim = {"kind": "started", "worker": "another", "lease_s": LEASE_S, "digest": train.digest}
    for body in ({"kind": "lost", "failure": failure, "due": followed.record.due.isoformat()}, claim):
        followed.append(lambda _, body=body: body)
    executor.close()
    record = ledger.read(invocation)
    assert (record.status, record.worker) == ("running", "another")


def test_a_store_that_does_not_answer_keeps_no_executor_from_ending(
    used: Context, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    store = FaultyStore(used.store)
    ledger = Ledger(used.store, actor="client")
    executor = Executor(used, Ledger(store, actor="executor", lease_s=LEASE_S))
    invocation = ledger.submit(train, {"folder": str(tmp_path)})
    eventually(lambda: executor.poll() >= 0 and ledger.find_status(invocation) == "running")
    with store.faults.inject(Fault.UNAVAILABLE_BEFORE, 1) as faults:
        executor.close()
    assert faults.struck is not None
    assert not executor._workers
    assert ledger.find_status(invocation) == "running"
