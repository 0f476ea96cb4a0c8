"""Attempt of a durable invocation, in the worker process that runs it.

The worker itself claims the attempt, renews its lease, and records how it ended: the executor that started it may die.
Each executor has one version of the code. An invocation belongs to the code that it was submitted with and, once steps are
recorded, to the code that recorded them. Executors with other code leave it to executors with that code for a while. After
that they start an invocation without steps, and end one with steps, which cannot resume on other code.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any, Literal, Self

from toque.clusters.telemetry.tracing import flush_spans
from toque.functions.runtime.cards import share_of
from toque.functions.runtime.context import Context, use_context
from toque.functions.runtime.declaration import ONCE, Demand, Retries
from toque.functions.runtime.durable.concurrency import ConcurrencySlots
from toque.functions.runtime.durable.heartbeat import repeated, write_heartbeat
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger, due_after
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.slots import QuotaSlots, demand_of, refused_entry
from toque.functions.runtime.durable.store_requests import with_patience
from toque.functions.runtime.durable.values import put_value
from toque.functions.runtime.durable.workflow import Preempted, Run, Suspended, Unrecorded, use_run
from toque.functions.runtime.errors import Cancelled, CodeChanged, FunctionError, TimedOut
from toque.functions.runtime.receipt import Usage, meter
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.execution import ErrorRecord, Outcome, run_to_end
from toque.functions.runtime.run.interruption import Interruptible, waited_s, with_deadline
from toque.functions.runtime.telemetry import DEAD_LETTERS, QUEUE_SECONDS, RETRIES, failed_span, run_span
from toque.registry.errors import RegistryError, Unavailable
from toque.registry.times import CHANCE

SLOT_RETRY_S = 0.25
_ENDS = {"dead": DEAD_LETTERS, "failed": RETRIES}
_BEATS_TO_LOOK = 12  # a minute: an invocation is deleted so soon after it was cancelled by hand at most
OWN_WRITES = 2  # of an attempt: its claim and its outcome, which are written before and after it is measured
START_PATIENCE_S = 2.0  # for so long an invocation without steps is left to executors with its code
RESUME_PATIENCE_S = 60.0  # the same of one with steps
_IMMEDIATELY = datetime.min.replace(tzinfo=UTC)  # by any clock: clocks differ between machines, and jump
SAVE_S = 30.0
"""Seconds before its limit at which a run is asked to save; fewer than an executor gives to one that it asks to yield."""
_SAVE_PART = 0.25  # of a short limit


@dataclass(frozen=True, slots=True)
class Attempt:
    """Attempt as an executor sends it to a worker: the function, the invocation's record, and the context.

    head: digest of the record's last entry; code_patience_s: see `earliest_start`; sent_at: when it was sent, which
    its claim records; backfilled: of an experiment, whether it fills a gap before one that waits for room; worker: id under which it
    claims the invocation, a new one by default.
    """

    function: DeclaredFunction
    record: Record
    head: str
    context: Context
    lease_s: float
    code_patience_s: float
    sent_at: datetime
    backfilled: bool = False
    worker: str = ""


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """Status and due time of the record when the worker ended."""

    status: str
    due: datetime


def run_attempt(attempt: Attempt, *, end: Callable[[], None] | None = None) -> AttemptResult:
    """Claim the invocation, run it and record the outcome; without a free slot, leave it for later.

    end: ends the process, where it runs this attempt alone, once the record is no longer this worker's; by default the body is interrupted.
    """
    function, used = attempt.function, attempt.context
    ledger = Ledger(used.store, actor=used.actor, lease_s=attempt.lease_s)
    worker = getattr(attempt, "worker", "") or uuid.uuid4().hex  # a ticker of the release before names none
    slots, quota = ConcurrencySlots.of(function, ledger), QuotaSlots.of(function, ledger)
    found: list[Usage] = []
    with ExitStack() as cleanup:
        acquired = slots is None or slots.acquire(worker, attempt.record.id)
        if slots and acquired:
            cleanup.callback(with_patience, lambda: slots.release(worker))
        if quota and acquired:
            cleanup.callback(with_patience, lambda: quota.release(worker, found[0] if found else None))
            acquired = quota.acquire_for(
                attempt.record, worker, backfilled=getattr(attempt, "backfilled", False)
            )
        if acquired:
            return _claim_and_run(attempt, ledger, worker, Interruptible(end), found)
        pause = timedelta(seconds=SLOT_RETRY_S * (1 + CHANCE.random()))
        return AttemptResult(attempt.record.status, ledger.clock() + pause)


def _claim_and_run(
    attempt: Attempt, ledger: Ledger, worker: str, interruptible: Interruptible, found: list[Usage]
) -> AttemptResult:
    """Claim the invocation and run it; what it used is added to `found`."""
    function, used, known = attempt.function, attempt.context, attempt.record
    followed = FollowedRecord(ledger.journal(known.id), known, attempt.head)
    body = {"kind": "started", "worker": worker, "lease_s": ledger.lease_s, "digest": function.digest}
    demand = demand_of(known, ledger)
    limit, brought = TimeLimit.of(function, demand), demand.environment
    body |= {"limit_s": limit and limit.seconds, "environment": brought and brought.model_dump(mode="json")}
    sent_at = getattr(attempt, "sent_at", None)  # a ticker of the release before sends none
    body |= {"node": cluster.own_node(), "sent": sent_at and sent_at.isoformat()}
    # The code on disk may differ from the executor's.
    starts_at = earliest_start(known, function.digest, patience_s=attempt.code_patience_s)
    if starts_at > ledger.clock():
        return AttemptResult(known.status, starts_at)
    body = code_changed_entry(known, function.digest) or body
    claimable = partial(_claimable, known, function.digest, ledger.clock())
    if followed.append(lambda record: body if claimable(record) else None) and body["kind"] == "started":
        waited_for_s = (ledger.clock() - max(known.due, known.submitted_at)).total_seconds()
        QUEUE_SECONDS.labels(used.workspace, function.name).observe(max(0.0, waited_for_s))
        run = Run(ledger, followed, worker, body=interruptible)
        with _heartbeats(run):
            chain = (*known.chain, function.name)
            _run_traced(
                function, run, replace(used, actor=known.caller, chain=chain, invocation=run.id), found
            )
    return AttemptResult(followed.record.status, followed.record.due)


def _claimable(known: Record, digest: str, now: datetime, record: Record) -> bool:
    """Whether the record, which may have grown since the executor read it, may be claimed with this code."""
    grown = record.length > known.length
    return record.runnable and not (grown and (bound_to_other_code(record, digest) or record.due > now))


def _run_traced(function: DeclaredFunction, run: Run, used: Context, found: list[Usage]) -> None:
    """Run a claimed attempt in a span, which is sent before the process, which may be killed, is free."""
    record = run.followed.record
    facts = {
        "toque.function": record.reference,
        "toque.invocation": run.id,
        "toque.workspace": used.workspace,
        "toque.attempt": record.attempts + 1,
    }
    with run_span(f"invoke {function.name}", record.trace, **facts) as made:
        failure = _run_claimed(function, run, used, found)
        if failure is not None:
            failed_span(made, failure)
    flush_spans()


def _run_claimed(function: DeclaredFunction, run: Run, used: Context, found: list[Usage]) -> str | None:
    """Run a claimed attempt and record how it ended; returns the type of the error, if there was one."""
    demand = demand_of(run.followed.record, run.ledger)
    read = run.used = meter(num_gpus=cluster.own_gpus(function, demand), card_share=share_of(demand.card))
    limit = TimeLimit.of(function, demand)
    try:
        with use_run(run), use_context(used), asked_to_save(run, limit, demand) as asked:
            body = _final_entry(function, run, _run_body(function, run, limit))
    except Preempted:
        body = {"kind": "preempted"}
        if limit is not None and asked.is_set():
            reached = TimedOut(limit.reached(function.name))
            body = _failed_entry(function, run, ErrorRecord.of(reached, retries=function.retries))
    except Suspended as wait:
        due = {"due": wait.due.isoformat()} if wait.due else {}
        body = {"kind": "waiting", "signal": wait.signal} | due
    except Unrecorded as lost:  # as if this worker had died with what it could not record
        raise lost.cause from lost
    usage = read()
    found.append(usage)
    body["usage"] = usage.model_dump() | {"store_writes": usage.store_writes + OWN_WRITES}
    with suppress(Cancelled):  # ended or claimed by another worker meanwhile: this outcome does not count
        with_patience(lambda: run.append(body))
        if body["kind"] in _ENDS:
            _ENDS[body["kind"]].labels(used.workspace, function.name).inc()
    failure: dict[str, Any] = body.get("failure", {})
    return failure.get("type")


def _run_body(function: DeclaredFunction, run: Run, limit: TimeLimit | None) -> Outcome:
    try:
        arguments = function.signature.load(run.ledger.arguments(run.followed.record))
    except FunctionError as error:
        return Outcome.failed(error, retries=function.retries)
    body = function.body
    if limit is not None:
        body = with_deadline(function.name, body, limit.seconds, limit=limit.name)
    return function.attempt(arguments, None, body=partial(_checked, run, body))


def _checked(run: Run, body: Callable[..., Any], /, **arguments: Any) -> Any:
    """Run the body to its end, and check that it took the recorded steps, whatever it caught. Raises: StepMismatch, and what the body raises."""
    try:
        with run.body:
            result = run_to_end(body, arguments)
    except Exception as error:
        if run.mismatch is not None:
            raise run.mismatch from error
        run.note_uncaught(error)
        raise
    run.check_replayed()
    return result


def _final_entry(function: DeclaredFunction, run: Run, outcome: Outcome) -> dict[str, Any]:
    error = outcome.error
    if error is None:
        try:
            result = function.signature.dump_result(outcome.value)
            return {
                "kind": "succeeded",
                "result": with_patience(lambda: put_value(run.ledger.store, result)),
            }
        except FunctionError as refused:
            error = ErrorRecord.of(refused, retries=function.retries)
    return _failed_entry(function, run, error)


def _failed_entry(function: DeclaredFunction, run: Run, error: ErrorRecord) -> dict[str, Any]:
    failure = {"type": error.type, "message": error.message, "traceback": error.traceback}
    retries = function.retries if error.retryable else ONCE
    entry = failed_entry(retries, run.followed.record.attempts + 1, failure, run.ledger.clock())
    return entry if run.unfinished is None else entry | {"unfinished": run.unfinished}


def failed_entry(retries: Retries, attempt: int, failure: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Make the entry of a failed attempt, of that number from 1: the last one ends the invocation, another runs again later."""
    if attempt >= retries.max_attempts:
        return {"kind": "dead", "failure": failure}
    due = due_after(now, retries.backoff(attempt, draw=CHANCE.random()))
    return {"kind": "failed", "failure": failure, "due": due}


def _heartbeats(run: Run) -> AbstractContextManager[None]:
    node, beats = cluster.own_node(), count(1)

    def write() -> None:
        # Cancelled, deleted, or cut off with its node and given to another worker, whose heartbeats these would hide.
        if run.is_superseded() or (next(beats) % _BEATS_TO_LOOK == 0 and run.is_deleted()):
            run.body.interrupt()
            return
        beat = (run.ledger.store, run.id, run.worker, run.ledger.clock())
        write_heartbeat(*beat, node=node, waited_s=waited_s(), usage=run.used())

    # The lease outlasts two heartbeats that fail, be they refused: credentials may be renewed meanwhile.
    return repeated(write, every_s=run.ledger.lease_s / 3, name=f"lease-{run.id}", tolerated=RegistryError)


def earliest_start(record: Record, digest: str, *, patience_s: float) -> datetime:
    """Compute the time from which an executor with the code `digest` may claim the invocation.

    patience_s: how long an invocation with steps of other code is left to executors with that code.
    """
    if digest == (record.started_digest or record.digest):
        return _IMMEDIATELY
    wait_s = patience_s if bound_to_other_code(record, digest) else min(START_PATIENCE_S, patience_s)
    return record.due + timedelta(seconds=wait_s)


def code_changed_entry(record: Record, digest: str) -> dict[str, Any] | None:
    """Make the entry that ends an invocation which the code `digest` cannot resume; None if it can."""
    if not bound_to_other_code(record, digest):
        return None
    changed = CodeChanged(
        f"{record.function} has {len(record.steps)} recorded steps of code {record.started_digest}, and no executor "
        f"has that code; here it is {digest}. Run the old code, or redrive it to go on with this one"
    )
    return refused_entry(changed)


def bound_to_other_code(record: Record, digest: str) -> bool:
    """Whether only code other than `digest` may resume the invocation."""
    return bool(record.steps) and record.started_digest not in {None, digest}


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """Longest run time of an attempt, without its waits for room. name: of the setting that declared it."""

    name: Literal["timeout_s", "limit_s"]
    seconds: float

    @classmethod
    def of(cls, function: DeclaredFunction, demand: Demand) -> Self | None:
        """Find the shorter of the function's limit and of its submission's; None if neither declares one."""
        own = [] if function.timeout_s is None else [cls("timeout_s", function.timeout_s)]
        submitted = [] if demand.limit_s is None else [cls("limit_s", demand.limit_s)]
        return min([*own, *submitted], key=lambda each: each.seconds, default=None)

    def __str__(self) -> str:
        return f"{self.name}={self.seconds:g}"

    def reached(self, what: str) -> str:
        """Text of the error of a run that has saved its state since its limit is near."""
        longer = ", or submit it with a longer limit_s" if self.name == "limit_s" else ""
        return f"{what} has reached {self} and saved its state: redrive it to go on for as long again{longer}"


@contextmanager
def asked_to_save(run: Run, limit: TimeLimit | None, demand: Demand) -> Iterator[threading.Event]:
    """Ask a run that can save its state to do so a little before its limit; the event is set once it is asked."""
    asked, ended = threading.Event(), threading.Event()
    if limit is None or not demand.preemptible:
        yield asked
        return
    save_s = min(SAVE_S, _SAVE_PART * limit.seconds)
    began = time.monotonic()

    def ask() -> None:
        while (left_s := limit.seconds - save_s - (time.monotonic() - began - waited_s())) > 0:
            if ended.wait(left_s):
                return
        if run.followed.record.preempting is None:  # else it saves already, for the queue
            with suppress(Unavailable, Cancelled):
                run.append({"kind": "preempting", "reason": f"{limit}, which it reaches in {save_s:g} s"})
                asked.set()

    thread = threading.Thread(target=ask, name=f"limit-{run.id}", daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()
