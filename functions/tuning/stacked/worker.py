"""Worker of a stacked sweep: one process that trains one stack after the other, an epoch a call, and the states it saves.

After each of the last two epochs one object holds all trials of a stack, from which they go on in any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from toque.functions.model_formats.load import torch_threads
from toque.functions.runtime.process import lower_priority
from toque.functions.training.cost import ResourceMeter, ResourceUse
from toque.functions.training.errors import TrainingError
from toque.functions.training.tabular.fitting import Prepared
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.trainer import Epoch
from toque.functions.tuning.stacked.trainer import StackedTrainer
from toque.functions.tuning.trial_states import FINISHED, Member, Snapshot, TrialFiles, metrics_of
from toque.registry import ObjectStore

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


@dataclass(frozen=True, slots=True)
class Stack:
    """Trials that train together up to a rung.

    name: of its saved states, as no other stack has it; trials: settings by number; since, until: epochs that all have, and train
    to; sources: names of the stacks that saved the trials' states after `since` epochs.
    """

    name: str
    trials: Mapping[int, TabularParams]
    since: int
    until: int
    sources: tuple[str, ...] = ()


@dataclass(slots=True)
class StackStates:
    """States of a sweep's stacks, below `folder` in `store`. newest: stack that saved each trial's newest state, by number."""

    store: ObjectStore
    folder: str
    newest: dict[int, str] = field(default_factory=dict)

    def save(self, stack: Stack, epochs: int, state: Snapshot) -> None:
        """Save the state of a stack's trials after so many epochs."""
        settings = {each["number"]: stack.trials[each["number"]] for each in state.facts["trials"]}
        facts = {
            "trials": [
                {**each, "settings": settings[each["number"]].model_dump(mode="json")}
                for each in state.facts["trials"]
            ]
        }
        self._of(stack.name).save(epochs - 1, Snapshot(state.tensors, facts))

    def load(self, names: Iterable[str], epochs: int) -> list[Snapshot]:
        """Load what stacks saved after so many epochs. Raises: TrainingError if it is absent or damaged."""
        found = []
        for name in names:
            state = self._of(name).at(epochs - 1)
            if state is None:
                raise TrainingError(
                    f"the state of the trials after {epochs} epochs is gone from {self.folder}{name} or damaged: start the sweep "
                    f"again, it resumes from what is complete"
                )
            found.append(state)
        return found

    def members(self) -> dict[int, Member]:
        """Read the metrics and settings of all saved trials, by number, and remember where their newest states are."""
        found: dict[int, Member] = {}
        for name in sorted(
            {key.removeprefix(self.folder).partition("/")[0] for key in self.store.list(self.folder)}
        ):
            state = self._of(name).latest()
            for each in [] if state is None else state.facts["trials"]:
                number, before = each["number"], found.get(each["number"])
                if before is None or len(before.metrics) < len(each["epochs"]):
                    metrics = [metrics_of(Epoch(**epoch)) for epoch in each["epochs"]]
                    settings = TabularParams.model_validate(each["settings"])
                    found[number] = Member(settings=settings, weights=number, metrics=metrics, exploits=[])
                    self.newest[number] = name
        return found

    def _of(self, name: str) -> TrialFiles:
        return TrialFiles(self.store, f"{self.folder}{name}/")
