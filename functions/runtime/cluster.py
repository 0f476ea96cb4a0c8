"""Runs on Ray: one task a run, its retries and its timeout inside the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, TaskCancelledError

from functions.runtime.declaration import ONCE, Resources, Retries
from functions.runtime.errors import Cancelled, WorkerLost
from functions.runtime.work import Outcome


class ClusterRun:
    """A Ray task that yields an Outcome."""

    def __init__(self, name: str, ref: Any) -> None:
        self._name = name
        self.ref = ref

    def result(self, timeout_s: float | None = None) -> Any:
        """See `Future.result`."""
        return self.outcome(timeout_s).unwrap()

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """How it ended; that may be Cancelled or WorkerLost. Raises: TimeoutError if it has not."""
        try:
            return Outcome.of(ray.get(self.ref, timeout=timeout_s))
        except GetTimeoutError as error:
            raise TimeoutError(
                f"{self._name} has not ended after {timeout_s} s of waiting; it goes on"
            ) from error
        except TaskCancelledError:
            return Outcome.failed(Cancelled(f"{self._name} was cancelled"), retries=ONCE)
        except RayError as error:
            lost = WorkerLost(f"{self._name}: its worker died, was preempted, or could not start it: {error}")
            return Outcome.failed(lost, retries=ONCE)

    def done(self) -> bool:
        """See `Future.done`."""
        return self.wait(0)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, waiting so long at most; a waiting worker lends its CPU to others."""
        ready, _ = ray.wait([self.ref], timeout=timeout_s)
        return bool(ready)

    def cancel(self) -> None:
        """Interrupt the task, or keep it from starting."""
        ray.cancel(self.ref, force=False)

    def kill(self) -> None:
        """End the task and its worker process at once."""
        ray.cancel(self.ref, force=True)


def running() -> bool:
    """Whether this process is connected to a Ray cluster."""
    return bool(ray.is_initialized())


def options(resources: Resources, retries: Retries, timeout_s: float | None) -> dict[str, Any]:
    """Ray's task options. Ray itself reruns a task whose worker died, unless the timeout may have killed it."""
    lost = retries.max_lost if timeout_s is None else 0
    asked: dict[str, Any] = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "max_retries": lost,
    }
    return asked | ({"memory": resources.memory_bytes} if resources.memory_bytes else {})


def task(name: str, run: Callable[..., Any], asked: Mapping[str, Any]) -> Any:
    """A Ray remote function that shows under the function's name."""
    run.__name__ = run.__qualname__ = name
    return ray.remote(**asked)(run)


def outcomes(runs: Sequence[object]) -> list[Outcome] | None:
    """The outcomes of runs that are all on the cluster, fetched together; None if they must be asked one by one."""
    refs = [run.ref for run in runs if isinstance(run, ClusterRun)]
    if len(refs) < len(runs):
        return None
    try:
        return [Outcome.of(each) for each in ray.get(refs)]
    except RayError:
        return None
