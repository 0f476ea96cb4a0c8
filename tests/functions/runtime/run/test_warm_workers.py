"""Pool of idle workers with a function's imports done."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from toque.functions import Context, function
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.invocation import executor_of, run_pending
from toque.functions.runtime.errors import DeclarationError, InvocationFailed
from toque.functions.runtime.run import warm_workers


@pytest.fixture(scope="module", autouse=True)
def functions() -> Iterator[Any]:
    from tests.functions.runtime.run import (
        warm_functions,
    )  # late: executors of other modules start no such workers

    yield warm_functions
    catalog._declared.pop("warm_two")
    catalog._declared.pop("warm_slow")


@pytest.mark.usefixtures("backend")
def test_a_warm_worker_has_its_imports_done_before_there_is_work(
    used: Context, functions: Any, eventually: Callable[..., None]
) -> None:
    waiting = executor_of(used).warm_workers
    eventually(lambda: run_pending(used) == 0 and waiting(functions.warm_two) == 2)
    submitted_at = time.time()
    _, imported_at = functions.warm_two.submit().result(60)
    assert imported_at < submitted_at
    eventually(lambda: run_pending(used) == 0 and waiting(functions.warm_two) == 2)


def test_a_cold_start_imports_when_there_is_work(used: Context, functions: Any) -> None:
    submitted_at = time.time()
    assert functions.cold.submit().result(60) > submitted_at


@pytest.mark.usefixtures("backend")
def test_a_warm_worker_that_is_killed_is_replaced(
    used: Context, functions: Any, eventually: Callable[..., None]
) -> None:
    waiting = executor_of(used).warm_workers
    eventually(lambda: run_pending(used) == 0 and waiting(functions.warm_two) == 2)
    invocation = functions.warm_two.submit(naps=1000)
    eventually(lambda: run_pending(used) and invocation.status() == "running")
    invocation.cancel()
    eventually(lambda: run_pending(used) == 0 and waiting(functions.warm_two) == 2)
    pid, _ = functions.warm_two.submit().result(60)
    assert pid != os.getpid()


def test_an_idle_worker_that_dies_is_replaced(
    used: Context, functions: Any, eventually: Callable[..., None]
) -> None:
    waiting = executor_of(used).warm_workers
    eventually(lambda: run_pending(used) == 0 and waiting(functions.warm_two) == 2)
    (first, _) = executor_of(used)._launcher.pool._idle_of(functions.warm_two)
    os.kill(first._pid, signal.SIGKILL)
    eventually(lambda: first.state() == "gone")
    eventually(lambda: run_pending(used) == 0 and waiting(functions.warm_two) == 2)


@pytest.mark.usefixtures("backend")
def test_a_timeout_holds_in_a_warm_worker(
    used: Context, functions: Any, eventually: Callable[..., None]
) -> None:
    waiting = executor_of(used).warm_workers
    eventually(lambda: run_pending(used) == 0 and waiting(functions.warm_slow) == 1)
    with pytest.raises(InvocationFailed, match="TimedOut"):
        functions.warm_slow.submit().result(60)


def test_a_worker_that_cannot_start_is_not_retried_at_once(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Failing:
        def state(self) -> str:
            return "failed"

    monkeypatch.setattr(warm_workers, "_start", lambda function: started.append(function) or Failing())
    pool = warm_workers.WorkerPool()
    for _ in range(5):
        pool.replenish([functions.warm_slow])
    assert started == [functions.warm_slow]


class Idle:
    """Idle worker without a process."""

    def __init__(self, node: str | None = None) -> None:
        self.killed = False
        self._node = node

    def state(self) -> str:
        return "gone" if self.killed else "ready"

    def node(self) -> str | None:
        return self._node

    def kill(self) -> None:
        self.killed = True


def test_a_ready_worker_on_a_silent_node_is_given_nothing(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_workers, "_start", lambda *_: Idle("10.0.0.2:1"))
    pool = warm_workers.WorkerPool()
    started = pool.start_worker(functions.cold)
    assert pool.acquire(functions.cold, silent={"10.0.0.2:1"}) is None
    assert pool.acquire(functions.cold, silent={"10.0.0.3:1"}) is started


def test_an_extra_worker_is_kept_for_a_while_if_a_run_waits(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_workers, "_start", lambda *_: Idle())
    pool, cold = warm_workers.WorkerPool(), functions.cold
    first = pool.start_worker(cold)
    for _ in range(3):
        pool.evict_idle([cold], waiting={cold.reference})
    assert pool.acquire(cold) is first
    pool.evict_idle([cold], waiting=set())
    assert first.killed
    assert pool.acquire(cold) is None

    second = pool.start_worker(cold)
    pool.evict_idle([cold], waiting={cold.reference})
    monkeypatch.setattr(warm_workers, "IDLE_S", 0.0)
    pool.evict_idle([cold], waiting={cold.reference})
    assert second.killed


def test_warm_workers_are_not_evicted(functions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_workers, "_start", lambda *_: Idle())
    pool = warm_workers.WorkerPool()
    pool.replenish([functions.warm_two])
    pool.start_worker(functions.warm_two)
    assert pool.ready_count(functions.warm_two) == 3
    pool.evict_idle([functions.warm_two], waiting=set())
    assert pool.ready_count(functions.warm_two) == 2


def test_a_dead_worker_is_removed(functions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_workers, "_start", lambda *_: Idle())
    pool = warm_workers.WorkerPool()
    pool.start_worker(functions.cold).kill()
    pool.evict_idle([functions.cold], waiting={functions.cold.reference})
    assert pool._idle_of(functions.cold) == []


def test_scale_to_zero_is_the_default_and_a_negative_number_is_refused() -> None:
    @function
    def plain(a: int) -> int:
        return a

    assert plain.warm == 0
    with pytest.raises(DeclarationError, match="warm=-1"):

        @function(warm=-1)
        def below(a: int) -> int:
            return a
