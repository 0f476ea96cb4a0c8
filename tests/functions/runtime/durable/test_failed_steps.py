"""Steps whose errors or timeouts end an attempt run again in the next one, wherever they stand; what was finished or caught does not."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from tests.functions.runtime.durable.direct import run_once
from toque.functions import Context, Retries, call, function, wait_for, wait_for_event
from toque.functions.runtime.context import use_context
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.triggers.events import publish, wake_waiters

ran: Counter[str] = Counter()
failing: Counter[str] = Counter()


class CrashError(BaseException):
    """Ends an attempt with nothing recorded, as a kill does."""


@pytest.fixture(autouse=True)
def _afresh() -> None:
    ran.clear()
    failing.clear()


@function
def work(name: str) -> str:
    ran[name] += 1
    if failing[name] > 0:
        failing[name] -= 1
        raise ConnectionError(f"{name} is away")
    return name


@function
def undo(name: str) -> None:
    ran[f"undo {name}"] += 1


def run_to_the_end(used: Context, workflow: Any, arguments: dict[str, Any], most: int = 8) -> Record:
    invocation = Ledger(used.store, actor="client").submit(workflow, arguments)
    return run_on(used, workflow, invocation, most)


def run_on(used: Context, workflow: Any, invocation: str, most: int = 8) -> Record:
    for _ in range(most):
        record = run_once(used, workflow, invocation)
        if record.ended:
            return record
    return record


def redriven(used: Context, workflow: Any, record: Record) -> Record:
    Ledger(used.store, actor="client").redrive(record.id)
    return run_on(used, workflow, record.id)


def failed_at(number: int, style: str) -> None:
    """Body of three steps of which one may fail, be undone and be raised again, itself or as another error."""
    for place in range(3):
        if place != number:
            call(work, f"step {place}")
            continue
        try:
            call(work, f"step {place}")
        except ConnectionError as error:
            call(undo, "first")
            if style == "raised again":
                raise
            if style == "raised from":
                raise RuntimeError("cannot go on") from error
            if style == "raised during":
                raise RuntimeError("cannot go on")  # noqa: B904  # the error's context is the condition
            if style == "raised from None":
                raise RuntimeError("cannot go on") from None
            if style == "in a group":
                raise ExceptionGroup("several", [ValueError("another"), error])  # noqa: B904  # as above
            try:
                raise
            except ConnectionError:
                call(undo, "second")
                raise


@function(retries=Retries(3, backoff_s=0.001))
def retried(number: int, style: str) -> str:
    failed_at(number, style)
    return "done"


@function(retries=Retries(1))
def single(number: int, style: str) -> str:
    failed_at(number, style)
    return "done"


styles = pytest.mark.parametrize(
    "style",
    ["raised again", "raised from", "raised during", "raised from None", "in a group", "caught twice"],
)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("failures", [1, 2])
@styles
def test_a_retry_runs_the_failed_step_again_and_undoes_every_failure(
    used: Context, number: int, failures: int, style: str
) -> None:
    failing[f"step {number}"] = failures
    record = run_to_the_end(used, retried, {"number": number, "style": style})
    assert (record.status, record.attempts) == ("succeeded", failures + 1)
    undone = {"undo first": failures} | ({"undo second": failures} if style == "caught twice" else {})
    assert ran == {"step 0": 1, "step 1": 1, "step 2": 1} | {f"step {number}": failures + 1} | undone


@pytest.mark.parametrize("number", [0, 1, 2])
@styles
def test_a_redrive_runs_the_failed_step_again(used: Context, number: int, style: str) -> None:
    failing[f"step {number}"] = 1
    record = run_to_the_end(used, single, {"number": number, "style": style})
    assert record.status == "dead"
    assert redriven(used, single, record).status == "succeeded"
    assert ran[f"step {number}"] == 2
    assert ran["undo first"] == 1


@pytest.mark.parametrize("failures", [1, 2])
def test_finished_steps_after_a_failed_one_do_not_run_again(used: Context, failures: int) -> None:
    @function(retries=Retries(5, backoff_s=0.001))
    def collecting(number: int) -> str:
        errors: list[Exception] = []
        for place in range(5):
            try:
                call(work, f"step {place}")
            except ConnectionError as error:
                errors.append(error)
                call(undo, f"step {place}")
        if errors:
            raise ExceptionGroup("several", errors)
        return "done"

    failing.update({"step 1": failures, "step 3": 1})
    assert run_to_the_end(used, collecting, {"number": 1}).status == "succeeded"
    assert ran["step 1"] == failures + 1 == ran["undo step 1"] + 1
    assert [ran[f"step {place}"] for place in (0, 2, 4)] == [1, 1, 1]


def test_a_cleanup_runs_after_each_attempt_of_its_step(used: Context) -> None:
    @function(retries=Retries(3, backoff_s=0.001))
    def cleaned(number: int) -> str:
        try:
            return call(work, "work")
        finally:
            call(undo, "work")

    failing["work"] = 1
    assert run_to_the_end(used, cleaned, {"number": 1}).status == "succeeded"
    assert ran == {"work": 2, "undo work": 2}


def test_an_error_of_a_compensation_runs_that_again_and_not_the_step_whose_error_was_caught(
    used: Context,
) -> None:
    @function(retries=Retries(3, backoff_s=0.001))
    def compensated(number: int) -> str:
        try:
            call(work, "charge")
        except ConnectionError:
            call(work, "refund")
        return "done"

    failing.update({"charge": 5, "refund": 1})
    assert run_to_the_end(used, compensated, {"number": 1}).status == "succeeded"
    assert ran == {"charge": 1, "refund": 2}


def test_a_kill_between_a_compensation_and_the_end_repeats_neither(used: Context) -> None:
    kills = [CrashError()]

    @function(retries=Retries(3, backoff_s=0.001))
    def killed(number: int) -> str:
        try:
            return call(work, "charge")
        except ConnectionError:
            call(undo, "charge")
            if kills:
                raise kills.pop() from None
            raise

    failing["charge"] = 1
    ledger = Ledger(used.store, actor="client")
    invocation = ledger.submit(killed, {"number": 1})
    with pytest.raises(CrashError):
        run_once(used, killed, invocation)
    lost = {"kind": "lost", "failure": {"type": "Lost", "message": "killed"}}
    ledger.follow(invocation).append(lambda record: lost | {"due": record.due.isoformat()})
    assert run_once(used, killed, invocation).status == "failed"  # by what is recorded
    assert ran == {"charge": 1, "undo charge": 1}
    assert run_on(used, killed, invocation).status == "succeeded"
    assert ran == {"charge": 2, "undo charge": 1}


def waited(kind: str, timeout_s: float) -> Any:
    return (
        wait_for("ok", timeout_s=timeout_s)
        if kind == "signal"
        else wait_for_event("deliveries", where={"order": 7}, timeout_s=timeout_s)["order"]
    )


def give(used: Context, kind: str, invocation: str) -> None:
    if kind == "signal":
        Ledger(used.store, actor="client").signal(invocation, "ok", 7)
        return
    with use_context(used):
        publish("deliveries", {"order": 8})
        publish("deliveries", {"order": 7})
    wake_waiters(used)


@function(retries=Retries(2, backoff_s=0.001, on=(TimeoutError,)))
def approval(kind: str, timeout_s: float, place: int, noted: bool) -> int:  # noqa: FBT001  # an argument of a submission
    for step in range(place):
        call(work, f"before {step}")
    try:
        result: int = waited(kind, timeout_s)
    except TimeoutError:
        if noted:
            call(undo, "approval")
        raise
    return result


def arguments(kind: str, place: int, *, noted: bool) -> dict[str, Any]:
    return {"kind": kind, "timeout_s": 0.0, "place": place, "noted": noted}


@pytest.mark.parametrize("kind", ["signal", "event"])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("comes", ["before a retry", "while dead", "after a redrive", "never"])
def test_a_wait_that_ended_an_attempt_begins_anew(
    used: Context,
    kind: str,
    place: int,
    noted: bool,  # noqa: FBT001  # a parameter of the test
    comes: str,
) -> None:
    ledger = Ledger(used.store, actor="client")
    invocation = ledger.submit(approval, arguments(kind, place, noted=noted))
    assert run_once(used, approval, invocation).status == "failed"
    if comes == "before a retry":
        give(used, kind, invocation)
        assert run_once(used, approval, invocation).result == {"json": 7}
    else:
        dead = run_once(used, approval, invocation)
        assert (dead.status, dead.attempts) == ("dead", 2)
        if comes == "while dead" and kind == "event":  # a signal to what has ended is refused
            give(used, kind, invocation)
        ledger.redrive(invocation)
        if comes == "while dead":
            ledger.signal(invocation, "ok", 7)
        elif comes == "after a redrive":
            give(used, kind, invocation)
        record = run_once(used, approval, invocation)
        if comes == "while dead" and kind == "event" and record.status == "failed":
            wake_waiters(used)  # which the wait asked for anew
            record = run_once(used, approval, invocation)
        assert record.status == ("failed" if comes == "never" else "succeeded")
    assert all(ran[f"before {step}"] == 1 for step in range(place))


def test_a_wait_begun_anew_has_its_whole_time_and_one_that_was_caught_stays_over(used: Context) -> None:
    @function(retries=Retries(3, backoff_s=0.001, on=(TimeoutError, ConnectionError)))
    def twice(number: int) -> str:
        try:
            wait_for("first", timeout_s=0.0)
        except TimeoutError:
            call(work, "without")
        wait_for("second", timeout_s=None if ran["second"] else 0.0)
        return "done"

    ledger = Ledger(used.store, actor="client")
    invocation = ledger.submit(twice, {"number": 1})
    assert run_once(used, twice, invocation).status == "failed"
    for name in ("first", "second"):
        ledger.signal(invocation, name, 1)
    record = run_once(used, twice, invocation)
    assert (record.status, ran["without"]) == ("succeeded", 1)
    assert record.steps[1].result == {"json": []}


def test_a_timeout_that_ends_an_attempt_is_counted_from_the_next_one(used: Context) -> None:
    ledger = Ledger(used.store, actor="client")
    invocation = ledger.submit(approval, arguments("signal", 0, noted=False) | {"timeout_s": 0.05})
    record = run_once(used, approval, invocation)
    assert record.status == "waiting"
    while record.status == "waiting":
        first = record.due
        record = run_once(used, approval, invocation)
    assert record.status == "failed"
    record = run_once(used, approval, invocation)
    assert (record.status, record.due >= first + timedelta(seconds=0.05)) == ("waiting", True)
