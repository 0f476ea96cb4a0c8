"""One attempt of a durable invocation, in the process that does the work.

The worker itself claims the attempt, keeps its lease, and records how it ended: whoever started it may die.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from functions.runtime.context import Context, use_context
from functions.runtime.durable.code_versions import bound, not_before, refusal
from functions.runtime.durable.concurrency import Slots
from functions.runtime.durable.heartbeat import beat
from functions.runtime.durable.ledger import Followed, Ledger, later
from functions.runtime.durable.quota_slots import Places
from functions.runtime.durable.record import Record
from functions.runtime.durable.values import put_value
from functions.runtime.durable.workflow import Run, Suspended, running
from functions.runtime.errors import Cancelled, FunctionError
from functions.runtime.receipt import meter
from functions.runtime.run.deadline import bounded
from functions.runtime.run.declared import DeclaredFunction
from functions.runtime.run.execution import ErrorRecord, Outcome
from registry.errors import Unavailable

STORE_PATIENCE_S = 60.0
SLOT_PATIENCE_S = 0.25


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is sent: the function, the record as known, the digest of its last entry, the surroundings.

    code_patience_s: see `versions.not_before`.
    """

    function: DeclaredFunction
    record: Record
    head: str
    context: Context
    lease_s: float
    code_patience_s: float


@dataclass(frozen=True, slots=True)
class Attended:
    """How the record stood when the worker left it."""

    status: str
    due: datetime


def attend(assignment: Assignment) -> Attended:
    """Claim the attempt, run it, record its end; or leave it for later if the function runs often enough already."""
    function, used = assignment.function, assignment.context
    ledger = Ledger(used.store, actor=used.actor, lease_s=assignment.lease_s)
    worker, slots, places = uuid.uuid4().hex, Slots.of(function, ledger), Places.of(function, ledger)
    with ExitStack() as held:
        taken = slots is None or slots.take(worker, assignment.record.id)
        if slots and taken:
            held.callback(_patiently, lambda: slots.give(worker))
        if places and taken:
            held.callback(_patiently, lambda: places.give(worker))
            taken = places.take_for(assignment.record, worker)
        if taken:
            return _claim(assignment, ledger, worker)
        full = timedelta(seconds=SLOT_PATIENCE_S * (1 + random.random()))
        return Attended(assignment.record.status, ledger.clock() + full)


def _claim(assignment: Assignment, ledger: Ledger, worker: str) -> Attended:
    function, used, known = assignment.function, assignment.context, assignment.record
    followed = Followed(ledger.journal(known.id), known, assignment.head)
    body = {"kind": "started", "worker": worker, "lease_s": ledger.lease_s, "digest": function.digest}
    # The code on disk may be another than the executor's.
    begins = not_before(known, function.digest, patience_s=assignment.code_patience_s)
    if begins > ledger.clock():
        return Attended(known.status, begins)
    body = refusal(known, function.digest) or body
    free = partial(_free, known, function.digest)
    if followed.append(lambda record: body if free(record) else None) and body["kind"] == "started":
        run = Run(ledger, followed, worker)
        with _lease(run):
            chain = (*known.chain, function.name)
            _perform(function, run, replace(used, actor=known.caller, chain=chain, invocation=run.id))
    return Attended(followed.record.status, followed.record.due)


def _free(known: Record, digest: str, record: Record) -> bool:
    """Whether the record may be taken up as it is; it may have grown since it was judged."""
    return record.runnable and (record.length == known.length or not bound(record, digest))


def _perform(function: DeclaredFunction, run: Run, used: Context) -> None:
    read = meter(num_gpus=function.resources.num_gpus)
    try:
        with running(run), use_context(used):
            body = _conclusion(function, run, _outcome(function, run))
    except Suspended as wait:
        due = {"due": wait.due.isoformat()} if wait.due else {}
        body = {"kind": "waiting", "signal": wait.signal} | due
    body["usage"] = read().model_dump()
    with suppress(Cancelled):  # ended or taken over meanwhile: what this run found is not the recorded result
        _patiently(lambda: run.append(body))


def _outcome(function: DeclaredFunction, run: Run) -> Outcome:
    try:
        arguments = function.signature.load(run.ledger.arguments(run.followed.record))
    except FunctionError as error:
        return Outcome.failed(error, retries=function.retries)
    return function.attempt(arguments, None, body=bounded(function.name, function.body, function.timeout_s))


def _conclusion(function: DeclaredFunction, run: Run, outcome: Outcome) -> dict[str, Any]:
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


@contextmanager
def _lease(run: Run) -> Iterator[None]:
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(run.ledger.lease_s / 3):
            with suppress(Unavailable):  # the next beat is soon; the lease outlasts two that fail
                beat(run.ledger.store, run.id, run.worker, run.ledger.clock())

    thread = threading.Thread(target=live, name=f"lease-{run.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
