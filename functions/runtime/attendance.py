"""One attempt of a durable invocation, in the process that does the work.

The worker itself claims the attempt, keeps its lease, and records how it ended: whoever started it may die.
"""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from functions.runtime.context import Context, use_context
from functions.runtime.deadline import bounded
from functions.runtime.errors import Cancelled, FunctionError
from functions.runtime.ledger import Followed, Ledger, later
from functions.runtime.receipt import Receipt, Usage, meter
from functions.runtime.record import Record, add
from functions.runtime.values import put_value
from functions.runtime.work import ErrorRecord, Outcome
from functions.runtime.workflow import Run, Suspended, running
from registry.errors import Unavailable

if TYPE_CHECKING:
    from functions.runtime.function import Function

STORE_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is sent: the function, the record as known, the digest of its last entry, the surroundings."""

    function: Function[..., Any]
    record: Record
    head: str
    context: Context
    lease_s: float


@dataclass(frozen=True, slots=True)
class Attended:
    """How the record stood when the worker left it."""

    status: str
    due: datetime


def attend(assignment: Assignment) -> Attended:
    """Claim the attempt, run it, record its end."""
    function, used = assignment.function, assignment.context
    ledger = Ledger(used.store, actor=used.actor, lease_s=assignment.lease_s)
    followed = Followed(ledger.journal(assignment.record.id), assignment.record, assignment.head)
    worker = uuid.uuid4().hex
    claim = {"kind": "started", "worker": worker, "lease_s": ledger.lease_s, "digest": function.digest}
    if followed.append(lambda record: claim if record.runnable else None):
        run = Run(ledger, followed, worker)
        with _lease(run):
            chain = (*assignment.record.chain, function.name)
            _perform(function, run, replace(used, actor=assignment.record.caller, chain=chain))
    return Attended(followed.record.status, followed.record.due)


def lease_key(invocation: str) -> str:
    """Where the worker of an invocation says that it lives."""
    return f"invocations/{invocation}/lease.json"


def _perform(function: Function[..., Any], run: Run, used: Context) -> None:
    read = meter(num_gpus=function.resources.num_gpus)
    try:
        with running(run), use_context(used):
            body = _conclusion(function, run, _outcome(function, run))
    except Suspended as wait:
        due = {"due": wait.due.isoformat()} if wait.due else {}
        body = {"kind": "waiting", "signal": wait.signal} | due
    usage = read()
    body["usage"] = usage.model_dump()
    if body["kind"] in {"succeeded", "dead"}:
        body["receipt"] = _receipt(function, run.followed.record, usage, now=run.ledger.clock()).model_dump(
            mode="json"
        )
    with suppress(Cancelled):  # ended or taken over meanwhile: what this run found is not the recorded result
        _patiently(lambda: run.append(body))


def _outcome(function: Function[..., Any], run: Run) -> Outcome:
    try:
        arguments = function.signature.load(run.ledger.arguments(run.followed.record))
    except FunctionError as error:
        return Outcome.failed(error, retries=function.retries)
    return function.attempt(arguments, None, body=bounded(function.name, function.body, function.timeout_s))


def _conclusion(function: Function[..., Any], run: Run, outcome: Outcome) -> dict[str, Any]:
    error = outcome.error
    if error is None:
        try:
            result = function.signature.dump_result(outcome.value)
            return {"kind": "succeeded", "result": put_value(run.ledger.store, result)}
        except FunctionError as refused:
            error = ErrorRecord.of(refused, retries=function.retries)
    failure = {"type": error.type, "message": error.message, "traceback": error.traceback}
    attempt = run.followed.record.attempts + 1
    if not error.retryable or attempt >= function.retries.max_attempts:
        return {"kind": "dead", "failure": failure}
    wait_s = function.retries.backoff(attempt, draw=random.random())
    return {"kind": "failed", "failure": failure, "due": later(run.ledger.clock(), wait_s)}


def _patiently(write: Callable[[], None]) -> None:
    deadline = time.monotonic() + STORE_PATIENCE_S
    wait_s = 0.1
    while True:
        try:
            return write()
        except Unavailable:  # the work is done: rather than do it again, ask the store again
            if time.monotonic() > deadline:
                raise
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 5.0)


def _receipt(function: Function[..., Any], record: Record, usage: Usage, *, now: datetime) -> Receipt:
    used = usage if record.usage is None else add(usage, record.usage)
    waited = (record.first_started_at or now) - record.submitted_at
    return Receipt(
        invocation=record.id,
        function=record.function,
        digest=function.digest,
        caller=record.caller,
        finished_at=now,
        attempts=record.attempts + 1,
        queue_s=max(0.0, waited / timedelta(seconds=1)),
        **used.model_dump(),
    )


@contextmanager
def _lease(run: Run) -> Iterator[None]:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(run.ledger.lease_s / 3):
            told = {"worker": run.worker, "at": run.ledger.clock().isoformat(), "progress": run.fraction}
            with suppress(Unavailable):  # the next beat is soon; the lease outlasts two that fail
                run.ledger.store.put(lease_key(run.id), json.dumps(told).encode())

    thread = threading.Thread(target=beat, name=f"lease-{run.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
