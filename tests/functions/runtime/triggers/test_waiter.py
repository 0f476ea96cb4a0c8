"""Workflows that wait for a signal, an event or a deadline, and hold no worker meanwhile."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from toque.functions import Context, Invocation, call, function, wait_for, wait_for_event
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import executor_of, ledger_of, run_pending
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.errors import FunctionError, InvocationFailed
from toque.functions.runtime.triggers import events
from toque.functions.runtime.triggers.events import publish, run_events, wake_waiters


@function
def note(path: str, word: str) -> str:
    with open(path, "a") as file:  # noqa: PTH123
        file.write(f"{word}\n")
    return word


@function
def wait_for_order(path: str, order: int) -> dict[str, Any]:
    call(note, path, "before")
    delivered = wait_for_event("deliveries", where={"order": order})
    call(note, path, "after")
    return delivered


@function
def approve(timeout_s: float) -> str:
    try:
        return str(wait_for("approval", timeout_s=timeout_s))
    except TimeoutError as error:
        return f"late: {error}"


@function
def impatient() -> dict[str, Any]:
    return wait_for_event("deliveries", timeout_s=0.2)


def idle(used: Context, invocation: Invocation[Any]) -> bool:
    run_pending(used)
    return invocation.status() == "waiting"


@pytest.mark.usefixtures("backend")
def test_a_workflow_waits_for_an_event_without_a_worker(
    used: Context, traces: Any, eventually: Callable[..., None]
) -> None:
    invocation = wait_for_order.submit(traces.path, 2)
    eventually(lambda: idle(used, invocation))
    eventually(lambda: run_pending(used) == 0)
    assert invocation.record().waits_for == "event 2 deliveries"
    publish("deliveries", {"order": 1})
    assert run_events(used) == 0
    assert invocation.status() == "waiting"
    publish("deliveries", {"order": 2, "by": "bike"})
    publish("deliveries", {"order": 2, "by": "van"})
    run_events(used)
    assert invocation.result(60) == {"order": 2, "by": "bike"}
    assert traces.read() == ["before", "after"]
    assert events._waiters(used).refresh() == {}


def test_an_event_between_start_and_wait_is_not_missed(
    used: Context, traces: Any, eventually: Callable[..., None]
) -> None:
    publish("deliveries", {"order": 3, "by": "yesterday"})
    invocation = wait_for_order.submit(traces.path, 3)
    publish("deliveries", {"order": 3, "by": "bike"})
    eventually(lambda: idle(used, invocation))
    assert wake_waiters(used) == 1
    assert invocation.result(60)["by"] == "bike"


def test_the_wait_survives_every_process(used: Context, traces: Any, eventually: Callable[..., None]) -> None:
    invocation = wait_for_order.submit(traces.path, 4)
    executor = executor_of(used)
    eventually(lambda: executor.poll() < 2 and invocation.record().steps)
    pids = [worker._pid for sent in executor._workers.values() for worker in sent.workers.values()]
    for pid in pids:  # in the middle of beginning to wait, or just after
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: idle(used, invocation))
    publish("deliveries", {"order": 4})
    fresh = Executor(used, Ledger(used.store, actor="another"))
    events._wakers.clear()  # what this process knew
    eventually(lambda: wake_waiters(used) == 0 and fresh.poll() == 0)
    assert invocation.result(5) == {"order": 4}
    assert traces.read() == ["before", "after"]


@pytest.mark.usefixtures("backend")
def test_the_wait_ends_at_its_deadline(used: Context, eventually: Callable[..., None]) -> None:
    invocation = approve.submit(0.3)
    eventually(lambda: idle(used, invocation))
    assert invocation.result(60).startswith("late: ")
    assert "nobody gave the signal 'approval' within 0.3 s" in invocation.result(1)
    with pytest.raises(InvocationFailed, match="TimeoutError"):
        impatient.submit().result(60)


def test_a_signal_within_the_deadline_counts(used: Context, eventually: Callable[..., None]) -> None:
    invocation = approve.submit(600)
    eventually(lambda: idle(used, invocation))
    invocation.signal("approval", "yes")
    assert invocation.result(60) == "yes"


def test_a_signal_before_the_wait_is_kept(used: Context) -> None:
    invocation = approve.submit(600)
    invocation.signal("approval", "yes")
    assert invocation.result(60) == "yes"


def test_a_cancelled_workflow_is_no_longer_a_waiter(
    used: Context, traces: Any, eventually: Callable[..., None]
) -> None:
    invocation = wait_for_order.submit(traces.path, 5)
    eventually(lambda: idle(used, invocation))
    invocation.cancel()
    assert wake_waiters(used) == 0
    assert events._waiters(used).refresh() == {}


@pytest.mark.parametrize("event_first", [False, True])
def test_a_deleted_workflow_is_no_longer_a_waiter(
    used: Context,
    traces: Any,
    eventually: Callable[..., None],
    event_first: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    invocation = wait_for_order.submit(traces.path, 5)
    eventually(lambda: idle(used, invocation))
    wake_waiters(used)  # looks for waiters that have ended, next in a minute
    invocation.cancel()
    assert ledger_of(used).delete(invocation.id)
    if event_first:
        publish("deliveries", {"order": 5})
    else:
        events._wakers.clear()  # as after a minute
    wake_waiters(used)
    assert events._waiters(used).refresh() == {}


def test_waiting_needs_a_durable_run(used: Context) -> None:
    with pytest.raises(FunctionError, match="wait_for_event needs a durable run"):
        wait_for_event("deliveries")
    assert ledger_of(used).find_status("nothing") is None
