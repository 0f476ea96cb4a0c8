"""Losses of workers: what is recorded of a run whose worker vanished, so that it runs again or is given up."""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from toque.functions.runtime.durable.heartbeat import last_beat
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger, due_after
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.errors import FunctionError
from toque.functions.runtime.receipt import Usage
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.series import DEAD_LETTERS, LOST
from toque.registry.backoff import CHANCE


def record_loss(
    followed: FollowedRecord,
    function: DeclaredFunction | None,
    reason: str,
    *,
    ledger: Ledger,
    workspace: str,
) -> None:
    """Record that a worker died; the invocation runs again, unless too many were lost or its timeout passed.

    Raises: FunctionError if the function is not declared here.
    """
    worker, beat = followed.record.worker, last_beat(ledger.store, followed.record.id)
    own = beat if beat and beat.worker == worker else None
    entry = partial(
        loss_entry,
        function=function,
        reason=reason,
        worker=worker,
        now=ledger.clock(),
        waited_s=own.waited_s if own else 0.0,
        usage=own.usage if own else None,
    )
    if followed.append(entry):
        labels = workspace, followed.record.function
        LOST.labels(*labels).inc()
        if followed.record.status == "dead":
            DEAD_LETTERS.labels(*labels).inc()


def record_handover(followed: FollowedRecord, workers: Container[str], *, ledger: Ledger) -> None:
    """Record that a run was ended together with its executor, so that another starts it again at once; it counts as no loss.

    workers: those of the executor; a run that another worker has, or that has ended, is left alone.
    """
    beat = last_beat(ledger.store, followed.record.id)

    def decide(record: Record) -> dict[str, Any] | None:
        if record.status != "running" or record.worker is None or record.worker not in workers:
            return None
        usage = beat.usage if beat is not None and beat.worker == record.worker else None
        return {"kind": "preempted"} | ({} if usage is None else {"usage": usage.model_dump()})

    followed.append(decide)


def loss_entry(
    record: Record,
    function: DeclaredFunction | None,
    reason: str,
    *,
    worker: str | None,
    now: datetime,
    waited_s: float,
    usage: Usage | None = None,
) -> dict[str, Any] | None:
    """Build the entry of an attempt whose worker was lost; None if the record no longer belongs to that worker.

    waited_s: of the run, for room on the cluster; usage: what it said last that it had used. Raises: FunctionError if the function
    is not declared here.
    """
    used = {} if usage is None else {"usage": usage.model_dump()}
    if record.status not in {"queued", "running"} or record.worker != worker:
        return None
    if function is None:
        raise FunctionError(f"{record.reference} is not declared here; its retries are unknown")
    retries = function.retries
    limit_s = function.timeout_s if record.limit_s is None else record.limit_s
    if limit_s and record.started_at and now - record.started_at >= timedelta(seconds=limit_s + waited_s):
        name = "timeout_s" if limit_s == function.timeout_s else "limit_s"
        reason = f"ran past {name}={limit_s} and its worker was killed"
        failure = {"type": "TimedOut", "message": reason}
        if record.attempts + 1 >= retries.max_attempts:
            return {"kind": "dead", "failure": failure} | used
        return {
            "kind": "failed",
            "failure": failure,
            "due": due_after(now, _backoff(function, record.attempts + 1)),
        } | used
    failure = {"type": "WorkerLost", "message": reason}
    if record.lost >= retries.max_lost:
        return {"kind": "dead", "lost": True, "failure": failure} | used
    due = due_after(now, _backoff(function, record.lost + 1))
    return {"kind": "lost", "failure": failure, "due": due} | used


def _backoff(function: DeclaredFunction, attempt: int) -> float:
    return function.retries.backoff(attempt, draw=CHANCE.random())
