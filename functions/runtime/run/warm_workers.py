"""Pool of idle workers with a function's imports done, for `warm=n` functions and, on Ray, for experiments.

The pool belongs to an executor, and its workers run durable invocations. Locally a warm worker is a child
process that runs one attempt and is then replaced; on Ray it is an actor that runs one after another and
holds the function's resources. The worker of an experiment is kept while other runs of its function wait: Ray
takes seconds of CPU to start a process, at the priority of the serving processes beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from toque.functions.runtime.errors import FunctionError
from toque.functions.runtime.run import cluster
from toque.functions.runtime.run.declared import DeclaredFunction
from toque.functions.runtime.run.execution import Outcome
from toque.functions.runtime.run.forkserver import Child, Job, State

AFTER_FAILURE_S = 30.0
IDLE_S = 5.0  # a waiting run may be blocked by a quota for long, and this worker holds resources
_logger = logging.getLogger(__name__)


class Worker(Protocol):
    """Process that runs an attempt of an invocation."""

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`; whether the process has ended."""
        ...

    def outcome(self) -> Outcome:
        """Return the outcome: an AttemptResult, or an error if the process died."""
        ...

    def kill(self) -> None:
        """Kill the process at once."""
        ...


class IdleWorker(Protocol):
    """Process that waits for a job, its imports done."""

    def state(self) -> State:
        """Return the state of the process."""
        ...

    def node(self) -> str | None:
        """Return the address of its Ray node, if it is on one and ready."""
        ...

    def run(self, job: Job) -> Worker:
        """Start a job in the process."""
        ...

    def kill(self) -> None:
        """Kill the process at once."""
        ...


class _Key(NamedTuple):
    """Identity of what idle workers can run: on the cluster or here, a function with its code."""

    on_ray: bool
    reference: str
    digest: str

    @classmethod
    def of(cls, function: DeclaredFunction) -> _Key:
        return cls(cluster.running(), function.reference, function.digest)


@dataclass
class WorkerPool:
    """Idle workers of one executor, by function."""

    _idle: dict[_Key, list[IdleWorker]] = field(default_factory=dict)
    _not_before: dict[_Key, float] = field(default_factory=dict)
    _ready_since: dict[IdleWorker, float] = field(default_factory=dict)  # of the workers beyond `warm`

    def replenish(self, functions: Iterable[DeclaredFunction]) -> None:
        """Start workers until each function has as many idle or starting ones as its `warm`."""
        for function in functions:
            if function.warm:
                self._refill(function)

    def acquire(self, function: DeclaredFunction, *, silent: Container[str] = ()) -> IdleWorker | None:
        """Take a ready worker of the function, to be given a job at once; None if there is no such worker.

        silent: addresses of the nodes on which no worker counts as ready.
        """
        ready = (each for each in self._idle_of(function) if each.state() == "ready")
        found = next((each for each in ready if each.node() not in silent), None)
        if found is not None:
            self._ready_since.pop(found, None)
        return found

    def start_worker(self, function: DeclaredFunction, *, avoided: Collection[str] = ()) -> IdleWorker:
        """Start one more worker of the function, to be given a job at once and kept after it. Raises: FunctionError.

        avoided: ids of the nodes on which it is not started.
        """
        started = _start(function, avoided)
        self._idle_of(function).append(started)
        return started

    def evict_idle(self, functions: Iterable[DeclaredFunction], *, waiting: Container[str]) -> None:
        """Kill idle workers beyond `warm`; while runs of their function wait, only after `IDLE_S`.

        waiting: references of the functions that have waiting runs.
        """
        known = {key.reference for key, idle in self._idle.items() if idle}
        for function in functions:
            if function.reference not in known:
                continue  # before its key is asked for: the digests of all functions take seconds, once in a process
            idle = self._idle.get(_Key.of(function), [])
            spare = [each for each in idle if each.state() in {"ready", "gone", "failed"}][function.warm :]
            for each in spare:
                expired = function.reference not in waiting or self._idle_s(each) > IDLE_S
                if expired or each.state() != "ready":
                    each.kill()
                    idle.remove(each)
                    self._ready_since.pop(each, None)

    def _idle_s(self, idle: IdleWorker) -> float:
        now = time.monotonic()
        return now - self._ready_since.setdefault(idle, now)

    def ready_count(self, function: DeclaredFunction) -> int:
        """Count the ready workers of a function."""
        return sum(each.state() == "ready" for each in self._idle_of(function))

    def close(self) -> None:
        """Kill all idle workers of the pool."""
        for idle in self._idle.values():
            for each in idle:
                each.kill()
        self._idle.clear()

    def _idle_of(self, function: DeclaredFunction) -> list[IdleWorker]:
        return self._idle.setdefault(_Key.of(function), [])

    def _refill(self, function: DeclaredFunction) -> None:
        idle, key = self._idle_of(function), _Key.of(function)
        states = [each.state() for each in idle]
        idle[:] = [each for each, state in zip(idle, states, strict=True) if state not in {"gone", "failed"}]
        if "failed" in states:
            self._back_off(
                function, "it ended before its imports were done; can its module be imported there?"
            )
        while len(idle) < function.warm and time.monotonic() >= self._not_before.get(key, 0):
            try:
                idle.append(_start(function))
            except FunctionError as error:
                self._back_off(function, str(error))

    def _back_off(self, function: DeclaredFunction, reason: str) -> None:
        _logger.warning("%s: no warm worker for %s s: %s", function.name, AFTER_FAILURE_S, reason)
        self._not_before[_Key.of(function)] = time.monotonic() + AFTER_FAILURE_S


def _start(function: DeclaredFunction, avoided: Collection[str] = ()) -> IdleWorker:
    if cluster.running():
        return cluster.ActorWorker(function.name, function, avoided=avoided)
    module = function.reference.partition(":")[0]
    return Child(function.name, retries=function.retries, ready=module)
