"""Bad input and faults: each is a clear error or a retry, and nothing is lost or done twice."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from toque.functions import Context, Retries, function
from toque.functions.runtime.durable import store_requests
from toque.functions.runtime.durable.attempt import RESUME_PATIENCE_S, Attempt, run_attempt
from toque.functions.runtime.durable.executor import Executor
from toque.functions.runtime.durable.invocation import Invocation, executor_of, ledger_of
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.errors import InvalidResult, InvocationFailed
from toque.registry import Unavailable, open_store, utc_now
from toque.registry.store.object_store import ObjectStore


@function
def handle() -> Any:
    """Return a result without a JSON form."""
    return threading.Lock()


@function(timeout_s=30)
def handle_in_a_process() -> Any:
    return threading.Lock()


@function
def mark(path: str) -> int:
    with open(path, "a") as file:  # noqa: PTH123
        file.write("x\n")
    return 7


@function(retries=Retries(max_attempts=2, backoff_s=3600.0))
def mark_and_fail(path: str) -> int:
    mark.body(path)
    raise ConnectionError("not today")


class FaultyStore:
    """Store that fails the requests numbered in `away`, before or after their effect."""

    def __init__(self, store: ObjectStore, away: range, *, after_effect: bool) -> None:
        self.store = store
        self.away = away
        self.after_effect = after_effect
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name not in {"get", "find", "create", "put", "list", "delete"}:
            return method

        def asked(*args: Any, **kwargs: Any) -> Any:
            number, self.asked = self.asked, self.asked + 1
            if number in self.away and not self.after_effect:
                raise Unavailable("503 Slow Down")
            result = method(*args, **kwargs)
            if number in self.away:
                raise Unavailable("timed out waiting for the answer")
            return result

        return asked

    def __reduce__(self) -> Any:
        return open_store, (self.store.url,)


def away(used: Context, first: int, count: int = 1, *, after_effect: bool) -> Context:
    store: Any = FaultyStore(used.store, range(first, first + count), after_effect=after_effect)
    return replace(used, store=store)


@pytest.mark.parametrize("target", [handle, handle_in_a_process], ids=["thread", "process"])
def test_a_result_without_a_json_form_is_refused_by_every_kind_of_run(used: Context, target: Any) -> None:
    with pytest.raises(InvalidResult, match=r"returned .*lock"):
        target.call_json({})
    with pytest.raises(InvalidResult, match="lock"):
        target.signature.dump_result(target.remote_json({}).result(60))
    with pytest.raises(InvocationFailed, match=r"InvalidResult: .*returned .*lock"):
        target.submit().result(60)


@pytest.mark.parametrize("after_effect", [False, True], ids=["503", "timeout"])
@pytest.mark.parametrize("number", range(5))
def test_a_submission_repeated_with_its_key_runs_once(
    used: Context, traces: Any, eventually: Callable[..., None], number: int, *, after_effect: bool
) -> None:
    faulty = away(used, number, after_effect=after_effect)
    first = Ledger(faulty.store, actor="ada")
    with suppress(Unavailable):
        first.submit(mark, {"path": traces.path}, key="k")
    assert faulty.store.asked > number  # it did meet the fault
    repeated = first.submit(mark, {"path": traces.path}, key="k")
    assert Invocation[int](repeated, used).result(60) == 7
    assert first.submit(mark, {"path": traces.path}, key="k") == repeated
    eventually(lambda: executor_of(used).poll() == 0)
    assert traces.read() == ["x"]


@pytest.mark.parametrize("after_effect", [False, True], ids=["503", "timeout"])
@pytest.mark.parametrize("count", [1, 4])
def test_a_finished_run_is_recorded_after_a_store_outage_and_not_repeated(
    used: Context, traces: Any, monkeypatch: pytest.MonkeyPatch, count: int, *, after_effect: bool
) -> None:
    monkeypatch.setattr(store_requests.time, "sleep", lambda _: None)
    identifier = ledger_of(used).submit(mark, {"path": traces.path})
    followed = ledger_of(used).follow(identifier)
    # Request 0 asks whether the store has audit keys, 1 is the claim, then comes the result.
    faulty = away(used, 2, count, after_effect=after_effect)
    run_attempt(
        Attempt(
            mark,
            followed.record,
            followed.head,
            faulty,
            lease_s=15.0,
            code_patience_s=RESUME_PATIENCE_S,
            sent_at=utc_now(),
        )
    )
    record = ledger_of(used).read(identifier)
    assert (record.status, record.attempts, record.length) == ("succeeded", 1, 3)
    assert traces.read() == ["x"]


class JumpingClock:
    """Wall clock that a test sets."""

    def __init__(self) -> None:
        self.by = timedelta(0)

    def __call__(self) -> datetime:
        return utc_now() + self.by


@pytest.mark.parametrize("jump", [timedelta(days=-1), timedelta(days=1)], ids=["back", "forth"])
def test_a_clock_jump_before_the_start_delays_nothing(
    used: Context, traces: Any, eventually: Callable[..., None], jump: timedelta
) -> None:
    clock = JumpingClock()
    ledger = Ledger(used.store, actor="ada", clock=clock)
    executor = Executor(used, ledger)
    identifier = ledger.submit(mark, {"path": traces.path})
    clock.by = jump
    eventually(lambda: executor.poll() == 0)
    assert ledger.read(identifier).status == "succeeded"
    assert traces.read() == ["x"]
    executor.close()


def test_a_clock_jump_during_backoff_loses_nothing(
    used: Context, traces: Any, eventually: Callable[..., None]
) -> None:
    clock = JumpingClock()
    ledger = Ledger(used.store, actor="ada", clock=clock)
    executor = Executor(used, ledger)
    identifier = ledger.submit(mark_and_fail, {"path": traces.path})
    eventually(lambda: executor.poll() and ledger.read(identifier).status == "failed")
    clock.by = -timedelta(days=1)
    executor.poll()
    assert (ledger.read(identifier).status, len(traces.read())) == ("failed", 1)
    clock.by = timedelta(days=1)
    eventually(lambda: executor.poll() == 0)
    assert (ledger.read(identifier).status, len(traces.read())) == ("dead", 2)
    executor.close()
