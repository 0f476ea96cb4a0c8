"""Workflows: durable runs whose steps are recorded before the next begins, and whose waits hold no worker.

A workflow is a function that calls functions. When it runs again after a crash, its body starts from the top,
and each recorded step returns its recorded result: only unfinished steps run. So the body between steps must
be deterministic, and an effect that should happen once belongs in a step.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from functions.runtime.durable.ledger import FollowedRecord, Ledger
from functions.runtime.durable.values import get_value, put_value
from functions.runtime.errors import Cancelled, FunctionError, StepMismatch
from functions.runtime.receipt import Usage
from functions.runtime.run.declared import DeclaredFunction
from functions.runtime.spans import span


class Suspended(BaseException):
    """Raised to unwind a workflow that has to wait; not an Exception, so that bodies do not catch it."""

    def __init__(self, *, due: datetime | None = None, signal: str | None = None) -> None:
        super().__init__(due or signal)
        self.due = due
        self.signal = signal


class Preempted(BaseException):  # no Exception, so that bodies do not catch it
    """Raised by a run that was asked to yield, once its state is saved: it is queued again, and counts as no failure."""


@dataclass
class Run:
    """Attempt of a durable invocation while it runs in this process. used: reads what it has used so far."""

    ledger: Ledger
    followed: FollowedRecord
    worker: str
    used: Callable[[], Usage | None] = lambda: None
    _cursor: int = 0
    _children: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def id(self) -> str:
        """Id of the invocation that runs."""
        return self.followed.record.id

    def step(self, name: str, arguments: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the recorded JSON result of the next step; if it is not recorded, run and record `compute()`.

        Raises: StepMismatch if the record has another step at this position.
        """
        with self._lock:
            number, self._cursor = self._cursor, self._cursor + 1
        digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:16]
        steps = self.followed.record.steps
        if number < len(steps):
            recorded = steps[number]
            if (recorded.function, recorded.arguments) != (name, digest):
                raise StepMismatch(
                    f"{self.id}: step {number} was {recorded.function} and is now {name}, or its arguments differ; "
                    "between steps a workflow must not depend on time, chance or outside state"
                )
            return get_value(self.ledger.store, recorded.result)
        with span(f"step {name}", **{"toque.step": number}):
            result = compute()
        stored = put_value(self.ledger.store, result)
        self.append({"kind": "step", "function": name, "arguments": digest, "result": stored})
        return result

    def append(self, body: Mapping[str, Any]) -> None:
        """Append an entry of this attempt. Raises: Cancelled if the record no longer belongs to this worker."""
        with self._lock:
            if not self.followed.append(lambda _: dict(body) if self.is_current else None):
                raise Cancelled(f"{self.id} is {self.followed.record.status}; this run of it ends")

    @property
    def is_current(self) -> bool:
        """Whether the record still belongs to this worker."""
        return self.followed.record.status == "running" and self.followed.record.worker == self.worker

    def is_superseded(self) -> bool:
        """Read whether the record has passed to another worker, or ended, meanwhile: one read. Raises: Unavailable."""
        with self._lock:
            self.followed.refresh()
            return not self.is_current

    @property
    def position(self) -> int:
        """Number of steps that the body has reached so far."""
        return self._cursor

    def child_key(self) -> str:
        """Make the key of the next invocation that this one submits."""
        with self._lock:
            number, self._children = self._children, self._children + 1
        return f"{self.id}/{number}"


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
    until = None if timeout_s is None else _recorded_deadline(run, timeout_s)

    def received() -> list[Any]:
        signals = run.followed.record.signals
        if signal in signals:
            return [signals[signal]]
        if until is not None and run.ledger.clock() >= until:
            return []
        raise Suspended(due=until, signal=signal)

    found = run.step("wait_for", {"signal": signal, "timeout_s": timeout_s}, received)
    if not found:
        raise TimeoutError(f"{run.id}: nobody gave the signal {signal!r} within {timeout_s} s")
    return found[0]


def _recorded_deadline(run: Run, seconds: float) -> datetime:
    until = run.ledger.clock() + timedelta(seconds=seconds)
    return datetime.fromisoformat(run.step("sleep", {"seconds": seconds}, until.isoformat))


def require_run(verb: str) -> Run:
    """Return the durable run that calls `verb`. Raises: FunctionError outside of one."""
    run = current_run()
    if run is None:
        raise FunctionError(
            f"{verb} needs a durable run: start the workflow with .submit(), not by calling it"
        )
    return run
