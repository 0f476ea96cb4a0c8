"""Executor of durable invocations: reads the queues, starts workers, and notices workers that died.

All state of an executor can be read from the store. Any number of executors may run; a worker's claim in the
invocation's journal decides which of them runs it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context
from toque.functions.runtime.durable.attempt import (
    RESUME_PATIENCE_S,
    AttemptResult,
    code_changed_entry,
    earliest_start,
)
from toque.functions.runtime.durable.concurrency import ConcurrencySlots
from toque.functions.runtime.durable.experiments import Experiments
from toque.functions.runtime.durable.heartbeat import Sign, last_sign, next_look_s, node_is_lost
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger, record_handover
from toque.functions.runtime.durable.queue import Announced, Intake
from toque.functions.runtime.durable.record import ENDED, Record
from toque.functions.runtime.durable.slots import refused_entry
from toque.functions.runtime.durable.store_requests import at_once
from toque.functions.runtime.durable.workers import (
    THREADS,
    Dispatch,
    Launcher,
    record_loss,
    run_in_worker,
)
from toque.functions.runtime.errors import EnvironmentFailed, NoRoom, UnknownFunction, UnknownInvocation
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.node_watch import Nodes, NodeWatch, node_watch
from toque.functions.runtime.telemetry import WAITING, WORKERS
from toque.registry.errors import Unavailable

ROUND_S = 5.0  # for how long one round starts what is due; the next goes on with the rest
RECORDS_AT_ONCE = 128
LOOK_S = 1.0  # for how long one round may look where its runs are; the next goes on
RELEASE_S = 2.0  # what a worker needs after its last entry, to release its slots
POSTPONE_S = 30.0
NODES_LOOK_S = 5.0  # after which a run that no node holds looks for new ones
_logger = logging.getLogger(__name__)


class Look(NamedTuple):
    """What was read of an invocation. sign: the last of its worker, if it runs elsewhere."""

    followed: FollowedRecord
    sign: Sign | None = None


@dataclass
class Executor:
    """Executor of the invocations in the store of `context`.

    capacity: workers at a time; None lets Ray queue them, and allows two per CPU without Ray;
    code_patience_s: how long an invocation with steps of other code is left to executors with that code; nodes: which of the
    cluster are silent.
    """

    context: Context
    ledger: Ledger
    capacity: int | None = None
    code_patience_s: float = RESUME_PATIENCE_S
    nodes: NodeWatch = field(default_factory=node_watch)
    _open: dict[str, datetime] = field(default_factory=dict)
    _workers: dict[str, Dispatch] = field(default_factory=dict)
    _idle: set[str] = field(default_factory=set)  # wait for a signal alone, which comes with a note
    _announced: dict[str, Announced] = field(default_factory=dict)
    _backlog: dict[str, FollowedRecord] = field(default_factory=dict)  # due, but no worker or slot was free
    _unknown: dict[str, datetime] = field(
        default_factory=dict
    )  # since when their function was not found here
    _may_end: bool = False
    _slots: dict[str, ConcurrencySlots | None] = field(default_factory=dict)
    _experiments: Experiments = field(init=False)
    _launcher: Launcher = field(init=False)
    _intake: Intake = field(init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._experiments = Experiments(self.context, self.ledger)
        ledger = self.ledger
        self._intake = Intake(ledger.store, ledger.actor, ledger.clock, redis_url=self.context.redis_url)
        self._launcher = Launcher(self.context, self.ledger, self.code_patience_s)

    def poll(self, *, ends_unknown: bool = False) -> int:
        """Process every invocation that is new or due, without waiting, for some seconds; returns how many are open.

        ends_unknown: whether this process has the project's code, so that a function that it lacks is one that nobody has.
        What is left is next in the following round. Raises: what kept some of the queues from being read.
        """
        with self._lock:
            self._may_end = ends_unknown
            self._take_in()
            self._reap()
            self.nodes.keep_watching()
            self._check_workers()
            self._kill_unyielding()
            self._process_due()
            self._start_experiments()
            self._launcher.replenish()
            self._evict_idle()
            self._intake.checkpoint(self._open, self._idle)
            WAITING.labels(self.context.workspace).set(len(self._backlog))
            WORKERS.labels(self.context.workspace).set(len(self._workers))
            if self._intake.failures:
                raise self._intake.failures[0]  # once what could be read is done
            return len(self._open)

    def _take_in(self) -> None:
        """Take in what had not ended at the last checkpoint, and the notes since."""
        now, before = self.ledger.clock(), self._intake.resume()
        self._idle |= before.idle
        for invocation, due in before.due.items():
            self._open.setdefault(invocation, due)
            self._announced[invocation] = Announced.perhaps()
        for note in self._intake.new_notes():
            self._open[note.invocation] = now
            self._idle.discard(note.invocation)
            self._backlog.pop(note.invocation, None)
            if note.after is not None or note.invocation in self._workers:
                self._announced[note.invocation] = Announced(-1 if note.after is None else note.after)

    def _process_due(self) -> None:
        """Process what is due, the longest due first, and read many records at once."""
        begun, now = time.monotonic(), self.ledger.clock()
        due = [
            invocation
            for invocation, at in sorted(self._open.items(), key=lambda item: item[1])
            if at <= now and (invocation not in self._workers or invocation in self._announced)
        ]
        for first in range(0, len(due), RECORDS_AT_ONCE):
            batch = due[first : first + RECORDS_AT_ONCE]
            for invocation, look in zip(
                batch, at_once([partial(self._look, each) for each in batch]), strict=True
            ):
                self._guarded(invocation, partial(self._process, invocation, look))
            if time.monotonic() - begun > ROUND_S:
                return

    def enqueue(self, invocation: str, due: datetime) -> bool:
        """Schedule an invocation for `due`, without a note; False if a worker of this executor runs it."""
        with self._lock:
            if invocation in self._workers:
                return False
            self._open[invocation] = due
            return True

    def drive(self, invocation: str, *, wait_s: float) -> None:
        """Process one invocation if it is due; wait at most `wait_s` for its worker if it is this executor's."""
        with self._lock:
            if self._open.get(invocation, self.ledger.clock()) <= self.ledger.clock():
                if invocation not in self._workers:
                    self._reap()  # perhaps nobody waits for these any more, and they occupy workers
                self._guarded(invocation, partial(self._process, invocation))
            waiting = self._backlog.get(invocation)
            if waiting is not None and self._experiments.includes(waiting):
                self.poll()  # whether it is admitted depends on the other experiments
            assigned = self._workers.get(invocation)
        if assigned is None:
            time.sleep(wait_s)
        elif assigned.wait(wait_s):
            with self._lock:
                self._guarded(invocation, partial(self._process, invocation))
                self._evict_idle()

    def release_worker(self, invocation: str) -> None:
        """Release this executor's worker of an ended invocation, which may hold a CPU that others need."""
        assigned = self._workers.get(invocation)
        if assigned is None:
            return
        assigned.wait(RELEASE_S)
        with self._lock:
            if invocation in self._workers:
                self._guarded(invocation, partial(self._process, invocation))
            self._evict_idle()

    def warm_workers(self, function: DeclaredFunction) -> int:
        """Count the idle workers of a function, imports done."""
        return self._launcher.pool.ready_count(function)

    def close(self) -> None:
        """Kill the workers of this executor, and queue their invocations for another, which counts as no loss of a worker.

        What cannot be queued again now, as the store does not answer, is when its lease has run out.
        """
        with self._lock:
            for each in self._workers.values():
                each.kill()
            for failure in at_once([partial(self._hand_over, *item) for item in self._workers.items()]):
                if isinstance(failure, Exception):
                    _logger.warning(
                        "a run that was ended with its executor is queued after its lease: %s", failure
                    )
            self._workers.clear()
            self._launcher.pool.close()

    def _hand_over(self, invocation: str, dispatch: Dispatch) -> None:
        if not dispatch.wait(RELEASE_S):
            return  # a thread of this process, which nobody can kill: it goes on to its end
        followed = self.ledger.follow(invocation)
        worker = followed.record.worker
        record_handover(followed, dispatch.names, ledger=self.ledger)
        if worker in dispatch.names:
            self._release(dispatch.function, worker)

    def _evict_idle(self) -> None:
        self._launcher.evict_idle({each.record.reference for each in self._backlog.values()})

    def _guarded(self, invocation: str, process: Callable[[], None]) -> None:
        try:
            process()
        except UnknownInvocation:  # deleted meanwhile
            self._forget(invocation)
        except UnknownFunction as error:
            self._guarded(invocation, partial(self._leave, invocation, error))
        except Unavailable as error:
            self._postpone(invocation, error)
        except Exception as error:
            # One unreadable record must not keep the other invocations from running.
            _logger.exception("invocation %s cannot be processed", invocation)
            self._postpone(invocation, error)

    def _reap(self) -> None:
        """Process the workers that have ended."""
        for each in [each for each, given in self._workers.items() if given.wait(0)]:
            self._guarded(each, partial(self._process, each))

    def _check_workers(self) -> None:
        """Look after the runs that silent nodes may keep, which Ray reports only after half a minute or more."""
        silent, begun = self.nodes.silent(), time.monotonic()
        for each in [each for each, given in self._workers.items() if given.needs_look(silent)]:
            self._guarded(each, partial(self._check_worker, each, silent))
            if time.monotonic() - begun > LOOK_S:
                return

    def _check_worker(self, invocation: str, silent: Nodes) -> None:
        """Start an unclaimed invocation elsewhere too; of a claimed one, record that its worker is lost with its node."""
        given, followed = self._workers[invocation], self.ledger.follow(invocation)
        record = followed.record
        if record.runnable:
            _logger.warning(
                "invocation %s may wait for silent nodes %s: sent elsewhere too", invocation, [*silent]
            )
            given.send(self._launcher, followed, silent)
        elif record.status == "running":
            sign = last_sign(self.ledger.store, record)
            given.node = sign.node if sign else None
            if sign is not None and node_is_lost(sign.age_s, self.nodes.seconds(sign.node), record.lease_s):
                del self._workers[invocation]
                given.kill()
                self._record_loss(followed, given.function, f"worker {record.worker} is lost with its node")

    def _postpone(self, invocation: str, error: Exception) -> None:
        _logger.warning("invocation %s is postponed by %s s: %s", invocation, POSTPONE_S, error)
        self._open[invocation] = self.ledger.clock() + timedelta(seconds=POSTPONE_S)

    def _leave(self, invocation: str, error: UnknownFunction) -> None:
        """Leave an invocation to executors that have its function; once none had it in time, end it among the dead letters."""
        now = self.ledger.clock()
        since = self._unknown.setdefault(invocation, now)
        if self._may_end and now >= since + timedelta(seconds=self.code_patience_s):
            followed = self.ledger.follow(invocation)
            if followed.record.runnable:
                self._refuse(followed, refused_entry(error))
                return
        self._postpone(invocation, error)

    def _look(self, invocation: str) -> Look:
        """Read what decides what becomes of an invocation; makes no change, so that many are read at once."""
        waiting = self._backlog.get(invocation)
        if waiting is not None:
            return Look(waiting)  # if it has changed since, its worker notices when it claims
        followed = self.ledger.follow(invocation)
        if followed.record.status != "running" or invocation in self._workers:
            return Look(followed)
        return Look(followed, last_sign(self.ledger.store, followed.record))

    def _process(self, invocation: str, look: Look | Exception | None = None) -> None:
        """Process one invocation of the round. look: what was read of it, or why it was not; None: it is read now if that is needed."""
        if isinstance(look, Exception):
            raise look
        if invocation in self._workers:
            self._process_worker(invocation, look)
        else:
            self._dispatch(look or self._look(invocation))

    def _process_worker(self, invocation: str, look: Look | None) -> None:
        given = self._workers[invocation]
        if not given.wait(0):
            record = (look or self._look(invocation)).followed.record
            if record.ended:
                given.kill()
            if self._is_announced(record):
                self._open[invocation] = self._announced[invocation].next_look(self.ledger.clock())
            return
        outcome, decided = given.take()
        if not decided:
            return
        del self._workers[invocation]
        given.kill()
        if isinstance(outcome.value, AttemptResult):
            self._settle(invocation, outcome.value.status, outcome.value.due)
            return
        followed = self.ledger.follow(invocation)
        if outcome.error is not None and outcome.error.type == EnvironmentFailed.__name__:
            self._refuse(followed, refused_entry(EnvironmentFailed(outcome.error.message)))
        elif not given.concerns(followed.record):  # its end says nothing of the worker that has it now
            self._dispatch(self._look(invocation))
        else:
            self._record_loss(followed, given.function, str(outcome.error))

    def _is_announced(self, record: Record) -> bool:
        """Whether an entry that was announced for an invocation may still come; once it is there, what it implies is done."""
        announced = self._announced.get(record.id)
        if announced is None:
            return False
        if announced.may_come(record):
            return True
        if (
            announced.after is not None and record.runnable
        ):  # perhaps redriven, by a caller that died before it was out of the index
            self.ledger.dead_letters.remove(record.id, reason="redriven")
        del self._announced[record.id]
        return False

    def _dispatch(self, look: Look) -> None:
        followed, record, now = look.followed, look.followed.record, self.ledger.clock()
        self._backlog.pop(record.id, None)
        self._is_announced(record)
        if record.status == "running":
            self._check_lease(look, now)
        elif not record.runnable or (record.due > now and not record.untouched):
            self._settle(record.id, record.status, record.due, idle=not record.runnable)
        elif (
            not self._experiments.includes(followed)
            and (function := self._function_with_room(record)) is not None
        ):
            self._start(function, followed)
        else:
            self._open[record.id] = now
            self._backlog[record.id] = followed

    def _settle(self, invocation: str, status: str, due: datetime, *, idle: bool = False) -> None:
        """Schedule the next look at an invocation, or drop it until a note about it arrives."""
        if status == "dead":
            self.ledger.dead_letters.add(invocation)
        announced = self._announced.get(invocation)
        looked_at = None if announced is None else announced.next_look(self.ledger.clock())
        if status not in ENDED and not idle:
            self._open[invocation] = due if looked_at is None else min(due, looked_at)
        elif looked_at is not None:
            self._open[invocation] = looked_at
        else:
            self._forget(invocation)
            if status not in ENDED:
                self._idle.add(invocation)

    def _forget(self, invocation: str) -> None:
        self._open.pop(invocation, None)
        self._announced.pop(invocation, None)
        self._backlog.pop(invocation, None)
        self._idle.discard(invocation)
        self._unknown.pop(invocation, None)

    def _function_with_room(self, record: Record) -> DeclaredFunction | None:
        """Return the function, if a worker for one more run of it may start; else None."""
        function = catalog.find(record.reference)
        if function is None:
            raise UnknownFunction(
                f"{record.reference} is not declared in this process; declare it there again and redrive the invocation, or submit "
                "the function that took its place"
            )
        limit = None if cluster.running() else 2 * (os.cpu_count() or 1)
        capacity = self.capacity or limit
        full = capacity is not None and len(self._workers) >= capacity
        return None if full or not self._slot_available(function) else function

    def _start_experiments(self) -> None:
        """Start the waiting experiments that are admitted; end those that exceed a quota even alone."""
        waiting = {each: known for each, known in self._backlog.items() if self._experiments.includes(known)}
        admissions = self._experiments.decide(waiting, open_now=self._open, started=self._workers)
        if admissions is None:
            return
        for each, refused in admissions.refused.items():
            self._guarded(each, partial(self._refuse, self._backlog.pop(each), refused))
        for each, backfilled in admissions.start.items():
            self._guarded(
                each, partial(self._start_experiment, self._backlog.pop(each), backfilled=backfilled)
            )
        for each, why in admissions.preempt.items():
            self._guarded(each, partial(self._experiments.preempt, each, why))

    def _refuse(self, followed: FollowedRecord, refused: dict[str, Any]) -> None:
        length = followed.record.length
        followed.append(lambda record: refused if record.runnable and record.length == length else None)
        self._settle(followed.record.id, followed.record.status, followed.record.due)

    def _start_experiment(self, followed: FollowedRecord, *, backfilled: bool) -> None:
        record = followed.record
        if (function := self._function_with_room(record)) is not None:
            self._start(function, followed, backfilled=backfilled)
        else:
            self._backlog[record.id] = followed

    def _kill_unyielding(self) -> None:
        """Kill the runs that were asked to yield and have not in time."""
        for each in self._experiments.overdue(self._open):
            if each in self._workers:
                self._guarded(each, partial(self._kill, each))

    def _kill(self, invocation: str) -> None:
        followed = self.ledger.follow(invocation)
        if followed.record.preempting is None or followed.record.status != "running":
            return
        self._workers.pop(invocation).kill()
        self._experiments.record_preempted(followed)
        self._settle(invocation, followed.record.status, followed.record.due)

    def _slot_available(self, function: DeclaredFunction) -> bool:
        """Whether a worker of the function may get a slot, which the worker itself acquires or fails to."""
        slots = self._slots_of(function)
        if slots is None:
            return True
        same = sum(each.function.reference == function.reference for each in self._workers.values())
        return same < slots.limit and slots.available()

    def _slots_of(self, function: DeclaredFunction) -> ConcurrencySlots | None:
        if function.reference not in self._slots:
            self._slots[function.reference] = ConcurrencySlots.of(function, self.ledger)
        return self._slots[function.reference]

    def _start(
        self, function: DeclaredFunction, followed: FollowedRecord, *, backfilled: bool = False
    ) -> None:
        record, now = followed.record, self.ledger.clock()
        starts_at = earliest_start(record, function.digest, patience_s=self.code_patience_s)
        if starts_at > now:
            self._open[record.id] = starts_at
            return
        refused = code_changed_entry(record, function.digest) or self._launcher.refusal(record)
        if refused is not None:
            self._refuse(followed, refused)
            return
        try:
            if self._launcher.awaits_nodes(function):
                self._open[record.id] = now + timedelta(seconds=NODES_LOOK_S)
                return
        except NoRoom as error:
            self._refuse(followed, refused_entry(error))
            return
        silent = self.nodes.silent()
        dispatch = Dispatch(function, record.length)
        dispatch.send(self._launcher, followed, silent, backfilled=backfilled)
        self._experiments.note_started(record.id)
        if function.demand:
            self._experiments.note_running(record.id)
        self._workers[record.id] = dispatch
        self._open[record.id] = now

    def _check_lease(self, look: Look, now: datetime) -> None:
        followed, record, sign = look.followed, look.followed.record, look.sign
        if self._experiments.includes(followed):
            self._experiments.note_running(record.id)
        if sign is not None and sign.age_s < record.lease_s:
            silence_s = self.nodes.seconds(sign.node)
            if not node_is_lost(sign.age_s, silence_s, record.lease_s):
                look_s = next_look_s(sign.age_s, silence_s, record.lease_s)
                self._open[record.id] = now + timedelta(seconds=look_s)
                return
        self._record_loss(followed, catalog.find(record.reference), f"worker {record.worker} has been silent")

    def _record_loss(self, followed: FollowedRecord, function: DeclaredFunction | None, reason: str) -> None:
        """Record that a worker died, and release its slots."""
        worker, workspace = followed.record.worker, self.context.workspace
        record_loss(followed, function, reason, ledger=self.ledger, workspace=workspace)
        if function is not None:
            self._release(function, worker)
        self._settle(followed.record.id, followed.record.status, followed.record.due)

    def _release(self, function: DeclaredFunction, worker: str | None) -> None:
        """Release the slots of a worker that has ended."""
        slots = self._slots_of(function)
        for holder in (slots, self._experiments if function.demand else None):
            if holder and worker:
                holder.release(worker)


_run_attempt = run_in_worker


__all__ = ["THREADS", "Executor"]
