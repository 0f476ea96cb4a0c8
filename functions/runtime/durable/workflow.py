"""Workflows: durable runs whose steps are recorded before the next begins, and whose waits hold no worker.

A workflow is a function that calls functions. When it runs again after a crash, its body starts from the top, and each
recorded step returns its recorded result, or raises its recorded error: only unfinished steps run. So the body between steps
must be deterministic, and an effect that should happen once belongs in a step.
An error is recorded as its class by name and its arguments as JSON, never a pickle.
A run that is preempted is asked to yield by an entry of its invocation, saves its state, and waits in the queue again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from toque.functions.runtime.context import Context
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger
from toque.functions.runtime.durable.record import Failure, Record, Step, StepFailure
from toque.functions.runtime.durable.store_requests import with_patience
from toque.functions.runtime.durable.values import get_value, put_value
from toque.functions.runtime.errors import Cancelled, FunctionError, RemoteError, SecretLeaked, StepMismatch
from toque.functions.runtime.receipt import Usage
from toque.functions.runtime.reference import resolve
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.interruption import Interruptible
from toque.functions.runtime.secret import redact
from toque.functions.runtime.telemetry import span
from toque.registry.code_digest import reference
from toque.registry.errors import Forbidden, Unavailable
from toque.registry.store import ObjectStore

T = TypeVar("T")
_READ_EVERY_S = 5.0  # of the notice to yield


class Suspended(BaseException):
    """Raised to unwind a workflow that has to wait; not an Exception, so that bodies do not catch it."""

    def __init__(self, *, due: datetime | None = None, signal: str | None = None) -> None:
        super().__init__(due or signal)
        self.due = due
        self.signal = signal


class Preempted(BaseException):  # no Exception, so that bodies do not catch it
    """Raised by a run that was asked to yield, once its state is saved: it is queued again, and counts as no failure."""


class Unrecorded(
    BaseException
):  # no Exception, as above: a body must not go on from a step that the next attempt knows nothing of
    """Raised to unwind a run whose store did not take a step's record in time; `cause` is the store's error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass
class Run:
    """Attempt of a durable invocation while it runs in this process.

    used: reads what it has used so far; body: ends it once the record is no longer this worker's; mismatch: of a step with its record,
    which ends the run even if the body goes on.
    """

    ledger: Ledger
    followed: FollowedRecord
    worker: str
    used: Callable[[], Usage | None] = lambda: None
    body: Interruptible = field(default_factory=Interruptible)
    mismatch: StepMismatch | None = None
    unfinished: int | None = None
    _cursor: int = 0
    _children: int = 0
    _raised: list[tuple[int, Exception]] = field(
        default_factory=list
    )  # numbers and errors of the steps that failed
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def id(self) -> str:
        """Id of the invocation that runs."""
        return self.followed.record.id

    def step(
        self, name: str, arguments: Mapping[str, Any], compute: Callable[[], Any], *, is_wait: bool = False
    ) -> Any:
        """Return the recorded JSON result of the next step, or raise its recorded error; if it is not recorded, run and record `compute()`.

        is_wait: it has no effect, and begins anew after a step that runs again.
        Raises: StepMismatch if the record has another step at this position; Cancelled if the run no longer is this worker's.
        """
        with self._lock:
            number, self._cursor = self._cursor, self._cursor + 1
        digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:16]
        recorded = _find_step(self.followed.record, number)
        self._check(number, recorded, name, digest)
        if recorded is None:
            step = {"number": number, "function": name, "arguments": digest}
            return (self._run_step if is_wait else self._begin_step)(step, compute)
        if recorded.failure is None:
            stored: dict[str, Any] = recorded.result or {}
            return with_patience(lambda: get_value(self.ledger.store, stored))
        failure = recorded.failure
        raise self.note_raised(number, with_patience(lambda: get_error(self.ledger.store, failure)))

    def _check(self, number: int, recorded: Step | None, name: str, digest: str) -> None:
        """Check that the next step may begin, or be answered from the record. Raises: as `step`."""
        if self.mismatch is None and recorded and (recorded.function, recorded.arguments) != (name, digest):
            self.mismatch = StepMismatch(
                f"{self.id}: step {number} was {recorded.function} and is now {name}, or its arguments differ; "
                "between steps a workflow must not depend on time, chance or outside state"
            )
        if self.mismatch is not None:
            raise self.mismatch
        if not self.is_current:
            raise self._superseded()

    def _begin_step(self, step: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """Run a step that has no record at its place, unless an earlier attempt finished it after the step that ended it."""
        handled = self._find_failed(sys.exception())
        if handled is not None:
            return self._run_step(step | {"handles": handled}, compute)
        pool = self.followed.record.finished_later
        finished = next((done for done in pool if done.is_call(step["function"], step["arguments"])), None)
        if finished is None:
            return self._run_step(step, compute)
        stored: dict[str, Any] = finished.result or {}
        result = with_patience(lambda: get_value(self.ledger.store, stored))
        self._record_step({"kind": "step", "result": stored, "moved": True} | step)
        return result

    def _run_step(self, step: dict[str, Any], compute: Callable[[], Any]) -> Any:
        number = step["number"]
        try:
            with span(f"step {step['function']}", **{"toque.step": number}):
                result = compute()
            stored = self._recorded(lambda: put_value(self.ledger.store, result))
        except Exception as error:
            failure = self._recorded(partial(put_error, self.ledger.store, error))
            self._record_step({"kind": "step_failed", "failure": failure.model_dump()} | step)
            again = get_error(self.ledger.store, failure)
            if is_whole(error, again):
                self.note_raised(number, error)
                raise
            raise self.note_raised(number, again) from error  # as each replay will
        self._record_step({"kind": "step", "result": stored} | step)
        return result

    def _record_step(self, body: dict[str, Any]) -> None:
        """Append the entry of a step, unless it is there: of an append whose answer was lost. Raises: Cancelled; Unrecorded."""
        number = body["number"]

        def decide(record: Record) -> dict[str, Any] | None:
            return body if self.is_current and _find_step(record, number) is None else None

        def append() -> None:
            with self._lock:
                self.followed.append(decide)

        self._recorded(append)
        if _find_step(self.followed.record, number) is None:
            raise self._superseded()

    def _recorded(self, write: Callable[[], T]) -> T:
        try:
            return with_patience(write)
        except (Unavailable, Forbidden) as error:
            raise Unrecorded(error) from error

    def note_raised(self, number: int, error: Exception) -> Exception:
        """Note an error that the step of this number raises into the body; returns it."""
        self._raised.append((number, error))
        return error

    def note_uncaught(self, error: Exception) -> None:
        """Note the error that ended the body: if a step's led to it, that step is unfinished and runs again in the next attempt."""
        self.unfinished = self._find_failed(error)

    def _find_failed(self, error: BaseException | None) -> int | None:
        """Find the step whose error this is, or led to it; of several the nearest, as an error of what handles another comes after it."""
        pending, seen = deque([error]), list[BaseException]()
        while pending:
            cause = pending.popleft()
            if cause is None or any(cause is other for other in seen):
                continue
            seen.append(cause)
            numbers = [number for number, raised in self._raised if raised is cause]
            if numbers:
                return min(numbers)
            if isinstance(cause, BaseExceptionGroup):
                pending.extend(cause.exceptions)
            pending.append(cause.__cause__)
            pending.append(cause.__context__)
        return None

    def check_replayed(self) -> None:
        """Check that the body used all recorded steps, as they are recorded. Raises: StepMismatch."""
        steps = self.followed.record.steps
        if self.mismatch is None and self._cursor < len(steps):
            self.mismatch = StepMismatch(
                f"{self.id}: the body ended after {self._cursor} of {len(steps)} recorded steps, before {steps[self._cursor].function}; "
                "between steps a workflow must not depend on time, chance or outside state"
            )
        if self.mismatch is not None:
            raise self.mismatch

    def append(self, body: Mapping[str, Any]) -> None:
        """Append an entry of this attempt. Raises: Cancelled if the record no longer belongs to this worker."""
        with self._lock:
            if not self.followed.append(lambda _: dict(body) if self.is_current else None):
                raise self._superseded()

    def _superseded(self) -> Cancelled:
        return Cancelled(f"{self.id} is {self.followed.record.status}; this run of it ends")

    @property
    def is_current(self) -> bool:
        """Whether the record still belongs to this worker."""
        return self.followed.record.status == "running" and self.followed.record.worker == self.worker

    def is_superseded(self) -> bool:
        """Read whether the record has passed to another worker, or ended, meanwhile: one read. Raises: Unavailable.

        Without waiting for an append that is under way, which finds out itself: a sign of life must not be late for it.
        """
        if self._lock.acquire(blocking=False):
            try:
                self.followed.refresh()
            finally:
                self._lock.release()
        return not self.is_current

    def is_deleted(self) -> bool:
        """Read whether the invocation was deleted meanwhile, after which no entry says that it ended: one read. Raises: Unavailable."""
        return self.followed.journal.find(0) is None

    @property
    def position(self) -> int:
        """Number of steps that the body has reached so far."""
        return self._cursor

    def child_key(self) -> str:
        """Make the key of the next invocation that this one submits."""
        with self._lock:
            number, self._children = self._children, self._children + 1
        return f"{self.id}/{number}"


def _find_step(record: Record, number: int) -> Step | None:
    """Find a step by its number; as a rule it stands at that place."""
    steps = record.steps
    if number < len(steps) and steps[number].number == number:
        return steps[number]
    return next((step for step in steps if step.number == number), None)


_current: ContextVar[Run | None] = ContextVar("toque_run", default=None)


def current_run() -> Run | None:
    """Return the durable run of this context; None outside of one."""
    return _current.get()


@contextmanager
def use_run(run: Run | None) -> Iterator[None]:
    """Make `current_run()` return `run` within the block."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def run_step(function: DeclaredFunction, arguments: dict[str, Any]) -> Any:
    """Run a function with its retries and timeout and wait for it; within a durable run this is a step."""
    run = current_run()
    if run is None:
        return function.start(arguments).result()

    def compute() -> Any:
        with use_run(None):  # calls inside a step are part of it, not steps of their own
            return function.signature.dump_result(function.start(arguments).result())

    result = run.step(function.name, function.signature.dump(arguments), compute)
    return function.signature.load_result(result)


def sleep(seconds: float) -> None:
    """Suspend the workflow for so many seconds, in which it holds no worker.

    Raises: FunctionError outside a durable run.
    """
    run = require_run("sleep")
    due = _recorded_deadline(run, seconds)
    if run.ledger.clock() < due:
        raise Suspended(due=due)


def wait_for(signal: str, *, timeout_s: float | None = None) -> Any:
    """Wait for a signal, an approval for instance, and return its JSON value; no worker is held meanwhile.

    A signal has one value: waiting for its name again returns the same one.
    Raises: TimeoutError after timeout_s; FunctionError outside a durable run.
    """
    run = require_run("wait_for")
    begin = run.position  # whoever waits anew has the whole time again
    until = None if timeout_s is None else _recorded_deadline(run, timeout_s)

    def received() -> list[Any]:
        signals = run.followed.record.signals
        if signal in signals:
            return [signals[signal]]
        if until is not None and run.ledger.clock() >= until:
            return []
        raise Suspended(due=until, signal=signal)

    found = run.step("wait_for", {"signal": signal, "timeout_s": timeout_s}, received, is_wait=True)
    if not found:
        late = TimeoutError(f"{run.id}: nobody gave the signal {signal!r} within {timeout_s} s")
        raise run.note_raised(begin, late)
    return found[0]


def _recorded_deadline(run: Run, seconds: float) -> datetime:
    until = run.ledger.clock() + timedelta(seconds=seconds)
    return datetime.fromisoformat(run.step("sleep", {"seconds": seconds}, until.isoformat, is_wait=True))


def require_run(verb: str) -> Run:
    """Return the durable run that calls `verb`. Raises: FunctionError outside of one."""
    run = current_run()
    if run is None:
        raise FunctionError(
            f"{verb} needs a durable run: start the workflow with .submit(), not by calling it"
        )
    return run


def put_error(store: ObjectStore, error: Exception) -> StepFailure:
    """Convert an error to its form in an entry; what is not JSON in it, or contains a secret, stays out and its message is enough."""
    message = redact(str(error))
    try:
        content = _content(error)
        raised = put_value(store, content)
    except (TypeError, ValueError, SecretLeaked):
        raised = put_value(store, {"arguments": [message], "state": {}})
    kind = type(error)
    failure = Failure(type=kind.__qualname__, message=message)
    return StepFailure(failure=failure, reference=reference(kind), raised=raised)


def get_error(store: ObjectStore, stored: StepFailure) -> Exception:
    """Make the error again; a RemoteError with its type and message where its class cannot be imported or made."""
    text = f"{stored.failure.type}: {stored.failure.message}"
    try:
        kind = resolve(stored.reference)
        if not issubclass(kind, Exception):
            return RemoteError(text)
        content = get_value(store, stored.raised)
        return _made(kind, content)
    except (FunctionError, TypeError):
        return RemoteError(text)


def is_whole(error: Exception, again: Exception) -> bool:
    """Whether an error that was made again has all that the first one has, so that a body cannot tell them apart."""
    try:
        return type(again) is type(error) and _content(again) == _content(error)
    except (TypeError, ValueError):
        return False


def _content(error: Exception) -> dict[str, Any]:
    """Arguments and state from which a pickle would make the error. Raises: TypeError, ValueError unless they are JSON."""
    made = error.__reduce__()
    if isinstance(made, str) or made[0] is not type(error):
        raise TypeError(f"{type(error).__qualname__} is not made of arguments alone")
    _, arguments, *state = made
    content = {"arguments": list(arguments), "state": state[0] if state else {}}
    if json.loads(json.dumps(content)) != content:
        raise TypeError(f"{type(error).__qualname__} has arguments that JSON changes")
    return content


def _made(kind: type[Exception], content: dict[str, Any]) -> Exception:
    try:
        error = kind(*content["arguments"])
    except Exception:  # noqa: BLE001  # its `__init__` wants more than its arguments: without it
        error = kind.__new__(kind, *content["arguments"])
    error.__dict__.update(content["state"] or {})
    return error


def preempted() -> bool:
    """Whether the durable run of this process is asked to yield; False outside of one.

    It costs nothing: ask as often as you like. A run that is asked saves its state and raises `Preempted`; one that does not
    is killed after 45 s, and runs again later.
    """
    run = current_run()
    return run is not None and run.followed.record.preempting is not None


def notice_of(used: Context) -> Callable[[], bool]:
    """Make what a worker in another process asks to know whether its run is to yield; it reads the store every five seconds."""
    if used.invocation is None:
        return lambda: False
    invocation, ledger = used.invocation, Ledger(used.store, actor=used.actor)
    followed: FollowedRecord | None = None
    read_at = float("-inf")

    def asked() -> bool:
        nonlocal followed, read_at
        if time.monotonic() - read_at > _READ_EVERY_S:
            read_at = time.monotonic()
            with suppress(Unavailable, FunctionError):
                followed = followed or ledger.follow(invocation)
                followed.refresh()
        return followed is not None and followed.record.preempting is not None

    return asked


def ask_to_yield(followed: FollowedRecord, reason: str) -> bool:
    """Ask a run to yield, unless it was asked already; returns whether it was asked now."""
    return followed.append(lambda record: _asking(record, reason))


def _asking(record: Record, reason: str) -> dict[str, Any] | None:
    if record.status != "running" or record.preempting is not None:
        return None
    return {"kind": "preempting", "reason": reason}
