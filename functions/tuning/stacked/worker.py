"""Worker of a stacked sweep: one process that trains one stack after the other, an epoch a call."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from toque.functions.model_formats.torch_threads import torch_threads
from toque.functions.runtime.run.niceness import lower_priority
from toque.functions.training.loop.cost import ResourceMeter, ResourceUse
from toque.functions.training.loop.epoch import Epoch
from toque.functions.training.tabular.fitting import Prepared
from toque.functions.tuning.epoch_metrics import FINISHED, metrics_of
from toque.functions.tuning.stacked.states import Stack, StackStates
from toque.functions.tuning.stacked.trainer import StackedTrainer

Results = dict[int, dict[str, Any] | str]
"""Metrics of a trial's epoch by number, with its share of what the process used; or why the trial failed."""


class StackWorker:
    """Trains stacks on rows that were prepared once. threads, gpus: what the process has."""

    def __init__(self, prepared: Prepared, states: StackStates, threads: int, gpus: float) -> None:
        self._prepared, self._states, self._threads, self._gpus = prepared, states, threads, gpus
        self._device = "cuda" if gpus else "cpu"
        self._meter = ResourceMeter(self._device, gpus)
        self._begun: tuple[str, StackedTrainer] | None = None

    def epoch(self, stack: Stack) -> Results:
        """Train an epoch of a stack and save it; one that this worker has not trained begins with its saved states.

        Raises: TrainingError if a state that it begins with is gone.
        """
        with torch_threads(self._threads):
            trainer = self._trainer_of(stack)
            count = len(trainer.numbers)
            epochs = trainer.run_epoch()
            finished = set(trainer.finished())
            trainer.keep([each for each in trainer.numbers if each not in finished])
            if trainer.numbers:
                self._states.save(stack, trainer.epochs, trainer.state())
        share = _share(self._meter.lap(), count)
        return {
            number: {**metrics_of(found), **asdict(share), FINISHED: number in finished}
            if isinstance(found, Epoch)
            else found
            for number, found in epochs.items()
        }

    def _trainer_of(self, stack: Stack) -> StackedTrainer:
        if self._begun is not None and self._begun[0] == stack.name and self._begun[1].epochs == stack.since:
            return self._begun[1]
        self._begun = None  # so that two stacks never need memory together
        trainer = StackedTrainer(self._prepared, stack.trials, self._device)
        if stack.since:
            trainer.resume(self._states.load(stack.sources, stack.since))
        self._begun = (stack.name, trainer)
        return trainer


class NiceStackWorker(StackWorker):
    """Worker in a process of its own, which gives way to serving."""

    def __init__(self, prepared: Prepared, states: StackStates, threads: int, gpus: float) -> None:
        lower_priority()
        super().__init__(prepared, states, threads, gpus)


def _share(used: ResourceUse, count: int) -> ResourceUse:
    return ResourceUse(used.cpu_s / count, used.gpu_s / count, used.energy_j / count)
