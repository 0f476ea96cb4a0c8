"""Saved states of trials, from which a sweep or a population resumes: weights after each epoch, decisions, and metrics.

Every so many epochs all members of a population wait for each other, and one decision says with whose weights and which
settings each continues. A member saves its weights before that, so a population can resume from any decision whose weights
are all saved; later epochs are trained again, from the same weights, settings and random numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from torch import Tensor

from toque.functions.training.errors import TrainingError
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.trainer import Epoch
from toque.functions.tuning.space import Exploit
from toque.registry import ObjectStore

_DECISION_NAME = re.compile(r"decision-(\d{6})\.json")
METRIC = "valid_loss"  # these three are names in Tune, in a run and in the saved state
EPOCHS = "epochs"  # number of epochs trained so far
FINISHED = "finished"  # whether the trial has trained to its end
_DIGEST_BYTES = 32
_HEADER_BYTES = 8  # of a safetensors file: the length of its header
_STATE_NAME = re.compile(r"(\d{6})\.safetensors")
_logger = logging.getLogger(__name__)


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
            name = _DECISION_NAME.fullmatch(key.removeprefix(self.folder))
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of a trainer after an epoch: tensors by name, and facts that are JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


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

    def drop(self) -> None:
        """Delete everything below the folder, also of the trials in it."""
        for key in list(self.store.list(self.folder)):
            self.store.delete(key)

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
