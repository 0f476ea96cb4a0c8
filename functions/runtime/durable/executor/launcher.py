"""Launcher of workers: chooses where an attempt runs, in a thread, a warm worker, a process, an actor or a task of Ray."""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context
from toque.functions.runtime.declaration import Demand
from toque.functions.runtime.durable.admission.slots import demand_of, refused_entry
from toque.functions.runtime.durable.attempt import Attempt, run_attempt
from toque.functions.runtime.durable.ledger import FollowedRecord, Ledger
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.environments import EnvironmentRefused
from toque.functions.runtime.errors import NoRoom
from toque.functions.runtime.process import enter_worker
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.execution import Outcome
from toque.functions.runtime.run.forkserver import Child
from toque.functions.runtime.run.interruption import end_process
from toque.functions.runtime.run.niceness import lower_priority
from toque.functions.runtime.run.node_watch import Nodes
from toque.functions.runtime.run.room import refuse_impossible
from toque.functions.runtime.run.thread_run import ThreadRun
from toque.functions.runtime.run.warm_workers import Worker, WorkerPool

NODES_PATIENCE_S = 60.0  # in which nodes join a cluster that starts
THREADS = 8  # runs in this process at a time; where they hang, others get processes


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
