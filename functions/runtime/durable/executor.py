"""Runs what the ledger holds: learns of it from the queues, starts workers, notices those that died.

An executor has no state that another could not read from the store. Any number may run; which of them runs an
invocation is settled by the worker's claim in the invocation's journal.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any

from functions.runtime import catalog
from functions.runtime.context import Context
from functions.runtime.durable.attempt import Assignment, Attended, attend
from functions.runtime.durable.code_versions import BEFORE_GIVING_UP_S, not_before, refusal
from functions.runtime.durable.concurrency import Slots
from functions.runtime.durable.heartbeat import believed_until
from functions.runtime.durable.ledger import Followed, Ledger, later
from functions.runtime.durable.queue import Note, QueueReader
from functions.runtime.durable.quota_slots import Places
from functions.runtime.durable.record import Record, accepted
from functions.runtime.errors import FunctionError, UnknownFunction
from functions.runtime.run import cluster
from functions.runtime.run.declared import DeclaredFunction
from functions.runtime.run.execution import Outcome
from functions.runtime.run.forkserver import Child
from functions.runtime.run.niceness import step_back
from functions.runtime.run.worker_pool import Pool, Worker
from registry.errors import Unavailable
from registry.journal.entry import Entry
from registry.times import from_text

CHECKPOINT_EVERY_S = 5.0
LAST_S = 2.0  # what a worker does after the last entry: it gives its place back
ELSEWHERE_S = 30.0
_logger = logging.getLogger(__name__)


@dataclass
class Executor:
    """Executes the invocations in the store of `context`.

    capacity: workers at a time; None lets Ray queue them, or gives a local machine two a CPU; code_patience_s: how
    long what has steps of other code is left to executors that have it.
    """

    context: Context
    ledger: Ledger
    capacity: int | None = None
    code_patience_s: float = BEFORE_GIVING_UP_S
    _open: dict[str, datetime] = field(default_factory=dict)
    _workers: dict[str, tuple[DeclaredFunction, Worker]] = field(default_factory=dict)
    _backlog: dict[str, Followed] = field(default_factory=dict)  # due, but there was no room: not read again
    _slots: dict[str, Slots | None] = field(default_factory=dict)
    _places: Places = field(init=False)
    _warm: Pool = field(default_factory=Pool)
    _reader: QueueReader | None = None
    _kept_at: float = 0.0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._places = Places(self.ledger)

    def poll(self) -> int:
        """Look once at all that is new or due; returns how many invocations are open. Does not wait for work."""
        with self._lock:
            for note in self._news():
                self._open[note.invocation] = self.ledger.clock()
                self._guarded(note.invocation, partial(self._look, note.invocation, note))
            self._reap()
            now = self.ledger.clock()
            for each in [
                each for each, due in self._open.items() if due <= now and each not in self._workers
            ]:
                self._guarded(each, partial(self._look, each))
            self._begin_experiments()
            self._warm.keep(catalog.all_functions())
            self._dismiss()
            self._checkpoint()
            return len(self._open)

    def look_at(self, invocation: str, due: datetime) -> bool:
        """Learn that an invocation is due at this time, without a note; False if a worker of ours is at it."""
        with self._lock:
            if invocation in self._workers:
                return False
            self._open[invocation] = due
            return True

    def attend(self, invocation: str, *, wait_s: float) -> None:
        """Look at one invocation, run it if it is due, and wait a little for its worker if it is ours."""
        with self._lock:
            if self._open.get(invocation, self.ledger.clock()) <= self.ledger.clock():
                if invocation not in self._workers:
                    self._reap()  # nobody may wait for those any more, and they hold room
                self._guarded(invocation, partial(self._look, invocation))
            waiting = self._backlog.get(invocation)
            if waiting is not None and self._places.concern(waiting):
                self.poll()  # whether it is its turn hangs on the others
            ours = self._workers.get(invocation)
        if ours is None:
            time.sleep(wait_s)
        elif ours[1].wait(wait_s):
            with self._lock:
                self._guarded(invocation, partial(self._look, invocation))
                self._dismiss()

    def conclude(self, invocation: str) -> None:
        """Let go of the worker of a run whose record has ended, if it is ours: it may hold a CPU for the next."""
        ours = self._workers.get(invocation)
        if ours is None:
            return
        ours[1].wait(LAST_S)
        with self._lock:
            if invocation in self._workers:
                self._guarded(invocation, partial(self._look, invocation))
            self._dismiss()

    def warm_workers(self, function: DeclaredFunction) -> int:
        """How many workers of a function wait for it, imports done."""
        return self._warm.ready(function)

    def close(self) -> None:
        """Kill the workers this executor started; their invocations are run again by another."""
        with self._lock:
            for _, worker in self._workers.values():
                worker.kill()
            self._workers.clear()
            self._warm.close()

    def _dismiss(self) -> None:
        wanted = {each.record.reference for each in self._backlog.values()}
        self._warm.dismiss(catalog.all_functions(), wanted=wanted)

    def _news(self) -> list[Note]:
        if self._reader is None:
            self._reader = QueueReader(self.ledger.store, actor=self.ledger.actor, clock=self.ledger.clock)
            self._open = self._reader.resume() | self._open
        return list(self._reader.news())

    def _checkpoint(self) -> None:
        if self._reader and time.monotonic() - self._kept_at > CHECKPOINT_EVERY_S:
            self._reader.checkpoint(self._open)
            self._kept_at = time.monotonic()

    def _guarded(self, invocation: str, look: Callable[[], None]) -> None:
        try:
            look()
        except (Unavailable, UnknownFunction) as error:
            self._postpone(invocation, error)
        except Exception as error:
            # One record that cannot be read must not keep the others from running.
            _logger.exception("invocation %s cannot be attended to", invocation)
            self._postpone(invocation, error)

    def _reap(self) -> None:
        """Enter how the workers that are done have ended."""
        for each in [each for each, (_, worker) in self._workers.items() if worker.wait(0)]:
            self._guarded(each, partial(self._look, each))

    def _postpone(self, invocation: str, error: Exception) -> None:
        _logger.warning("invocation %s is left for %s s: %s", invocation, ELSEWHERE_S, error)
        self._open[invocation] = self.ledger.clock() + timedelta(seconds=ELSEWHERE_S)

    def _look(self, invocation: str, note: Note | None = None) -> None:
        if invocation in self._workers:
            self._look_at_worker(invocation)
        else:
            self._decide(self._followed(invocation, note))

    def _look_at_worker(self, invocation: str) -> None:
        function, worker = self._workers[invocation]
        if not worker.wait(0):
            if self.ledger.read(invocation).ended:
                worker.kill()
            return
        del self._workers[invocation]
        outcome = worker.outcome()
        if isinstance(outcome.value, Attended):
            self._settle(invocation, outcome.value.status, outcome.value.due)
            return
        followed = self.ledger.follow(invocation)
        self._lose(followed, function, str(outcome.error))

    def _followed(self, invocation: str, note: Note | None) -> Followed:
        waiting = self._backlog.pop(invocation, None)
        if note is None and waiting is not None:
            return waiting  # if it has changed since, its worker finds out when it claims
        if note is None or note.entry is None:
            return self.ledger.follow(invocation)
        entry = Entry(**(note.entry | {"at": from_text(note.entry["at"])}))
        journal = self.ledger.journal(invocation)
        journal.remember(entry)
        return Followed(journal, accepted(entry, invocation), entry.digest)

    def _decide(self, followed: Followed) -> None:
        record, now = followed.record, self.ledger.clock()
        if record.status == "running":
            self._check_lease(followed, now)
        elif not record.runnable or (record.due > now and not record.untouched):
            self._settle(record.id, record.status, record.due, idle=not record.runnable)
        elif not self._places.concern(followed) and (function := self._admitted(record)) is not None:
            self._start(function, followed)
        else:
            self._open[record.id] = now
            self._backlog[record.id] = followed

    def _settle(self, invocation: str, status: str, due: datetime, *, idle: bool = False) -> None:
        """Enter when to look again, or that there is nothing more to do until a note says otherwise."""
        if status == "dead":
            self.ledger.dead_letters.add(invocation)
        if status in {"succeeded", "dead", "cancelled"} or idle:
            self._open.pop(invocation, None)
        else:
            self._open[invocation] = due

    def _admitted(self, record: Record) -> DeclaredFunction | None:
        """The function, if there is room for one more run of it."""
        function = catalog.find(record.reference)
        if function is None:
            raise UnknownFunction(f"{record.reference} is not declared in this process")
        limit = None if cluster.running() else 2 * (os.cpu_count() or 1)
        capacity = self.capacity or limit
        full = capacity is not None and len(self._workers) >= capacity
        return None if full or not self._slot(function) else function

    def _begin_experiments(self) -> None:
        """Start those that wait and whose turn it is; refuse what no quota will ever let in."""
        waiting = {each: known for each, known in self._backlog.items() if self._places.concern(known)}
        if not waiting:
            return
        try:
            turns = self._places.turns(waiting, under_way=self._workers)
        except Unavailable as error:
            _logger.warning("no experiment begins now: %s", error)
            return
        for each, refused in turns:
            self._guarded(each, partial(self._begin, self._backlog.pop(each), refused))

    def _begin(self, followed: Followed, refused: dict[str, Any] | None) -> None:
        record = followed.record
        if refused is not None:
            followed.append(partial(_if_runnable, refused, record.length))
            self._settle(record.id, followed.record.status, followed.record.due)
        elif (function := self._admitted(record)) is not None:
            self._start(function, followed)
        else:
            self._backlog[record.id] = followed

    def _slot(self, function: DeclaredFunction) -> bool:
        """Whether a worker of the function might get a slot; it takes one itself, or comes back without."""
        slots = self._slots_of(function)
        if slots is None:
            return True
        same = sum(each.reference == function.reference for each, _ in self._workers.values())
        return same < slots.limit and slots.free()

    def _slots_of(self, function: DeclaredFunction) -> Slots | None:
        if function.reference not in self._slots:
            self._slots[function.reference] = Slots.of(function, self.ledger)
        return self._slots[function.reference]

    def _start(self, function: DeclaredFunction, followed: Followed) -> None:
        record, now = followed.record, self.ledger.clock()
        begins = not_before(record, function.digest, patience_s=self.code_patience_s)
        if begins > now:
            self._open[record.id] = begins
            return
        refused = refusal(record, function.digest)
        if refused is not None:
            followed.append(partial(_if_runnable, refused, record.length))
            self._settle(record.id, followed.record.status, followed.record.due)
            return
        assignment = Assignment(
            function, record, followed.head, self.context, self.ledger.lease_s, self.code_patience_s
        )
        self._workers[record.id] = (function, self._worker(assignment))
        self._open[record.id] = now

    def _worker(self, assignment: Assignment) -> Worker:
        function = assignment.function
        waiting = self._warm.take(function)
        if waiting is None and function.demand and cluster.running():
            waiting = self._warm.hire(function)
        if waiting is not None:
            return waiting.give(partial(_attended, assignment))
        if cluster.running():
            return cluster.ClusterRun(function.name, _task(function).remote(assignment))
        child = Child(function.name, retries=function.retries, module=function.body.__module__)
        return child.give(partial(_attended, assignment))

    def _check_lease(self, followed: Followed, now: datetime) -> None:
        record = followed.record
        until = believed_until(self.ledger.store, record, now)
        if until > now:
            self._open[record.id] = until
            return
        self._lose(followed, catalog.find(record.reference), f"worker {record.worker} has been silent")

    def _lose(self, followed: Followed, function: DeclaredFunction | None, reason: str) -> None:
        """Record that a worker vanished: run again, unless that has happened too often or was its timeout."""
        worker = followed.record.worker
        followed.append(
            lambda record: _loss(record, function, reason, worker=worker, now=self.ledger.clock())
        )
        slots = self._slots_of(function) if function else None
        for held in (slots, self._places if function and function.demand else None):
            if worker and held:
                held.give(worker)
        self._settle(followed.record.id, followed.record.status, followed.record.due)


def _if_runnable(body: dict[str, Any], length: int, record: Record) -> dict[str, Any] | None:
    """An entry for a record that is as it was judged."""
    return body if record.runnable and record.length == length else None


def _loss(
    record: Record, function: DeclaredFunction | None, reason: str, *, worker: str | None, now: datetime
) -> dict[str, Any] | None:
    if record.status not in {"queued", "running"} or record.worker != worker:
        return None
    if function is None:
        raise FunctionError(f"{record.reference} is not declared here; its policy is unknown")
    retries = function.retries
    if (
        function.timeout_s
        and record.started_at
        and now - record.started_at >= timedelta(seconds=function.timeout_s)
    ):
        reason = f"ran past timeout_s={function.timeout_s} and its worker was killed"
        failure = {"type": "TimedOut", "message": reason}
        if record.attempts + 1 >= retries.max_attempts:
            return {"kind": "dead", "failure": failure}
        return {
            "kind": "failed",
            "failure": failure,
            "due": later(now, _backoff(function, record.attempts + 1)),
        }
    failure = {"type": "WorkerLost", "message": reason}
    if record.lost >= retries.max_lost:
        return {"kind": "dead", "lost": True, "failure": failure}
    return {"kind": "lost", "failure": failure, "due": later(now, _backoff(function, record.lost + 1))}


def _backoff(function: DeclaredFunction, attempt: int) -> float:
    return function.retries.backoff(attempt, draw=random.random())


@cache
def _task(function: DeclaredFunction) -> Any:
    def attended(assignment: Assignment) -> Outcome:
        return _attended(assignment)

    asked = cluster.options(function) | {"max_retries": 0}  # the ledger runs it again
    return cluster.task(function.name, attended, asked)


def _attended(assignment: Assignment) -> Outcome:
    if assignment.function.demand:
        step_back()
    return Outcome(attend(assignment))
