"""Workers of a stacked sweep on the Ray cluster: actors away from serving, replaced when their process dies."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from toque.functions.runtime.run.cluster import AWAY_FROM_SERVING
from toque.functions.training.errors import TrainingError
from toque.functions.training.tabular.fitting import Prepared
from toque.functions.tuning.ray_tune_asha import AshaSearcher
from toque.functions.tuning.stacked.states import Stack, StackStates
from toque.functions.tuning.stacked.sweep import WorkerLost, run_stacks
from toque.functions.tuning.stacked.worker import NiceStackWorker, Results
from toque.functions.tuning.tracking import TrialTracker
from toque.functions.tuning.trials import TrialResources


def run_stacked(
    prepared: Prepared,
    searcher: AshaSearcher,
    states: StackStates,
    tracker: TrialTracker,
    resources: TrialResources,
    *,
    size: int,
) -> None:
    """Train the trials that `searcher` chooses, `size` in each worker, once there is room; the tracker records how they ended."""
    errors: dict[int, str] = {}
    ended = False
    try:
        with closing(RayPool(prepared, states, resources)) as pool:
            errors = run_stacks(pool, searcher, states, tracker, size)
        ended = True
    finally:
        tracker.close(errors, ended=ended)


@dataclass(eq=False, slots=True)
class _Worker:
    """Actor of one worker of the pool. trained: name of the stack that it trained last; task: what it does now."""

    actor: Any
    task: Any
    trained: str = ""
    stack: Stack | None = None


@dataclass(slots=True)
class RayPool:
    """Pool of as many workers as `resources` say; the first has begun when the pool is made, the others come as there is room."""

    prepared: Prepared
    states: StackStates
    resources: TrialResources
    _rows: Any = None
    _busy: list[_Worker] = field(default_factory=list)
    _idle: list[_Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.resources.wait_for_room()
        self._rows = ray.put(self.prepared)
        self._busy = [self._new() for _ in range(self.resources.concurrency)]
        self.wait()

    @property
    def free(self) -> bool:
        """Whether a worker has begun and has nothing to do."""
        return bool(self._idle)

    def start(self, stack: Stack) -> None:
        """Let the worker that trained the stack's last epoch, or another free one, train the next."""
        worker = next((each for each in self._idle if each.trained == stack.name), self._idle[0])
        self._idle.remove(worker)
        worker.stack, worker.trained, worker.task = stack, stack.name, worker.actor.epoch.remote(stack)
        self._busy.append(worker)

    def wait(self) -> tuple[Stack, Results | Exception] | None:
        """Wait for an epoch of a stack to end, with results or an error, or for one more worker to be free (None).

        Raises: TrainingError if a worker cannot begin.
        """
        ready, _ = ray.wait([each.task for each in self._busy], num_returns=1)
        worker = next(each for each in self._busy if each.task == ready[0])
        self._busy.remove(worker)
        stack, worker.stack = worker.stack, None
        try:
            found: Results | Exception = ray.get(worker.task)
        except RayActorError as error:
            if stack is None:
                raise TrainingError(f"a worker of the sweep cannot begin: {error}") from error
            self._busy.append(self._new())
            return stack, WorkerLost(f"the process of a worker has died: {error}")
        except RayTaskError as error:
            found = error.cause if isinstance(error.cause, Exception) else error
        self._idle.append(worker)
        return None if stack is None else (stack, found)

    def close(self) -> None:
        """End the processes of all workers."""
        for worker in (*self._busy, *self._idle):
            ray.kill(worker.actor)

    def _new(self) -> _Worker:
        actor = (
            ray.remote(NiceStackWorker)
            .options(
                num_cpus=self.resources.cpus_per_trial,
                num_gpus=self.resources.gpus_per_trial,
                label_selector=AWAY_FROM_SERVING,
            )
            .remote(
                self._rows,
                self.states,
                max(1, int(self.resources.cpus_per_trial)),
                self.resources.gpus_per_trial,
            )
        )
        ready = actor.__ray_ready__.remote()  # type: ignore[union-attr]  # every actor has it
        return _Worker(actor, ready)
