"""Saved states of stacks after their last two epochs: one object holds all trials of a stack, from which they go on in any other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from toque.functions.training.errors import TrainingError
from toque.functions.training.loop.epoch import Epoch
from toque.functions.training.params import TabularParams
from toque.functions.tuning.epoch_metrics import metrics_of
from toque.functions.tuning.pbt_state import Member
from toque.functions.tuning.trial_files import Snapshot, TrialFiles
from toque.registry import ObjectStore


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
