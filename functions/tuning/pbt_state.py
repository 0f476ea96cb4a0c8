"""Saved state of a population, from which it resumes after an interruption: its members' weights and the decisions.

Every so many epochs all members wait for each other, and one decision says with whose weights and which settings each
continues. A member saves its weights before that, so a population can resume from any decision whose weights are all saved;
later epochs are trained again, from the same weights, settings and random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from toque.functions.training.errors import TrainingError
from toque.functions.training.params import TabularParams
from toque.functions.tuning.space import Exploit
from toque.functions.tuning.trial_files import Snapshot, TrialFiles
from toque.registry import ObjectStore

_DECISION = re.compile(r"decision-(\d{6})\.json")


class Member(BaseModel):
    """Member of a population after a decision.

    weights: number of the trial whose weights it continues with; metrics: of each of its epochs, stored as `told`.
    """

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)

    settings: TabularParams
    weights: int
    metrics: list[dict[str, float]] = Field(
        validation_alias=AliasChoices("metrics", "told"), serialization_alias="told"
    )
    exploits: list[Exploit]


class Decision(BaseModel):
    """Decision on a population after `epoch` epochs. members: by number; lost: runs of failed members, by number."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    members: dict[int, Member]
    lost: dict[int, str]


@dataclass(frozen=True, slots=True)
class PbtState:
    """Saves and loads weights and decisions of one sweep, below `folder` in `store`, `interval` epochs apart."""

    store: ObjectStore
    folder: str
    interval: int

    def save(self, number: int, epochs: int, snapshot: Snapshot) -> None:
        """Save a member's weights after so many epochs, beside the weights of the decision before."""
        self._weights(number).save(epochs - 1, snapshot)

    def load(self, number: int, epochs: int) -> Snapshot:
        """Load a member's weights after so many epochs. Raises: TrainingError if they are absent or damaged."""
        return saved_state(self._weights(number), number, epochs)

    def decide(self, decision: Decision) -> None:
        """Record a decision in the store."""
        self.store.put(self._key(decision.epoch), decision.model_dump_json().encode())

    def last(self) -> Decision | None:
        """Find the newest decision whose weights are all saved, or None; later ones are deleted."""
        for epoch in sorted(self._decided(), reverse=True):
            decision = Decision.model_validate_json(self.store.get(self._key(epoch)))
            if all(self._weights(each.weights).at(epoch - 1) for each in decision.members.values()):
                return decision
            self.store.delete(self._key(epoch))
        return None

    def _decided(self) -> Iterator[int]:
        for key in list(self.store.list(self.folder)):
            name = _DECISION.fullmatch(key.removeprefix(self.folder))
            if name:
                yield int(name.group(1))

    def _key(self, epoch: int) -> str:
        return f"{self.folder}decision-{epoch:06d}.json"

    def _weights(self, number: int) -> TrialFiles:
        return TrialFiles(self.store, f"{self.folder}{number:04d}/", 2 * self.interval)


def saved_state(saved: TrialFiles, number: int, epochs: int) -> Snapshot:
    """Load what a trial saved after so many epochs. Raises: TrainingError if it is absent or damaged."""
    found = saved.at(epochs - 1)
    if found is None:
        raise TrainingError(
            f"the weights of trial {number} after {epochs} epochs are gone from {saved.folder} or damaged: "
            f"start the sweep again, it resumes from what is complete"
        )
    return found
