"""Checkpoints of a training, one after each epoch, under a name made of what determines its weights.

The name is a digest of training set, columns, settings and code. So a training needs no record of having been begun:
whatever starts the same one again, the worker group, the durable function or a person, resumes after its last epoch. The
number of workers is not part of the name: a training may resume with fewer, or more.

Of a model whose weights are split among workers, each worker saves its shard in a file of its own and reads back only the
rows that are its own then, whatever the number of workers was before. An epoch counts when all its files are there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

from functions.training.params import RecipeParams, TabularParams, digest_of
from registry import ObjectStore

_DIGEST_BYTES = 32
_HEADER_BYTES = 8  # of a safetensors file: the length of its header
_NAME = re.compile(r"(\d{6})(?:\.(\d+)-of-(\d+))?\.safetensors")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """How many checkpoints are kept: of the `last` epochs, and of the `best` by validation loss, also after the end.

    last: two by default, since the newest may be found damaged.
    """

    last: int = 2
    best: int = 0

    def best_of(self, losses: Sequence[float]) -> set[int]:
        """Numbers of the epochs (from 0) with the lowest losses; of equal losses the earlier epoch."""
        return set(sorted(range(len(losses)), key=lambda epoch: (losses[epoch], epoch))[: self.best])

    def dropped(self, epoch: int, losses: Sequence[float]) -> list[int]:
        """Earlier epochs to delete once `epoch` is saved: outside the last ones, or beaten by this one."""
        best, before = self.best_of(losses[: epoch + 1]), self.best_of(losses[:epoch])
        candidates = {epoch - self.last} | before
        return sorted(each for each in candidates if 0 <= each <= epoch - self.last and each not in best)


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of a split tensor that one of `size` workers holds, as `torch.chunk` deals them."""

    rank: int = 0
    size: int = 1

    def rows(self, count: int) -> range:
        """Range of this worker's rows of `count`; empty for the last workers if there are too few."""
        each = -(-count // self.size)
        return range(min(count, self.rank * each), min(count, (self.rank + 1) * each))


WHOLE = Shard()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of a trainer after an epoch: tensors by name, and facts that are JSON.

    rows: of each tensor that is split, the number of rows of all shards together.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    rows: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Reads and writes the checkpoints of one training, below `folder` in `store`."""

    store: ObjectStore
    folder: str
    retention: Retention = Retention()

    @classmethod
    def of(cls, store: ObjectStore, key: Mapping[str, Any], retention: Retention = Retention()) -> Self:
        """Checkpoints of the training that `key`, a JSON object, determines."""
        return cls(store, f"checkpoints/{digest_of(key)}/", retention)

    def save(self, epoch: int, snapshot: Snapshot, shard: Shard = WHOLE) -> None:
        """Save the state after `epoch`, or a worker's shard of it, and delete earlier ones by the retention."""
        metadata = {"facts": json.dumps(snapshot.facts), "rows": json.dumps(snapshot.rows)}
        payload = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}, metadata
        )
        self.store.put(self._key(epoch, shard), hashlib.sha256(payload).digest() + payload)
        losses = [each["valid_loss"] for each in snapshot.facts.get("epochs", [])]
        for old in self.retention.dropped(epoch, losses):
            self.store.delete(self._key(old, shard))

    def latest(self, shard: Shard = WHOLE) -> Snapshot | None:
        """Newest complete state, of split tensors only the rows of `shard`; None if there is no complete one."""
        for keys in self._complete():
            reader = _SnapshotReader(shard)
            if all(self._read(key, Shard(rank, len(keys)), reader) for rank, key in enumerate(keys)):
                return reader.snapshot()
        return None

    def at(self, epoch: int) -> Snapshot | None:
        """State after `epoch` of a model that is not split; None if it is absent or damaged."""
        reader = _SnapshotReader(WHOLE)
        return reader.snapshot() if self._read(self._key(epoch, WHOLE), WHOLE, reader) else None

    def drop(self) -> None:
        """Delete the checkpoints of a training that has ended well, except the best that are to be kept."""
        last = next(self._complete(), None)
        found = self._facts(last) if last and self.retention.best else None
        best = self.retention.best_of([each["valid_loss"] for each in found["epochs"]]) if found else set()
        for key in list(self.store.list(self.folder)):
            name = _NAME.fullmatch(key.removeprefix(self.folder))
            if not name or int(name.group(1)) not in best:
                self.store.delete(key)

    def _key(self, epoch: int, shard: Shard) -> str:
        part = "" if shard == WHOLE else f".{shard.rank}-of-{shard.size}"
        return f"{self.folder}{epoch:06d}{part}.safetensors"

    def _complete(self) -> Iterator[list[str]]:
        """Yield the files of each complete epoch in the order of shards, the newest epoch first."""
        found: dict[tuple[int, int], set[int]] = {}
        for key in self.store.list(self.folder):
            name = _NAME.fullmatch(key.removeprefix(self.folder))
            if name:
                epoch, rank, size = (int(each) for each in name.groups(default="0"))
                found.setdefault((epoch, max(1, size)), set()).add(rank)
        for (epoch, size), ranks in sorted(found.items(), reverse=True):
            if ranks == set(range(size)):
                yield [self._key(epoch, Shard(rank, size)) for rank in range(size)]

    def _facts(self, keys: list[str]) -> dict[str, Any] | None:
        reader = _SnapshotReader(WHOLE)
        return reader.snapshot().facts if self._read(keys[0], Shard(0, len(keys)), reader) else None

    def _read(self, key: str, saved: Shard, reader: _SnapshotReader) -> bool:
        """Add the file of the shard `saved` to `reader`; False if it is damaged or was replaced meanwhile."""
        data = self.store.find(key)
        if data is None:
            return False
        digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            _logger.warning("checkpoint %s is damaged; the one before it is used", key)
            return False
        reader.add(_parsed(payload), saved)
        return True


class _SnapshotReader:
    """Collects one worker's rows from the files of all workers, one file after the other."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._facts: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._tensors: dict[str, list[Tensor]] = {}

    def add(self, saved: Snapshot, held: Shard) -> None:
        """Take this worker's rows of split tensors from one file; whole tensors are taken from the first file."""
        self._facts, self._rows = saved.facts, saved.rows
        for name, tensor in saved.tensors.items():
            if name in saved.rows:
                has, wants = held.rows(saved.rows[name]), self._shard.rows(saved.rows[name])
                start, stop = max(has.start, wants.start), max(has.start, min(has.stop, wants.stop))
                part = tensor[start - has.start : stop - has.start]
                self._tensors.setdefault(name, []).append(part.clone() if len(part) < len(tensor) else part)
            elif name not in self._tensors:
                self._tensors[name] = [tensor]

    def snapshot(self) -> Snapshot:
        """Join the collected rows into one state."""
        tensors = {
            name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in self._tensors.items()
        }
        return Snapshot(tensors, self._facts, self._rows)


def retention_of(params: TabularParams | RecipeParams) -> Retention:
    """How many checkpoints the settings of a training keep."""
    return Retention(params.keep_last, params.keep_best)


def _parsed(payload: bytes) -> Snapshot:
    length = int.from_bytes(payload[:_HEADER_BYTES], "little")
    header = json.loads(payload[_HEADER_BYTES : _HEADER_BYTES + length])
    metadata = header["__metadata__"]
    return Snapshot(
        safetensors.torch.load(payload), json.loads(metadata["facts"]), json.loads(metadata.get("rows", "{}"))
    )
