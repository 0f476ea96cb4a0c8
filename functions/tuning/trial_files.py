"""States of small trainers in one process, a file after each epoch, from which trials pause and go on."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor

from toque.registry import ObjectStore

_DIGEST_BYTES = 32
_HEADER_BYTES = 8  # of a safetensors file: the length of its header
_NAME = re.compile(r"(\d{6})\.safetensors")
_logger = logging.getLogger(__name__)


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
        names = (_NAME.fullmatch(key.removeprefix(self.folder)) for key in self.store.list(self.folder))
        yield from sorted((int(name.group(1)) for name in names if name), reverse=True)


def _parsed(payload: bytes) -> Snapshot:
    """Read a trial's file; safetensors holds numbers alone, so that nothing in it can run."""
    length = int.from_bytes(payload[:_HEADER_BYTES], "little")
    header = json.loads(payload[_HEADER_BYTES : _HEADER_BYTES + length])
    return Snapshot(safetensors.torch.load(payload), json.loads(header["__metadata__"]["facts"]))
