"""What a population needs to go on after whatever interruption: its members' weights, and what was decided of them.

Every so many epochs all members wait for each other, and one decision says of each whose weights and which settings it goes
on with. A member saves its weights before that, so a decision whose weights are all there is a place to go on from; what came
after it is trained again, from the same weights, settings and random numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from functions.training.checkpoints import Checkpoints, Keep, Snapshot
from functions.training.errors import TrainingError
from functions.training.params import TabularParams
from functions.tuning.space import Exploit
from registry import ObjectStore

_DECISION = re.compile(r"decision-(\d{6})\.json")


class Member(BaseModel):
    """One of a population after a decision.

    weights: number of the trial whose weights it goes on with; told: what it had reported of each of its epochs.
    """

    model_config = ConfigDict(frozen=True)

    settings: TabularParams
    weights: int
    told: list[dict[str, float]]
    exploits: list[Exploit]


class Decision(BaseModel):
    """A population after `epoch` epochs: members that go on, by number; lost: runs of those that had failed, by number."""

    model_config = ConfigDict(frozen=True)

    epoch: int
    members: dict[int, Member]
    lost: dict[int, str]


@dataclass(frozen=True, slots=True)
class Generations:
    """Those of one sweep, below `folder` in `store`; decisions are `interval` epochs apart."""

    store: ObjectStore
    folder: str
    interval: int

    def save(self, number: int, epochs: int, snapshot: Snapshot) -> None:
        """Keep a member's weights after so many epochs, and those of the decision before."""
        self._weights(number).save(epochs - 1, snapshot)

    def load(self, number: int, epochs: int) -> Snapshot:
        """A member's weights after so many epochs. Raises: TrainingError if they are not there, or damaged."""
        return whole(self._weights(number), number, epochs)

    def decide(self, decision: Decision) -> None:
        """Record a decision."""
        self.store.put(self._key(decision.epoch), decision.model_dump_json().encode())

    def last(self) -> Decision | None:
        """The newest decision whose weights are all there, or None; those after it are forgotten."""
        for epoch in sorted(self._decided(), reverse=True):
            decision = Decision.model_validate_json(self.store.get(self._key(epoch)))
            if all(self._weights(each.weights).at(epoch - 1) for each in decision.members.values()):
                return decision
            self.store.delete(self._key(epoch))
        return None

    def _decided(self) -> Iterator[int]:
        for key in list(self.store.list(self.folder)):
            told = _DECISION.fullmatch(key.removeprefix(self.folder))
            if told:
                yield int(told.group(1))

    def _key(self, epoch: int) -> str:
        return f"{self.folder}decision-{epoch:06d}.json"

    def _weights(self, number: int) -> Checkpoints:
        return Checkpoints(self.store, f"{self.folder}{number:04d}/", Keep(last=2 * self.interval))


def whole(saved: Checkpoints, number: int, epochs: int) -> Snapshot:
    """What a trial saved after so many epochs. Raises: TrainingError if it is not there, or damaged."""
    found = saved.at(epochs - 1)
    if found is None:
        raise TrainingError(
            f"the weights of trial {number} after {epochs} epochs are gone from {saved.folder} or damaged: "
            f"ask for the sweep again, it goes on from what is whole"
        )
    return found
