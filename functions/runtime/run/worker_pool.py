"""Workers kept waiting with a function's imports done, for functions declared with `warm=n`, and on Ray those of experiments.

They belong to an executor and attend to durable runs. Locally a warm worker is a child process that serves one run
and is then replaced; on Ray it is an actor that serves one run after another and holds the function's resources. An
experiment's is kept as long as others of its function wait: Ray takes a second of CPU, or several, to begin a process, at the
niceness of whatever serves beside it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from functions.runtime.errors import FunctionError
from functions.runtime.run import cluster
from functions.runtime.run.declared import DeclaredFunction
from functions.runtime.run.execution import Outcome
from functions.runtime.run.forkserver import Child, Job, State

AFTER_FAILURE_S = 30.0
IDLE_S = 5.0  # what waits may be kept from its turn by a quota, and this worker holds resources
_logger = logging.getLogger(__name__)


class Worker(Protocol):
    """A process that attends to an invocation."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, waiting so long at most."""
        ...

    def outcome(self) -> Outcome:
        """What it returned: an Attended, or an error if it died."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class IdleWorker(Protocol):
    """A process that waits for a job."""

    def state(self) -> State:
        """What it is at."""
        ...

    def run(self, job: Job) -> Worker:
        """Start the job in it."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


@dataclass
class WorkerPool:
    """The warm workers of one executor."""

    _idle: dict[str, list[IdleWorker]] = field(default_factory=dict)
    _not_before: dict[str, float] = field(default_factory=dict)
    _ready_since: dict[IdleWorker, float] = field(default_factory=dict)  # those beyond what `warm` asks for

    def replenish(self, functions: Iterable[DeclaredFunction]) -> None:
        """See that for each function that wants warm workers as many are waiting, or on their way."""
        for function in functions:
            if function.warm:
                self._refill(function)

    def acquire(self, function: DeclaredFunction) -> IdleWorker | None:
        """A worker of the function that is ready, to be given a job at once; None if there is none."""
        found = next((each for each in self._idle_of(function) if each.state() == "ready"), None)
        if found is not None:
            self._ready_since.pop(found, None)
        return found

    def start_worker(self, function: DeclaredFunction) -> IdleWorker:
        """One more worker of the function, to be given a job at once. Raises: FunctionError."""
        started = _start(function)
        self._idle_of(function).append(started)
        return started

    def evict_idle(self, functions: Iterable[DeclaredFunction], *, wanted: Container[str]) -> None:
        """End what `start_worker` began and has no job, unless runs of its function wait that may come to it in a moment.

        wanted: references of the functions of which runs wait.
        """
        for function in functions:
            idle = self._idle.get(_key(function), [])
            spare = [each for each in idle if each.state() in {"ready", "gone", "failed"}][function.warm :]
            for each in spare:
                if function.reference not in wanted or self._idle_s(each) > IDLE_S or each.state() != "ready":
                    each.kill()
                    idle.remove(each)
                    self._ready_since.pop(each, None)

    def _idle_s(self, idle: IdleWorker) -> float:
        now = time.monotonic()
        return now - self._ready_since.setdefault(idle, now)

    def ready_count(self, function: DeclaredFunction) -> int:
        """How many are waiting for work, imports done."""
        return sum(each.state() == "ready" for each in self._idle_of(function))

    def close(self) -> None:
        """End them all."""
        for idle in self._idle.values():
            for each in idle:
                each.kill()
        self._idle.clear()

    def _idle_of(self, function: DeclaredFunction) -> list[IdleWorker]:
        return self._idle.setdefault(_key(function), [])

    def _refill(self, function: DeclaredFunction) -> None:
        idle, key = self._idle_of(function), _key(function)
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
        self._not_before[_key(function)] = time.monotonic() + AFTER_FAILURE_S


class _WarmChild:
    """A child process that has imported the function's module; good for one job."""

    def __init__(self, function: DeclaredFunction) -> None:
        module = function.reference.partition(":")[0]
        self._child = Child(function.name, retries=function.retries, ready=module)
        self._spent = False

    def state(self) -> State:
        return "gone" if self._spent else self._child.state()

    def run(self, job: Job) -> Worker:
        self._spent = True
        return self._child.run(job)

    def kill(self) -> None:
        self._child.kill()


def _key(function: DeclaredFunction) -> str:
    where = "ray" if cluster.running() else "here"
    return f"{where} {function.reference} {function.digest}"


def _start(function: DeclaredFunction) -> IdleWorker:
    if cluster.running():
        return cluster.ActorWorker(function.name, function)
    return _WarmChild(function)
