"""ASHA over stacks of trials, and the workers that train them: actors away from serving, replaced when they die.

The scheduler is that of trials one by one. It is asked for as many trials as a stack holds, which the next free worker trains to
their rung; trials of other shapes, or at another rung, make stacks of their own.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError, RayTaskError

from toque.functions.runtime.run.cluster import AWAY_FROM_SERVING
from toque.functions.training.errors import TrainingError
from toque.functions.training.tabular.fitting import Prepared
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.ray_tune import SINCE, UNTIL, AshaSearcher
from toque.functions.tuning.stacked.trainer import stack_key
from toque.functions.tuning.stacked.worker import NiceStackWorker, Results, Stack, StackStates
from toque.functions.tuning.tracking import TrialTracker
from toque.functions.tuning.trial_states import FINISHED
from toque.functions.tuning.trials import TrialResources

_MOST_LOSSES = 3  # workers that a stack may lose before it ends an epoch


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


class WorkerLost(Exception):  # noqa: N818 - says what happened
    """The process of a worker has died; another one takes its place."""


class Pool(Protocol):
    """Workers of which each trains an epoch of one stack at a time."""

    @property
    def free(self) -> bool:
        """Whether a worker has nothing to do."""

    def start(self, stack: Stack) -> None:
        """Let the worker that trained the stack's last epoch, or another free one, train the next."""

    def wait(self) -> tuple[Stack, Results | Exception] | None:
        """Wait for an epoch of a stack to end, with results or an error, or for one more worker to be free (None)."""


def run_stacks(
    pool: Pool, searcher: AshaSearcher, states: StackStates, tracker: TrialTracker, size: int
) -> dict[int, str]:
    """Train the trials that `searcher` chooses in stacks of up to `size`, within the tracker's limits.

    Returns: why trials failed, by number.
    """
    sweep = _StackedSweep(searcher, states, tracker, size)
    while True:
        while pool.free and not tracker.limit_reached() and (stack := sweep.next()) is not None:
            pool.start(stack)
            sweep.begin(stack)  # while it trains
        tracker.close_beaten()  # the same
        if not sweep.training and (not sweep.waiting or tracker.limit_reached()):
            return sweep.errors
        ended = pool.wait()
        if ended is not None:
            sweep.record(*ended)


class _StackedSweep:
    """State of a sweep: stacks in training and those that wait for a worker. errors: why trials failed, by number."""

    def __init__(self, searcher: AshaSearcher, states: StackStates, tracker: TrialTracker, size: int) -> None:
        self.errors: dict[int, str] = {}
        self.waiting: deque[Stack] = deque()
        self.training = 0
        self._searcher, self._states, self._tracker, self._size = searcher, states, tracker, size
        self._losses: dict[str, int] = {}  # workers that a stack has lost in its present epoch
        self._asked, self._names = 0, dict[int, str]()  # of suggestions, by trial, as the searcher knows them

    def next(self) -> Stack | None:
        """Next stack to train an epoch of; None if no trial can train now."""
        if not self.waiting:
            self.waiting.extend(self._suggested())
        if not self.waiting:
            return None
        self.training += 1
        return self.waiting.popleft()

    def begin(self, stack: Stack) -> None:
        """Begin the runs of a stack's trials that have none yet."""
        for number in stack.trials:
            self._tracker.begin_trial(number)

    def record(self, stack: Stack, results: Results | Exception) -> None:
        """Record an epoch of a stack; the trials that have not reached their rung go on."""
        self.training -= 1
        if isinstance(results, Exception):
            self._lost(stack, results)
            return
        self._losses.pop(stack.name, None)
        on = {}
        for number, result in results.items():
            if isinstance(result, str):
                self._fail(number, result)
            elif self._goes_on(stack, number, result):
                on[number] = stack.trials[number]
        if on:
            self.waiting.appendleft(Stack(stack.name, on, stack.since + 1, stack.until, (stack.name,)))

    def _goes_on(self, stack: Stack, number: int, result: dict[str, Any]) -> bool:
        """Record a trial's epoch; whether it has neither ended nor reached its rung."""
        self._tracker.log_epoch(number, result)
        self._states.newest[number] = stack.name
        if not result[FINISHED] and stack.since + 1 < stack.until:
            self._searcher.on_trial_result(self._names[number], result)
            return True
        self._searcher.on_trial_complete(self._names.pop(number), result)
        if result[FINISHED]:
            self._tracker.close_trial(number)
        return False

    def _lost(self, stack: Stack, error: Exception) -> None:
        """Train a lost worker's epoch again from the saved states; give its trials up if workers die again and again."""
        losses = self._losses[stack.name] = self._losses.get(stack.name, 0) + 1
        if isinstance(error, WorkerLost) and losses < _MOST_LOSSES:
            self.waiting.appendleft(stack)
            return
        for number in stack.trials:
            self._fail(number, f"{type(error).__name__}: {error}")

    def _fail(self, number: int, reason: str) -> None:
        self.errors[number] = reason
        self._searcher.on_trial_complete(self._names.pop(number), error=True)
        self._tracker.fail_trial(number)

    def _suggested(self) -> Iterator[Stack]:
        """Stacks of the trials that the searcher lets train now, as many as one stack holds."""
        alike: dict[tuple[str, int, int], dict[int, TabularParams]] = {}
        for _ in range(self._size):
            self._asked += 1
            config = self._searcher.suggest(str(self._asked))
            if not isinstance(config, dict):
                break
            number, settings = config["point"], TabularParams.model_validate(config["settings"])
            self._names[number] = str(self._asked)
            alike.setdefault((stack_key(settings), config[SINCE], config[UNTIL]), {})[number] = settings
        for (_, since, until), trials in alike.items():
            sources = tuple(dict.fromkeys(self._states.newest[each] for each in trials)) if since else ()
            yield Stack(secrets.token_hex(8), trials, since, until, sources)
