"""Workers that wait with a function's imports done."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from functions import Context, function
from functions.runtime import catalog
from functions.runtime.durable.invocation import executor_of, run_pending
from functions.runtime.errors import DeclarationError, InvocationFailed
from functions.runtime.run import worker_pool as warm


@pytest.fixture(scope="module", autouse=True)
def pantry() -> Iterator[Any]:
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # of Ray's workers; put back after the module
    sys.path.insert(0, str(Path(__file__).parent))
    import pantry

    yield pantry
    catalog._declared.pop("taste")
    catalog._declared.pop("dawdle")
    sys.path.remove(str(Path(__file__).parent))


@pytest.mark.usefixtures("place")
def test_a_warm_worker_has_its_imports_done_before_there_is_work(
    used: Context, pantry: Any, soon: Callable[..., None]
) -> None:
    waiting = executor_of(used).warm_workers
    soon(lambda: run_pending(used) == 0 and waiting(pantry.taste) == 2)
    submitted_at = time.time()
    _, imported_at = pantry.taste.submit().result(60)
    assert imported_at < submitted_at
    soon(lambda: run_pending(used) == 0 and waiting(pantry.taste) == 2)


def test_a_cold_start_imports_when_there_is_work(used: Context, pantry: Any) -> None:
    submitted_at = time.time()
    assert pantry.cold.submit().result(60) > submitted_at


@pytest.mark.usefixtures("place")
def test_a_warm_worker_that_is_killed_is_replaced(
    used: Context, pantry: Any, soon: Callable[..., None]
) -> None:
    waiting = executor_of(used).warm_workers
    soon(lambda: run_pending(used) == 0 and waiting(pantry.taste) == 2)
    invocation = pantry.taste.submit(naps=1000)
    soon(lambda: run_pending(used) and invocation.status() == "running")
    invocation.cancel()
    soon(lambda: run_pending(used) == 0 and waiting(pantry.taste) == 2)
    pid, _ = pantry.taste.submit().result(60)
    assert pid != os.getpid()


def test_an_idle_one_that_dies_is_replaced(used: Context, pantry: Any, soon: Callable[..., None]) -> None:
    waiting = executor_of(used).warm_workers
    soon(lambda: run_pending(used) == 0 and waiting(pantry.taste) == 2)
    (first, _) = executor_of(used)._warm._of(pantry.taste)
    os.kill(first._child._pid, signal.SIGKILL)
    soon(lambda: first.state() == "gone")
    soon(lambda: run_pending(used) == 0 and waiting(pantry.taste) == 2)


@pytest.mark.usefixtures("place")
def test_a_timeout_holds_in_a_warm_worker(used: Context, pantry: Any, soon: Callable[..., None]) -> None:
    waiting = executor_of(used).warm_workers
    soon(lambda: run_pending(used) == 0 and waiting(pantry.dawdle) == 1)
    with pytest.raises(InvocationFailed, match="TimedOut"):
        pantry.dawdle.submit().result(60)


def test_one_that_cannot_start_is_not_started_over_and_over(
    pantry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    class Failing:
        def state(self) -> str:
            return "failed"

    monkeypatch.setattr(warm, "_begin", lambda function: begun.append(function) or Failing())
    pool = warm.Pool()
    for _ in range(5):
        pool.keep([pantry.dawdle])
    assert begun == [pantry.dawdle]


class Idle:
    """A worker without a job."""

    def __init__(self) -> None:
        self.killed = False

    def state(self) -> str:
        return "gone" if self.killed else "ready"

    def kill(self) -> None:
        self.killed = True


def test_who_was_hired_is_kept_while_a_run_waits_but_not_for_long(
    pantry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_begin", lambda _: Idle())
    pool, cold = warm.Pool(), pantry.cold
    first = pool.hire(cold)
    for _ in range(3):
        pool.dismiss([cold], wanted={cold.reference})
    assert pool.take(cold) is first
    pool.dismiss([cold], wanted=set())
    assert first.killed
    assert pool.take(cold) is None

    second = pool.hire(cold)
    pool.dismiss([cold], wanted={cold.reference})
    monkeypatch.setattr(warm, "IDLE_S", 0.0)
    pool.dismiss([cold], wanted={cold.reference})
    assert second.killed


def test_those_that_a_function_keeps_warm_are_not_dismissed(
    pantry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_begin", lambda _: Idle())
    pool = warm.Pool()
    pool.keep([pantry.taste])
    pool.hire(pantry.taste)
    assert pool.ready(pantry.taste) == 3
    pool.dismiss([pantry.taste], wanted=set())
    assert pool.ready(pantry.taste) == 2


def test_who_died_is_forgotten(pantry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_begin", lambda _: Idle())
    pool = warm.Pool()
    pool.hire(pantry.cold).kill()
    pool.dismiss([pantry.cold], wanted={pantry.cold.reference})
    assert pool._of(pantry.cold) == []


def test_scale_to_zero_is_the_default_and_a_negative_number_is_refused() -> None:
    @function
    def plain(a: int) -> int:
        return a

    assert plain.warm == 0
    with pytest.raises(DeclarationError, match="warm=-1"):

        @function(warm=-1)
        def below(a: int) -> int:
            return a
