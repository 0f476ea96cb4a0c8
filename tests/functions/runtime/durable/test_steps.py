"""Steps of workflows: failures that the body catches, records whose writes fail, and replays that differ from the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from tests.conditions.faults import Fault, FaultyStore
from tests.functions.runtime.durable.direct import run_once
from toque.functions import Context, Retries, call, function, sleep
from toque.functions.runtime.durable import store_requests
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.record import Record
from toque.registry.errors import Unavailable

ran: Counter[str] = Counter()
caught: list[tuple[str, str, tuple[Any, ...]]] = []
raised: list[Callable[[], Exception]] = []
ends: list[Callable[[], None]] = []


class OutOfStockError(Exception):
    def __init__(self, article: str, left: int) -> None:
        super().__init__(f"{left} of {article} left")
        self.article, self.left = article, left


class PlainArgumentsError(Exception):
    def __init__(self, article: str, *, left: int = 0) -> None:
        super().__init__(article)
        self.left = left

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.left}"


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (ran, caught, raised, ends):
        each.clear()
    monkeypatch.setattr(store_requests, "_FIRST_WAIT_S", 0.001)


@function
def charge(order: int) -> str:
    ran["charge"] += 1
    error = raised[0]()
    raise error


@function
def refund(order: int) -> str:
    ran["refund"] += 1
    return "refunded"


@function
def ship(order: int) -> str:
    ran["ship"] += 1
    if len(raised) > 1:
        error = raised.pop()()
        raise error
    return "shipped"


@function(retries=Retries(3, backoff_s=0.001))
def order(number: int) -> str:
    try:
        call(charge, number)
    except Exception as error:  # noqa: BLE001  # a body that catches whatever a step raises
        caught.append((type(error).__qualname__, str(error), error.args, vars(error)))
        call(refund, number)
    sleep(0)
    ran["waits"] += 1
    if ends:
        ends.pop()()
    return call(ship, number)


def attempts(used: Context, workflow: Any, most: int = 5) -> Record:
    """Submit a workflow and run attempts of it until it has ended."""
    ledger = Ledger(used.store, actor="client")
    invocation = ledger.submit(workflow, {"number": 7})
    for _ in range(most):
        record = run_once(replace(used, store=ledger.store), workflow, invocation)
        if record.ended:
            break
    return record


@pytest.mark.parametrize(
    "error",
    [
        lambda: ValueError("card declined"),
        lambda: KeyError("no such card"),  # its text is not its message
        lambda: OSError(2, "no such file", "/cards/7"),  # a subclass by its number
        lambda: OutOfStockError("socks", 3),  # cannot be made of its `args`
        lambda: PlainArgumentsError("socks", left=2),
        lambda: ValueError("not JSON", {1, 2}, object),
        lambda: ValueError(float("nan"), "ä\U0001f9e6"),
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no such byte"),  # made of bytes
        lambda: type("LocalError", (Exception,), {})("made here"),
        lambda: ExceptionGroup("several", [ValueError("one")]),  # made of errors
        lambda: PlainArgumentsError("socks", left=Decimal("2.50")),  # with what is no JSON
        lambda: ValueError("x" * (1 << 21)),  # larger than what an entry holds
    ],
)
def test_a_failure_that_the_body_catches_is_the_same_error_when_it_is_replayed(
    used: Context,
    error: Callable[[], Exception],
) -> None:
    def die() -> None:
        raise ConnectionError("after the failure was caught")

    raised.append(error)
    ends.append(die)
    record = attempts(used, order)
    assert (record.status, record.attempts) == ("succeeded", 2)
    assert ran == {"charge": 1, "refund": 1, "waits": 2, "ship": 1}
    first, again = caught
    assert first == again  # whatever a body reads of it


def test_a_failure_that_ends_the_attempt_is_run_again_and_one_caught_before_is_not(used: Context) -> None:
    raised.extend([lambda: ValueError("declined"), lambda: ConnectionError("the carrier is away")])
    record = attempts(used, order)
    assert (record.status, record.attempts) == ("succeeded", 2)
    assert ran == {"charge": 1, "refund": 1, "waits": 2, "ship": 2}
    assert [step.function for step in record.steps] == ["charge", "refund", "sleep", "ship"]


@function(retries=Retries(2, backoff_s=0.001))
def wrapped(number: int) -> str:
    try:
        return call(ship, number)
    except ConnectionError as error:
        raise RuntimeError("the order cannot be shipped") from error


def test_a_failure_that_the_body_raises_as_another_is_run_again(used: Context) -> None:
    raised.extend([ValueError, lambda: ConnectionError("away")])
    assert attempts(used, wrapped).result == {"json": "shipped"}
    assert ran["ship"] == 2


def test_a_redriven_workflow_runs_the_step_again_that_ended_it(used: Context) -> None:
    @function
    def once(number: int) -> str:
        return call(ship, call(refund, number) and number)

    raised.extend([ValueError, lambda: ConnectionError("away")])
    record = attempts(used, once)
    assert record.status == "dead"
    ledger = Ledger(used.store, actor="client")
    ledger.redrive(record.id)
    assert run_once(used, once, record.id).status == "succeeded"
    assert ran == {"refund": 1, "ship": 2}


@function
def steps(number: int) -> str:
    call(refund, number)
    sleep(0)
    return call(ship, number)


@pytest.mark.parametrize(
    "fault", [Fault.UNAVAILABLE_BEFORE, Fault.UNAVAILABLE_AFTER, Fault.TIMED_OUT, Fault.FORBIDDEN]
)
@pytest.mark.parametrize("at", range(1, 6))
def test_a_write_of_an_attempt_that_fails_once_repeats_no_effect(
    used: Context, fault: Fault, at: int
) -> None:
    store = FaultyStore(used.store)
    invocation = Ledger(used.store, actor="client").submit(steps, {"number": 7})
    faulty = replace(used, store=store)

    def creates_after_the_claim(request: Any) -> bool:
        return (
            request.name == "create"
            and request.key.startswith("invocations/")
            and "00000001" not in request.key
        )

    with store.faults.inject(fault, at, matches=creates_after_the_claim):
        record = run_once(faulty, steps, invocation)
    assert (record.status, record.attempts, record.lost) == ("succeeded", 1, 0)
    assert ran == {"refund": 1, "ship": 1}
    assert [step.function for step in record.steps] == ["refund", "sleep", "ship"]


def test_a_body_does_not_go_on_from_a_step_that_cannot_be_recorded(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    @function
    def careless(number: int) -> str:
        try:
            call(refund, number)
        except Exception:  # noqa: BLE001  # as above
            ran["went on"] += 1
        return call(ship, number)

    monkeypatch.setattr(store_requests, "STORE_RETRY_S", 0.0)
    store = FaultyStore(used.store)
    invocation = Ledger(used.store, actor="client").submit(careless, {"number": 7})
    with (
        store.faults.inject(Fault.UNAVAILABLE_BEFORE, 1, matches=lambda request: "00000002" in request.key),
        pytest.raises(Unavailable),
    ):
        run_once(replace(used, store=store), careless, invocation)
    assert ran == {"refund": 1}
    assert Ledger(used.store, actor="client").read(invocation).status == "running"  # until its lease ends


def test_a_superseded_run_begins_no_further_step_whatever_its_body_catches(used: Context) -> None:
    ledger = Ledger(used.store, actor="client")

    @function
    def careless(number: int) -> str:
        for _ in range(3):
            try:
                call(refund, number)
            except Exception:  # noqa: BLE001  # as above
                ran["caught"] += 1
            ledger.cancel(invocation)
        return "done"

    invocation = ledger.submit(careless, {"number": 7})
    assert run_once(used, careless, invocation).status == "cancelled"
    assert ran["refund"] <= 2  # the second is under way when the record is read


@pytest.mark.parametrize("swallow", [True, False])
@pytest.mark.parametrize("change", ["another function", "other arguments", "fewer", "none"])
def test_a_replay_unlike_its_record_ends_the_workflow(used: Context, change: str, swallow: bool) -> None:  # noqa: FBT001  # a parameter of the test
    replays = Counter[str]()

    def third(number: int, *, replayed: bool) -> None:
        if replayed and change in {"fewer", "none"}:
            return
        try:
            call(ship if replayed and change == "another function" else refund, number + replayed)
        except Exception:  # as above
            if not swallow:
                raise

    @function(retries=Retries(2, backoff_s=0.001))
    def fickle(number: int) -> str:
        replays["runs"] += 1
        replayed = replays["runs"] > 1
        if not (replayed and change == "none"):
            call(refund, number)
        third(number, replayed=replayed)
        if not replayed:
            raise ConnectionError("the first attempt ends here")
        return "done"

    record = attempts(used, fickle)
    assert record.status == "dead"
    assert record.failure is not None
    assert record.failure.type == "StepMismatch"


def test_steps_that_an_older_release_recorded_are_replayed(used: Context) -> None:
    ledger = Ledger(used.store, actor="client")
    invocation = ledger.submit(steps, {"number": 7})
    run_once(used, steps, invocation)
    journal, old = ledger.journal(invocation), ledger.journal("0" * 32)
    for entry in list(journal.entries())[:-2]:
        old.append({name: value for name, value in entry.body.items() if name != "number"}, at=entry.number)
    followed = ledger.follow("0" * 32)
    followed.append(lambda _: {"kind": "cancelled"})
    ledger.redrive("0" * 32)
    assert run_once(used, steps, "0" * 32).status == "succeeded"
    assert ran == {"refund": 1, "ship": 2}
