"""Conformance of durable invocations: the same tests in this process and on a Ray cluster."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from toque.functions import Context, Cron, Invocation, Retries, call, function, sleep, wait_for
from toque.functions.runtime import FixedClock
from toque.functions.runtime.durable.invocation import ledger_of, run_pending
from toque.functions.runtime.errors import Cancelled, InvocationFailed, KeyConflict
from toque.functions.runtime.triggers.schedule import Schedule, run_due

pytestmark = pytest.mark.usefixtures("backend", "used")


def leave(path: str, word: object = "x") -> int:
    with Path(path).open("a") as file:
        file.write(f"{word}\n")
    return len(Path(path).read_text().split())


def alive(pid: int) -> bool:
    """Whether a process runs, zombies excepted."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@function
def add(a: int, b: int = 2) -> int:
    return a + b


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
    time.sleep(600)  # the work that is killed at its time limit: nobody waits so long
    leave(path)


@function
def doze(path: str, naps: int = 1000) -> None:
    leave(path, "started")
    for _ in range(naps):
        time.sleep(0.02)
    leave(path, "ended")


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
def two_marks(path: str) -> list[str]:
    return [call(mark, path, "inner"), call(mark, path, "inner")]


@function(retries=Retries(2, backoff_s=0.01))
def nested(path: str) -> list[str]:
    words = call(two_marks, path)
    if leave(path, "tried") < 4:
        raise ConnectionError("stumbled")
    return words


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


@function(retries=Retries(3, backoff_s=0.01, on=(OSError,), never=(FileNotFoundError,)))
def lose_something(path: str) -> None:
    leave(path)
    raise FileNotFoundError("not on this shelf, and not on another")


@function
async def later(a: int) -> int:
    return a + 1


@function
async def count_slowly(n: int) -> AsyncIterator[int]:
    for each in range(n):
        yield each


@function(timeout_s=0.3)
async def dawdle() -> None:
    await asyncio.sleep(60)


@function(cache=True)
def dear(path: str, a: int) -> int:
    leave(path)
    return a * a


def hold_out(path: str) -> None:
    """Ignore the alarm of the timeout."""
    leave(path, os.getpid())
    while True:
        with suppress(BaseException):
            time.sleep(60)


@function(timeout_s=3)  # long enough to have begun, however busy the machine
def stubborn(path: str) -> None:
    hold_out(path)


@function
def stubborn_for_ever(path: str) -> None:
    hold_out(path)


@function
def record_tick(at: datetime, word: str) -> str:
    return f"{word} {at.isoformat()}"


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


def test_exhausted_retries_end_in_dead_letters_and_can_be_redriven(
    used: Context, traces: Any, eventually: Callable[..., None]
) -> None:
    invocation = wrong.submit(traces.path)
    with pytest.raises(InvocationFailed, match="ValueError: for good"):
        invocation.result(60)
    ledger = ledger_of(used)
    # The worker records the end itself; whoever attends to the queue enters it into the index before leaving it.
    eventually(lambda: run_pending(used) == 0)
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


def test_cancel_ends_a_durable_run(used: Context, traces: Any, eventually: Callable[..., None]) -> None:
    invocation = doze.submit(traces.path)
    run_pending(used)
    traces.wait_for(1)
    invocation.cancel()
    eventually(lambda: run_pending(used) == 0)
    with pytest.raises(Cancelled):
        invocation.result(60)
    assert traces.read() == ["started"]


def test_large_values_are_stored_by_reference(used: Context) -> None:
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


def test_calls_inside_a_step_are_part_of_it(traces: Any) -> None:
    invocation = nested.submit(traces.path)
    assert invocation.result(60) == ["inner", "inner"]
    assert [each.function for each in invocation.record().steps] == ["two_marks"]
    assert traces.read() == ["inner", "inner", "tried", "tried"]


def test_a_workflow_that_calls_another_step_on_replay_is_refused(traces: Any) -> None:
    with pytest.raises(InvocationFailed, match=r"StepMismatch.*step 0"):
        fickle.submit(traces.path).result(60)
    assert traces.read() == ["tried", "time1", "tried"]


def test_a_workflow_can_submit_and_wait(traces: Any) -> None:
    assert fan.submit(traces.path).result(60) == ["one", "two"]
    assert sorted(traces.read()) == ["one", "two"]


def test_a_workflow_waits_for_a_person_without_a_worker(
    used: Context, traces: Any, eventually: Callable[..., None]
) -> None:
    invocation = approved.submit(traces.path)
    eventually(lambda: run_pending(used) == 0)
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


def test_a_lost_worker_is_replaced_without_counting_an_attempt(traces: Any) -> None:
    invocation = die_once.submit(traces.path)
    assert invocation.result(60) == 1
    assert (invocation.record().attempts, invocation.record().lost) == (1, 1)


def test_never_excludes_a_subclass_of_a_retried_error(traces: Any) -> None:
    with pytest.raises(InvocationFailed, match="FileNotFoundError: not on this shelf"):
        lose_something.submit(traces.path).result(60)
    assert len(traces.read()) == 1


def test_coroutines_are_awaited_and_streams_collected() -> None:
    assert later.submit(1).result(60) == 2
    assert count_slowly.submit(3).result(60) == [0, 1, 2]
    with pytest.raises(InvocationFailed, match="TimedOut"):
        dawdle.submit().result(60)


def test_cache_serves_durable_runs(traces: Any) -> None:
    assert dear.submit(traces.path, 3).result(60) == dear.submit(traces.path, 3).result(60) == 9
    assert len(traces.read()) == 1


@pytest.mark.slow
def test_code_that_ignores_the_alarm_is_killed_at_its_timeout(
    traces: Any, eventually: Callable[..., None]
) -> None:
    invocation = stubborn.submit(traces.path)
    with pytest.raises(InvocationFailed, match="TimedOut"):
        invocation.result(60)
    (pid,) = traces.read()
    eventually(lambda: not alive(int(pid)))


def test_code_that_ignores_the_alarm_is_killed_when_cancelled(
    used: Context, traces: Any, eventually: Callable[..., None]
) -> None:
    invocation = stubborn_for_ever.submit(traces.path)
    run_pending(used)
    (pid,) = traces.wait_for(1)
    invocation.cancel()
    eventually(lambda: run_pending(used) == 0)
    eventually(lambda: not alive(int(pid)))
    assert invocation.status() == "cancelled"


def test_a_schedule_follows_an_injected_clock(used: Context) -> None:
    noon = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
    cron = Cron("0 * * * *", tick_as="at", arguments={"word": "tick"})
    told = []
    for hour in range(4):
        at = replace(used, clock=FixedClock(noon + timedelta(hours=hour, minutes=1)))
        for _ in range(2):  # a tick fires once, however often one looks
            fired = run_due(at, schedules=[Schedule("strike", record_tick, cron)])
            told += [Invocation[str](str(each.invocation), used).result(60) for each in fired]
    assert told == [f"tick 2024-03-01T{hour}:00:00+00:00" for hour in (13, 14, 15)]
