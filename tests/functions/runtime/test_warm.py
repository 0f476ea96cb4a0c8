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
from functions.runtime import catalog, warm
from functions.runtime.errors import DeclarationError, InvocationFailed
from functions.runtime.invocation import executor_of, run_pending


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


def test_scale_to_zero_is_the_default_and_a_negative_number_is_refused() -> None:
    @function
    def plain(a: int) -> int:
        return a

    assert plain.warm == 0
    with pytest.raises(DeclarationError, match="warm=-1"):

        @function(warm=-1)
        def below(a: int) -> int:
            return a
