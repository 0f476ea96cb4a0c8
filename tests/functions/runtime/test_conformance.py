"""What a function promises, wherever it runs: the same tests in this process and on a Ray cluster."""

import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from functions import Context, Retries, call, context, function, sleep, wait_for
from functions.runtime.errors import (
    Cancelled,
    InvalidArguments,
    InvocationFailed,
    KeyConflict,
    RemoteError,
    TimedOut,
)
from functions.runtime.invocation import ledger_of, run_pending

pytestmark = pytest.mark.usefixtures("place", "used")


class Point(BaseModel):
    x: int
    at: datetime


class UnpicklableError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


def leave(path: str, word: object = "x") -> int:
    with Path(path).open("a") as file:
        file.write(f"{word}\n")
    return len(Path(path).read_text().split())


@function
def add(a: int, b: int = 2) -> int:
    return a + b


@function
def move(point: Point, by: int) -> Point:
    return Point(x=point.x + by, at=point.at)


@function
async def later(a: int) -> int:
    return a + 1


@function
def count_to(n: int) -> Iterator[int]:
    yield from range(n)


@function
async def count_slowly(n: int) -> AsyncIterator[int]:
    for each in range(n):
        yield each


@function
def refuse(a: int) -> int:
    raise KeyError(a)


@function
def break_oddly() -> int:
    raise UnpicklableError(1, 2)


@function(retries=Retries(3, backoff_s=0.01))
def third_time_lucky(path: str) -> int:
    if leave(path) < 3:
        raise ConnectionError("not yet")
    return 3


@function(retries=Retries(3, backoff_s=0.01, on=(ConnectionError,)))
def wrong(path: str) -> int:
    leave(path)
    raise ValueError("for good")


@function(timeout_s=0.5)
def sleep_long(path: str) -> None:
    time.sleep(20)
    leave(path)


@function
def doze(path: str, naps: int = 1000) -> None:
    leave(path, "started")
    for _ in range(naps):
        time.sleep(0.02)
    leave(path, "ended")


@function(cache=True)
def dear(path: str, a: int) -> int:
    leave(path)
    return a * a


@function
def who() -> str:
    return f"{context().actor} {context().store_url}"


@function
def blob(size: int) -> str:
    return "x" * size


@function
def not_a_number() -> float:
    return float("nan")


@function
def lie() -> int:
    return "no int"  # type: ignore[return-value]


@function
def mark(path: str, word: str) -> str:
    leave(path, word)
    return word


@function
def die_once(path: str) -> int:
    if leave(path) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


@function
def three_steps(path: str) -> list[str]:
    return [call(mark, path, word) for word in ("one", "two", "three")]


@function
def fan(path: str) -> list[str]:
    started = [mark.submit(path, word) for word in ("one", "two")]
    return [each.result() for each in started]


@function(retries=Retries(2, backoff_s=0.01))
def stumble_after_step(path: str) -> str:
    first = call(mark, path, "once")
    if leave(path, "tried") < 3:
        raise ConnectionError("stumbled")
    return first


@function(retries=Retries(3, backoff_s=0.01))
def fickle(path: str) -> str:
    call(mark, path, f"time{leave(path, 'tried')}")
    raise ConnectionError("stumbled")


@function
def approved(path: str) -> str:
    call(mark, path, "before")
    answer = wait_for("approval")
    call(mark, path, "after")
    return str(answer)


@function
def napping(path: str) -> str:
    call(mark, path, "before")
    sleep(0.3)
    return call(mark, path, "after")


def test_a_call_is_the_function_itself() -> None:
    assert add(1) == 3
    assert add.__name__ == "add"


def test_remote_gives_the_same_as_a_call() -> None:
    assert add.remote(1, b=5).result(timeout_s=60) == 6


def test_models_travel_typed() -> None:
    point = Point(x=1, at=datetime(2024, 1, 1, tzinfo=UTC))
    assert move.remote(point, 2).result(60) == Point(x=3, at=point.at)
    assert move.submit(point, 2).result(60) == Point(x=3, at=point.at)


def test_arguments_are_validated_before_anything_starts() -> None:
    with pytest.raises(InvalidArguments, match="a: Input should be a valid integer"):
        add.remote("one")  # type: ignore[arg-type]
    with pytest.raises(InvalidArguments, match="missing a required argument"):
        add.submit()


def test_coroutines_and_streams_are_seen_through() -> None:
    assert later.remote(1).result(60) == 2
    assert count_to.remote(3).result(60) == [0, 1, 2]
    assert count_slowly.remote(3).result(60) == [0, 1, 2]
    assert count_to.submit(3).result(60) == [0, 1, 2]


def test_map_keeps_the_order_with_few_in_flight() -> None:
    assert add.map(range(20), in_flight=3) == list(range(2, 22))
    assert add.map([(1, 1), {"a": 2, "b": 2}, 3]) == [2, 4, 5]


def test_map_returns_errors_as_values_where_asked() -> None:
    found = refuse.map([1, 2], return_errors=True)
    assert [str(each) for each in found] == ["1", "2"]
    assert all(isinstance(each, KeyError) for each in found)
    with pytest.raises(KeyError):
        refuse.map([1, 2])


def test_an_error_that_cannot_travel_is_told_in_words() -> None:
    with pytest.raises(RemoteError, match="UnpicklableError: 1 and 2"):
        break_oddly.remote().result(60)


def test_retries_until_it_succeeds(traces: Any) -> None:
    assert third_time_lucky.remote(traces.path).result(60) == 3
    assert len(traces.read()) == 3


def test_an_error_outside_the_filter_is_not_retried(traces: Any) -> None:
    with pytest.raises(ValueError, match="for good"):
        wrong.remote(traces.path).result(60)
    assert len(traces.read()) == 1


def test_a_timeout_kills_the_work(traces: Any) -> None:
    started = time.monotonic()
    with pytest.raises(TimedOut):
        sleep_long.remote(traces.path).result(60)
    assert time.monotonic() - started < 19
    assert traces.read() == []


def test_waiting_too_short_does_not_end_the_work(traces: Any) -> None:
    run = doze.remote(traces.path, naps=20)
    traces.wait_for(1)
    with pytest.raises(TimeoutError):
        run.result(timeout_s=0.01)
    run.result(60)
    assert traces.read() == ["started", "ended"]


def test_cancel_reaches_a_running_task(traces: Any) -> None:
    run = doze.remote(traces.path)
    traces.wait_for(1)
    run.cancel()
    with pytest.raises(Cancelled):
        run.result(60)
    assert traces.read() == ["started"]


def test_cache_answers_what_the_same_code_has_seen(traces: Any) -> None:
    assert dear.remote(traces.path, 3).result(60) == dear.remote(traces.path, 3).result(60) == 9
    assert dear.call_json({"path": traces.path, "a": 3}) == 9
    assert dear.remote(traces.path, 4).result(60) == 16
    assert len(traces.read()) == 2


def test_the_context_travels(used: Context) -> None:
    assert who.remote().result(60) == f"ada {used.store_url}"
    assert who.submit().result(60) == f"ada {used.store_url}"


def test_the_same_key_and_arguments_are_one_invocation(traces: Any) -> None:
    first, second = mark.submit(traces.path, "a", key="k"), mark.submit(path=traces.path, word="a", key="k")
    assert first.id == second.id
    assert first.result(60) == second.result(60) == "a"
    assert mark.submit(traces.path, "a", key="k").result(60) == "a"
    assert traces.read() == ["a"]
    with pytest.raises(KeyConflict, match="other arguments"):
        mark.submit(traces.path, "b", key="k")


def test_durable_retries_then_succeeds(traces: Any) -> None:
    invocation = third_time_lucky.submit(traces.path)
    assert invocation.result(60) == 3
    assert invocation.record().attempts == 3


def test_what_is_exhausted_goes_to_dead_letters_and_can_be_redriven(
    used: Context, traces: Any, soon: Callable[..., None]
) -> None:
    invocation = wrong.submit(traces.path)
    with pytest.raises(InvocationFailed, match="ValueError: for good"):
        invocation.result(60)
    ledger = ledger_of(used)
    # The worker records the end itself; whoever attends to the queue enters it into the index before leaving it.
    soon(lambda: run_pending(used) == 0)
    assert [each.id for each in ledger.invocations(status="dead")] == [invocation.id]
    record = invocation.record()
    assert record.failure is not None
    assert "in wrong" in record.failure.traceback
    assert ledger.redrive(invocation.id).status == "queued"
    assert ledger.dead_letters.all() == ()
    with pytest.raises(InvocationFailed):
        invocation.result(60)
    assert len(traces.read()) == 2


def test_a_durable_timeout_kills_the_work(traces: Any) -> None:
    invocation = sleep_long.submit(traces.path)
    with pytest.raises(InvocationFailed, match="TimedOut"):
        invocation.result(60)
    assert traces.read() == []


def test_cancel_ends_a_durable_run(used: Context, traces: Any, soon: Callable[..., None]) -> None:
    invocation = doze.submit(traces.path)
    run_pending(used)
    traces.wait_for(1)
    invocation.cancel()
    soon(lambda: run_pending(used) == 0)
    with pytest.raises(Cancelled):
        invocation.result(10)
    assert traces.read() == ["started"]


def test_large_values_travel_by_reference(used: Context) -> None:
    invocation = blob.submit(3 << 20)
    assert len(invocation.result(60)) == 3 << 20
    assert "sha256" in (invocation.record().result or {})


def test_nan_comes_back_as_nan() -> None:
    result = not_a_number.submit().result(60)
    assert result != result  # noqa: PLR0124  # that is what NaN does


def test_a_result_of_another_type_is_a_clear_error() -> None:
    with pytest.raises(InvocationFailed, match="lie returned str"):
        lie.submit().result(60)


def test_a_workflow_records_its_steps(traces: Any) -> None:
    invocation = three_steps.submit(traces.path)
    assert invocation.result(60) == ["one", "two", "three"]
    assert [each.function for each in invocation.record().steps] == ["mark", "mark", "mark"]
    assert traces.read() == ["one", "two", "three"]


def test_a_finished_step_never_runs_again(traces: Any) -> None:
    assert stumble_after_step.submit(traces.path).result(60) == "once"
    assert traces.read() == ["once", "tried", "tried"]


def test_a_workflow_that_asks_for_another_step_on_replay_is_told_so(traces: Any) -> None:
    with pytest.raises(InvocationFailed, match=r"StepMismatch.*step 0"):
        fickle.submit(traces.path).result(60)
    assert traces.read() == ["tried", "time1", "tried"]


def test_a_workflow_can_submit_and_wait(traces: Any) -> None:
    assert fan.submit(traces.path).result(60) == ["one", "two"]
    assert sorted(traces.read()) == ["one", "two"]


def test_a_workflow_waits_for_a_person_without_a_worker(
    used: Context, traces: Any, soon: Callable[..., None]
) -> None:
    invocation = approved.submit(traces.path)
    soon(lambda: run_pending(used) == 0)
    assert invocation.status() == "waiting"
    invocation.signal("approval", "yes")
    assert invocation.result(60) == "yes"
    assert traces.read() == ["before", "after"]


def test_a_workflow_waits_for_time(traces: Any) -> None:
    invocation = napping.submit(traces.path)
    assert invocation.result(60) == "after"
    assert traces.read() == ["before", "after"]


def test_every_invocation_has_a_receipt() -> None:
    invocation = add.submit(1)
    invocation.result(60)
    receipt = invocation.record().receipt
    assert receipt is not None
    assert (receipt.caller, receipt.function, receipt.attempts) == ("ada", "add", 1)
    assert receipt.digest == add.digest
    assert receipt.run_s > 0
    assert receipt.peak_memory_bytes > 1 << 20


def test_a_worker_that_dies_is_replaced_and_that_is_not_the_function_s_fault(traces: Any) -> None:
    invocation = die_once.submit(traces.path)
    assert invocation.result(60) == 1
    assert (invocation.record().attempts, invocation.record().lost) == (1, 1)
