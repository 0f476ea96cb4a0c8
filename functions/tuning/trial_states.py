"""Saved states of a sweep's trials: after each epoch the weights, from which they resume in any process.

One object holds the trials that train together after an epoch; of those that train alone, one trial.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from torch import Tensor

from toque.functions.training.errors import TrainingError
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.trainer import Epoch
from toque.functions.tuning.space import Exploit
from toque.registry import ObjectStore

METRIC = "valid_loss"  # these three are names in Tune, in a run and in the saved state
EPOCHS = "epochs"  # number of epochs trained so far
FINISHED = "finished"  # whether the trial has trained to its end
_DIGEST_BYTES = 32
_HEADER_BYTES = 8  # of a safetensors file: the length of its header
_STATE_NAME = re.compile(r"(\d{6})\.safetensors")
_logger = logging.getLogger(__name__)


class Member(BaseModel):
    """Trial of an interrupted sweep.

    weights: number of the trial whose weights it continues with; metrics: of each of its epochs, stored as `told`.
    """

    model_config = ConfigDict(frozen=True, serialize_by_alias=True)

    settings: TabularParams
    weights: int
    metrics: list[dict[str, float]] = Field(
        validation_alias=AliasChoices("metrics", "told"), serialization_alias="told"
    )
    exploits: list[Exploit]


@dataclass(frozen=True, slots=True)
class Leg:
    """Stretch of training that one trial of Tune does: one of our trials, or a stack of them, up to a rung or a decision.

    name: of the states that it saves; trials: settings by number; since, until: epochs that all have, and train to; sources: names
    of the states after `since` epochs that it begins with.
    """

    name: str
    trials: Mapping[int, TabularParams]
    since: int
    until: int
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name  # in the folder's name that Tune gives the trial


def name_of(number: int) -> str:
    """Name of the states of a trial that trains alone."""
    return f"{number:04d}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of a trainer after an epoch: tensors by name, and facts that are JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrialStates:
    """States of a sweep's trials, below `folder` in `store`.

    last: how many are kept of a trial or stack; newest: name of what saved each trial's newest state, by number.
    """

    store: ObjectStore
    folder: str
    last: int = 2
    newest: dict[int, str] = field(default_factory=dict)

    def save(self, leg: Leg, epochs: int, state: Snapshot) -> None:
        """Save the state of a leg's trials after so many epochs; its fact "trials" has number and epochs of each."""
        trials = [
            {**facts, "settings": leg.trials[facts["number"]].model_dump(mode="json")}
            for facts in state.facts["trials"]
        ]
        self._of(leg.name).save(epochs - 1, Snapshot(state.tensors, {**state.facts, "trials": trials}))

    def load(self, names: Iterable[str], epochs: int) -> list[Snapshot]:
        """Load what was saved after so many epochs. Raises: TrainingError if it is absent or damaged."""
        states = []
        for name in names:
            state = self._of(name).at(epochs - 1)
            if state is None:
                raise TrainingError(
                    f"the state {name} of trials after {epochs} epochs is gone from {self.folder} or damaged: start the "
                    "sweep again, it resumes from what is complete"
                )
            states.append(state)
        return states

    def has(self, name: str, epochs: int) -> bool:
        """Whether a whole state was saved after so many epochs."""
        return self._of(name).at(epochs - 1) is not None

    def members(self) -> dict[int, Member]:
        """Read the metrics and settings of all saved trials, by number, and remember where their newest states are."""
        members: dict[int, Member] = {}
        keys = list(self.store.list(self.folder))
        for name in sorted({key.removeprefix(self.folder).partition("/")[0] for key in keys}):
            state = self._of(name).latest()
            for facts in [] if state is None else state.facts["trials"]:
                number, before = facts["number"], members.get(facts["number"])
                if before is None or len(before.metrics) < len(facts["epochs"]):
                    metrics = [metrics_of(Epoch(**epoch)) for epoch in facts["epochs"]]
                    settings = TabularParams.model_validate(facts["settings"])
                    members[number] = Member(settings=settings, weights=number, metrics=metrics, exploits=[])
                    self.newest[number] = name
        return members

    def _of(self, name: str) -> TrialFiles:
        return TrialFiles(self.store, f"{self.folder}{name}/", self.last)


@dataclass(frozen=True, slots=True)
class TrialFiles:
    """Reads and writes the states of one trial, below `folder` in `store`. last: how many are kept; the newest may be found damaged."""

    store: ObjectStore
    folder: str
    last: int = 2

    def save(self, epoch: int, snapshot: Snapshot) -> None:
        """Save the state after `epoch`, and delete the oldest."""
        tensors = {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}
        payload = safetensors.torch.save(tensors, {"facts": json.dumps(snapshot.facts)})
        self.store.put(self._key(epoch), hashlib.sha256(payload).digest() + payload)
        if epoch >= self.last:
            self.store.delete(self._key(epoch - self.last))

    def latest(self) -> Snapshot | None:
        """Newest whole state; None if there is none."""
        found = (self.at(epoch) for epoch in self._epochs())
        return next((each for each in found if each is not None), None)

    def at(self, epoch: int) -> Snapshot | None:
        """State after `epoch`; None if it is absent or damaged."""
        key = self._key(epoch)
        data = self.store.find(key)
        if data is None:
            return None
        digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            _logger.warning("the state %s is damaged; the one before it is used", key)
            return None
        return _parsed(payload)

    def _key(self, epoch: int) -> str:
        return f"{self.folder}{epoch:06d}.safetensors"

    def _epochs(self) -> Iterator[int]:
        """Yield the epochs that have a file, the newest first."""
        names = (_STATE_NAME.fullmatch(key.removeprefix(self.folder)) for key in self.store.list(self.folder))
        yield from sorted((int(name.group(1)) for name in names if name), reverse=True)


def _parsed(payload: bytes) -> Snapshot:
    """Read a trial's file; safetensors holds numbers alone, so that nothing in it can run."""
    length = int.from_bytes(payload[:_HEADER_BYTES], "little")
    header = json.loads(payload[_HEADER_BYTES : _HEADER_BYTES + length])
    return Snapshot(safetensors.torch.load(payload), json.loads(header["__metadata__"]["facts"]))


def metrics_of(epoch: Epoch) -> dict[str, float]:
    """Metrics that are kept of an epoch."""
    return {
        METRIC: epoch.valid_loss,
        "train_loss": epoch.train_loss,
        "epoch_s": epoch.seconds,
        "rows_per_s": epoch.rows_per_s,
    }
