"""Runs on Ray: one task for each run, with its retries and its timeout inside the worker."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pickle import PicklingError
from typing import Any, Protocol

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
    TaskCancelledError,
)

from toque.clusters.ray_private import RAY_JOB_CONFIG_JSON_ENV_VAR, worker
from toque.functions.runtime.cards import SLICED, SLICED_VALUE, is_slice
from toque.functions.runtime.declaration import ONCE, Demand, Resources, Retries
from toque.functions.runtime.errors import Cancelled, EnvironmentFailed, InvalidResult, TimedOut, WorkerLost
from toque.functions.runtime.run.execution import Outcome
from toque.functions.runtime.run.forkserver import State
from toque.functions.runtime.run.interruption import GRACE_S

NODE_GROUP, SERVING_GROUP = "ray.io/node-group", "serve"  # Ray's own label: the name of a node's type
NODE_ID = "ray.io/node-id"  # the same
CARD = "ray.io/accelerator-type"  # the same
AWAY_FROM_SERVING = {NODE_GROUP: f"!{SERVING_GROUP}"}
_logger = logging.getLogger(__name__)
_TOLD = 1_000  # characters of an error that pip does not explain
SEND_S = 0.1  # longer than Ray takes to send a task to a worker


@cache
def say_if_unconnected() -> None:
    """Say, once in a process, that its runs stay in it although its environment names a cluster."""
    if address := os.environ.get("RAY_ADDRESS"):
        _logger.warning(
            "RAY_ADDRESS is %s and this process is not connected: remote runs are threads of its own; call ray.init() first",
            address,
        )


class ClusterRun:
    """Ray task that yields an Outcome. timeout_s: after which its own worker kills it."""

    def __init__(self, name: str, ref: Any, *, timeout_s: float | None = None) -> None:
        self._name = name
        self._timeout_s = timeout_s
        self._started = time.monotonic()
        self.ref = ref

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the result; see `Future.result`."""
        return self.outcome(timeout_s).unwrap()

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """Wait for the task's end and return its outcome, Cancelled and WorkerLost included. Raises: TimeoutError."""
        try:
            return Outcome.of(ray.get(self.ref, timeout=timeout_s))
        except GetTimeoutError as error:
            raise TimeoutError(
                f"{self._name} has not ended after {timeout_s} s of waiting; it goes on"
            ) from error
        except TaskCancelledError:
            return Outcome.failed(Cancelled(f"{self._name} was cancelled"), retries=ONCE)
        except RayError as error:
            return Outcome.failed(self._loss(error), retries=ONCE)

    def _loss(self, error: RayError) -> EnvironmentFailed | WorkerLost | TimedOut | InvalidResult:
        if isinstance(error, RuntimeEnvSetupError):
            return EnvironmentFailed(
                f"{self._name}: a node could not make its environment: {_told(str(error))}"
            )
        if isinstance(error, RayTaskError) and isinstance(error.cause, TypeError | PicklingError):
            return InvalidResult(f"{self._name}: the result cannot leave its worker: {error.cause}")
        overdue = self._timeout_s is not None and time.monotonic() - self._started > self._timeout_s + GRACE_S
        if overdue and not isinstance(error, NodeDiedError):  # it may have waited for a node before it ran
            # Code that ignores its alarm is ended with its process, which can then report nothing.
            return TimedOut(f"{self._name} ran past timeout_s={self._timeout_s} and its worker was killed")
        return WorkerLost(f"{self._name}: its worker died, was preempted, or could not start it: {error}")

    def done(self) -> bool:
        """Whether the task has ended; see `Future.done`."""
        return self.wait(0)

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s`; whether the task has ended. A waiting worker releases its CPU."""
        ready, _ = ray.wait([self.ref], timeout=timeout_s)
        return bool(ready)

    def cancel(self) -> None:
        """Interrupt the task, or keep it from starting."""
        ray.cancel(self.ref, force=False)

    def kill(self) -> None:
        """Kill the task and its worker process."""
        ray.cancel(self.ref, force=True)


def _told(text: str) -> str:
    """What pip said was wrong, of all that Ray tells; else its end."""
    found = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip().startswith("ERROR:"))
    return " ".join(found) or text[-_TOLD:]


class ActorWorker:
    """Ray actor that has a function's imports done, holds its resources, and runs one job after another."""

    def __init__(
        self,
        name: str,
        function: PlacedFunction,
        *,
        avoided: Collection[str] = (),
        demand: Demand | None = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = name
        actor_class = type(name, (_WorkerActor,), {})  # Ray shows it under this name
        options = _placement(function, avoided, demand) | (
            {"runtime_env": runtime_env} if runtime_env else {}
        )
        remote_class: Any = ray.remote(**options)(actor_class)
        self._actor = remote_class.remote(function)
        self._ready_run = ClusterRun(name, self._actor.ready.remote())
        self._last_run: ClusterRun | None = None

    def state(self) -> State:
        """Return the actor's state; the outcome of the last job shows whether it was killed."""
        last = self._last_run or self._ready_run
        if not last.done():
            return "busy" if self._last_run else "starting"
        error = last.outcome().error
        if error is None or not error.lost:
            return "ready"
        return "gone" if self._last_run else "failed"

    def node(self) -> str | None:
        """Return the address of its node's raylet, once it is ready."""
        return self._ready_run.outcome().value if self.state() == "ready" else None

    def run(self, job: Callable[[], Outcome]) -> ClusterRun:
        """Start a job in the actor; see `IdleWorker.run`."""
        self._last_run = _ActorRun(self._name, self._actor.run.remote(job), self._actor)
        return self._last_run

    def kill(self) -> None:
        """Kill the actor, and with it its worker process."""
        ray.kill(self._actor)


class _ActorRun(ClusterRun):
    """Job of an ActorWorker; killing the run kills the actor."""

    def __init__(self, name: str, ref: Any, actor: Any) -> None:
        super().__init__(name, ref)
        self._actor = actor

    def kill(self) -> None:
        ray.kill(self._actor)


class _WorkerActor:
    """Class of the actor; unpickling the function in it imports the function's module."""

    def __init__(self, function: object) -> None:
        self._function = function

    def ready(self) -> Outcome:
        return Outcome(own_node())

    def run(self, job: Callable[[], Outcome]) -> Outcome:
        return job()


def running() -> bool:
    """Whether this process is connected to a Ray cluster."""
    return bool(ray.is_initialized())


def own_node() -> str | None:
    """Address of the raylet of this process's node; None outside of a cluster."""
    node = getattr(worker, "_global_node", None) if running() else None
    return None if node is None else f"{node.node_ip_address}:{node.node_manager_port}"


def wait_until_sent() -> None:
    """Wait until tasks that are being sent have reached their workers, before they are cancelled.

    Ray 2.60 aborts this process if a task is cancelled while it is sent ("Tried to complete task that was not
    pending"). When an error arrives a task is being sent, since the worker of the failed one is free for the
    next.
    """
    if running():
        time.sleep(SEND_S)


def in_job() -> bool:
    """Whether this process is the entry point of a Ray job."""
    return RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the cluster of the job within the block, with the job's files on its workers."""
    ray.init(configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


class PlacedFunction(Protocol):
    """Options of a declared function that decide where its runs are placed."""

    name: str
    resources: Resources
    retries: Retries
    timeout_s: float | None
    demand: Callable[..., Demand] | None


def task_options(function: PlacedFunction) -> dict[str, Any]:
    """Build Ray's task options; Ray reruns a task whose worker died, unless a timeout may have killed it."""
    max_lost = function.retries.max_lost if function.timeout_s is None else 0
    return _placement(function) | {"max_retries": max_lost}


def selector_of(function: PlacedFunction, avoided: Collection[str]) -> dict[str, str]:
    """Build the labels of nodes that may take a run: none of those `avoided`, by id, nor any that serves, if it has a demand."""
    return away_from(avoided) | (AWAY_FROM_SERVING if function.demand else {})


def away_from(nodes: Collection[str]) -> dict[str, str]:
    """Build the labels of all nodes but these, by id."""
    return {NODE_ID: f"!in({','.join(sorted(nodes))})"} if nodes else {}


def own_gpus(function: PlacedFunction, demand: Demand) -> float:
    """GPUs that the process of a run holds itself: those of a single worker, since several workers have their own processes."""
    return max(function.resources.num_gpus, demand.gpus if demand.workers == 1 else 0.0)


def _placement(
    function: PlacedFunction, avoided: Collection[str] = (), demand: Demand | None = None
) -> dict[str, Any]:
    """Build the options of a run that decide where it is placed. demand: of an experiment whose cards its own process holds."""
    resources, demand = function.resources, demand or Demand()
    gpus = own_gpus(function, demand)
    options: dict[str, Any] = {"num_cpus": resources.num_cpus, "num_gpus": gpus}
    memory_bytes = max(resources.memory_bytes or 0, demand.memory_bytes if demand.workers == 1 else 0)
    memory = {"memory": memory_bytes} if memory_bytes else {}
    selector = selector_of(function, avoided) | card_selector(demand.card, gpus)
    return options | memory | ({"label_selector": selector} if selector else {})


def card_selector(card: str | None, gpus: float) -> dict[str, str]:
    """Build the labels of nodes with one type of card, or of any with whole ones; none for work without GPUs."""
    if gpus <= 0:
        return {}
    whole = {} if is_slice(card) else {SLICED: f"!{SLICED_VALUE}"}
    return whole | ({} if card is None else {CARD: card})


def task(name: str, run: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Make a Ray remote function that Ray shows under the function's name."""
    run.__name__ = run.__qualname__ = name
    return ray.remote(**options)(run)


def outcomes(runs: Sequence[object]) -> list[Outcome] | None:
    """Fetch the outcomes of runs in one call; None unless all are on the cluster and none was lost."""
    refs = [run.ref for run in runs if isinstance(run, ClusterRun)]
    if len(refs) < len(runs):
        return None
    try:
        return [Outcome.of(each) for each in ray.get(refs)]
    except RayError:
        return None
