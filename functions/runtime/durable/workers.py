"""Workers of attempts: threads, warm workers, processes, actors or tasks of Ray, and what follows if one is lost.

An invocation is given to one worker as a rule, and to one more elsewhere when a node falls silent before any claim: Ray does
not say on which node a task waits, and waits itself until it gives a silent node up. The first worker that claims it runs it;
the others find it claimed and end.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Container
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context
from toque.functions.runtime.declaration import Demand
from toque.functions.runtime.durable.attempt import Attempt, AttemptResult, failed_entry, run_attempt
from toque.functions.runtime.durable.heartbeat import last_beat, usage_of, with_usage
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger, due_after
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.slots import demand_of, refused_entry
from toque.functions.runtime.environments import EnvironmentRefused
from toque.functions.runtime.errors import FunctionError, NoRoom
from toque.functions.runtime.process import enter_worker, lower_priority
from toque.functions.runtime.receipt import Usage
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.execution import Outcome
from toque.functions.runtime.run.forkserver import Child, ThreadRun
from toque.functions.runtime.run.interruption import end_process
from toque.functions.runtime.run.node_watch import Nodes
from toque.functions.runtime.run.room import refuse_impossible
from toque.functions.runtime.run.warm_workers import Worker, WorkerPool
from toque.functions.runtime.telemetry import DEAD_LETTERS, LOST
from toque.registry.times import CHANCE

NODES_PATIENCE_S = 60.0  # in which nodes join a cluster that starts
THREADS = 8  # runs in this process at a time; where they hang, others get processes
LOOK_EVERY_S = 0.5  # at the ledger, while a node is silent
_UNDECIDED = {"queued", "running"}


@dataclass
class Launcher:
    """Starts a worker for each attempt, and keeps the idle ones that functions declare with `warm`.

    ledger: holds the arguments that a demand is computed from; code_patience_s: as of the executor.
    """

    context: Context
    ledger: Ledger
    code_patience_s: float
    pool: WorkerPool = field(default_factory=WorkerPool)
    _threads: list[ThreadRun] = field(default_factory=list)
    _impossible_since: dict[str, float] = field(default_factory=dict)

    def awaits_nodes(self, function: DeclaredFunction) -> bool:
        """Whether no node could hold a run of the function, and one that could may be joining the cluster yet.

        Raises: NoRoom once that has been so for `NODES_PATIENCE_S`.
        """
        if (
            not cluster.running() or function.in_thread or function.demand
        ):  # an experiment waits for its room itself
            return False
        try:
            refuse_impossible(function)
        except NoRoom:
            since = self._impossible_since.setdefault(function.reference, time.monotonic())
            if time.monotonic() - since < NODES_PATIENCE_S:
                return True
            raise
        self._impossible_since.pop(function.reference, None)
        return False

    def refusal(self, record: Record) -> dict[str, Any] | None:
        """Make the entry that ends an invocation which brings what its workspace may not; None if it may."""
        brought = demand_of(record, self.ledger).environment
        try:
            self.context.environments.check(brought, self.context.workspace, on_ray=cluster.running())
        except EnvironmentRefused as refusal:
            return refused_entry(refusal)
        return None

    def start(
        self,
        function: DeclaredFunction,
        followed: FollowedRecord,
        silent: Nodes,
        *,
        worker: str,
        backfilled: bool = False,
    ) -> Worker:
        """Start a worker for an invocation, away from silent nodes. worker, backfilled: see `Attempt`."""
        known, sent_at = (followed.record, followed.head, self.context), self.ledger.clock()
        patience = (self.ledger.lease_s, self.code_patience_s)
        return self.start_attempt(Attempt(function, *known, *patience, sent_at, backfilled, worker), silent)

    def start_attempt(self, attempt: Attempt, silent: Nodes) -> Worker:
        """Start a worker for an attempt, away from silent nodes."""
        function, job = attempt.function, partial(run_in_worker, attempt)
        if function.in_thread and self._has_thread():
            self._threads.append(ThreadRun(function.name, lambda: Outcome(run_attempt(attempt))))
            return self._threads[-1]
        demand = demand_of(attempt.record, self.ledger) if function.demand else Demand()
        brought = self.context.environments.runtime_env(demand.environment)
        if cluster.running() and (brought or (demand.gpus > 0 and demand.workers == 1)):
            # Its process holds the cards, and gives them back by ending; nobody else runs in its environment.
            own = cluster.ActorWorker(
                function.name, function, avoided=silent.values(), demand=demand, runtime_env=brought
            )
            return own.run(job)
        idle = self.pool.acquire(function, silent=silent)
        if idle is None and function.demand and cluster.running():
            idle = self.pool.start_worker(function, avoided=silent.values())
        if idle is not None:
            return idle.run(job)
        if cluster.running():
            return _start_task(attempt, silent)
        return Child(function.name, retries=function.retries, module=function.body.__module__).run(job)

    def replenish(self) -> None:
        """Start the idle workers that functions declare with `warm` and that are missing."""
        self.pool.replenish(catalog.all_functions())

    def evict_idle(self, waiting: Container[str]) -> None:
        """End idle workers that hold what others need. waiting: references of the functions whose runs wait for a worker."""
        self.pool.evict_idle(catalog.all_functions(), waiting=waiting)

    def _has_thread(self) -> bool:
        self._threads = [each for each in self._threads if not each.wait(0)]
        return len(self._threads) < THREADS


def run_in_worker(attempt: Attempt) -> Outcome:
    """Run an attempt in a process that was started for it, or given to it."""
    enter_worker(attempt.context)
    if attempt.function.demand:
        lower_priority()
    return Outcome(run_attempt(attempt, end=end_process))


def _start_task(attempt: Attempt, silent: Nodes) -> Worker:
    function, task = attempt.function, _task(attempt.function)
    if silent:
        task = task.options(label_selector=cluster.selector_of(function, silent.values()))
    return cluster.ClusterRun(function.name, task.remote(attempt))


@cache
def _task(function: DeclaredFunction) -> Any:
    def run(attempt: Attempt) -> Outcome:
        return run_in_worker(attempt)

    options = cluster.task_options(function) | {"max_retries": 0}  # the executor retries, not Ray
    return cluster.task(function.name, run, options)


@dataclass
class Dispatch:
    """Workers that an invocation was given to and that have not ended.

    length: of the record that they were given; workers: by the ids of the silent nodes that each was kept away from; names: under which
    they claim it; node: address of the node that it was claimed on, once it is known.
    """

    function: DeclaredFunction
    length: int
    workers: dict[frozenset[str], Worker] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    node: str | None = None
    _looked_at: float = field(default=float("-inf"))

    def send(
        self, launcher: Launcher, followed: FollowedRecord, silent: Nodes, *, backfilled: bool = False
    ) -> None:
        """Start a worker for the invocation, away from silent nodes. backfilled: see `Attempt`."""
        name = uuid.uuid4().hex
        self.names.add(name)
        self.workers[frozenset(silent.values())] = launcher.start(
            self.function, followed, silent, worker=name, backfilled=backfilled
        )

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`; whether a worker has ended, be it that another thread has taken the last one already."""
        several = list(self.workers.values())
        return not several or any(each.wait(0) for each in several[:-1]) or several[-1].wait(timeout_s)

    def take(self) -> tuple[Outcome, bool]:
        """Remove a worker that has ended; returns its outcome, and whether that decides what becomes of the invocation."""
        avoided = next(each for each, worker in self.workers.items() if worker.wait(0))
        outcome = self.workers.pop(avoided).outcome()
        result = outcome.value
        decided = isinstance(result, AttemptResult) and result.status not in _UNDECIDED
        return outcome, decided or not self.workers

    def concerns(self, record: Record) -> bool:
        """Whether the end of these workers is the record's: one of them claimed it last, or nobody has since it was given to them."""
        return record.length == self.length if record.status == "queued" else record.worker in self.names

    def needs_look(self, silent: Nodes) -> bool:
        """Whether the ledger should be asked about it: it was claimed on a silent node, or may wait for one."""
        concerned = self.node in silent if self.node else frozenset(silent.values()) not in self.workers
        if not concerned or time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return False
        self._looked_at = time.monotonic()
        return True

    def kill(self) -> None:
        """Kill every worker that has not ended."""
        for each in self.workers.values():
            each.kill()


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
    entry = partial(
        loss_entry,
        function=function,
        reason=reason,
        worker=worker,
        now=ledger.clock(),
        waited_s=beat.waited_s if beat and beat.worker == worker else 0.0,
        usage=usage_of(beat, worker),
    )
    if followed.append(entry):
        labels = workspace, followed.record.function
        LOST.labels(*labels).inc()
        if followed.record.status == "dead":
            DEAD_LETTERS.labels(*labels).inc()


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
        return with_usage(failed_entry(retries, record.attempts + 1, failure, now), usage)
    failure = {"type": "WorkerLost", "message": reason}
    if record.lost >= retries.max_lost:
        return with_usage({"kind": "dead", "lost": True, "failure": failure}, usage)
    due = due_after(now, retries.backoff(record.lost + 1, draw=CHANCE.random()))
    return with_usage({"kind": "lost", "failure": failure, "due": due}, usage)
