"""Runs on Ray: one task a run, its retries inside the worker, its timeout enforced there."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, TaskCancelledError

from functions.runtime.declaration import Resources, Retries
from functions.runtime.errors import Cancelled, TimedOut, WorkerLost
from functions.runtime.work import Outcome, complete

GRACE_S = 5.0


class ClusterRun:
    """A Ray task that yields an Outcome."""

    def __init__(self, name: str, ref: Any) -> None:
        self._name = name
        self.ref = ref

    def result(self, timeout_s: float | None = None) -> Any:
        """See `Future.result`."""
        return self.outcome(timeout_s).unwrap()

    def outcome(self, timeout_s: float | None = None) -> Outcome:
        """How it ended. Raises: TimeoutError, Cancelled, WorkerLost."""
        try:
            outcome: Outcome = ray.get(self.ref, timeout=timeout_s)
        except GetTimeoutError as error:
            raise TimeoutError(
                f"{self._name} has not ended after {timeout_s} s of waiting; it goes on"
            ) from error
        except TaskCancelledError as error:
            raise Cancelled(f"{self._name} was cancelled") from error
        except RayError as error:
            raise WorkerLost(
                f"{self._name}: its worker died, was preempted, or could not start it: {error}"
            ) from error
        return outcome

    def done(self) -> bool:
        """See `Future.done`."""
        ready, _ = ray.wait([self.ref], timeout=0)
        return bool(ready)

    def cancel(self) -> None:
        """Interrupt the task, or keep it from starting."""
        ray.cancel(self.ref, force=False)


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


def task(name: str, run: Callable[..., Outcome], asked: Mapping[str, Any]) -> Any:
    """A Ray remote function that shows under the function's name."""
    run.__name__ = run.__qualname__ = name
    return ray.remote(**asked)(run)


def outcomes(runs: Sequence[object]) -> list[Outcome] | None:
    """The outcomes of runs that are all on the cluster, fetched together; None if they must be asked one by one."""
    refs = [run.ref for run in runs if isinstance(run, ClusterRun)]
    if len(refs) < len(runs):
        return None
    try:
        return list(ray.get(refs))
    except RayError:
        return None


def bounded(name: str, body: Callable[..., Any], timeout_s: float | None) -> Callable[..., Any]:
    """`body`, seen through to its end within its deadline."""
    if timeout_s is None:
        return body

    def within(**arguments: Any) -> Any:
        with deadline(name, timeout_s):
            return complete(body, arguments)

    return within


@contextmanager
def deadline(name: str, timeout_s: float | None) -> Iterator[None]:
    """Raise TimedOut in the block after `timeout_s`; code that does not listen is killed a little later.

    The alarm interrupts Python code and system calls. A loop in C hears no alarm: faulthandler's watchdog, which
    needs no interpreter lock, then ends the process.
    """
    if timeout_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise TimedOut(f"{name} ran past timeout_s={timeout_s} and was killed")

    before = signal.signal(signal.SIGALRM, late)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # the watchdog wants a descriptor
        faulthandler.dump_traceback_later(timeout_s + GRACE_S, exit=True, file=nowhere)
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, before)
