"""Checkpoints: after each epoch all that goes on, under a name made of what determines the training.

The name is a digest of training set, columns, settings and code. So nobody has to know that a training was begun before:
whoever starts the same one again, the worker group, the durable function or a person, goes on after its last epoch. The
number of workers is not part of the name: a training may go on with fewer, or more.

Of a model whose weights are split among the workers each saves its share, in a file of its own, and reads back only the rows
that are its own then, whatever the number of workers was before. An epoch counts when all its files are there.
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

from functions.training.params import RecipeParams, TabularParams
from registry import ObjectStore

_DIGEST_BYTES = 32
_HEADER_BYTES = 8  # of a safetensors file: the length of its header
_NAME = re.compile(r"(\d{6})(?:\.(\d+)-of-(\d+))?\.safetensors")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keep:
    """Which epochs' checkpoints stay: the `last` ones, and the `best` by validation loss, those after the end too.

    last: two by default, for the last may be found damaged.
    """

    last: int = 2
    best: int = 0

    def best_of(self, losses: Sequence[float]) -> set[int]:
        """The epochs of the lowest losses, one a number from 0; of equals the earlier."""
        return set(sorted(range(len(losses)), key=lambda epoch: (losses[epoch], epoch))[: self.best])

    def dropped(self, epoch: int, losses: Sequence[float]) -> list[int]:
        """Which earlier epochs may go once `epoch` is saved: one that has left the last, or been beaten by this one."""
        best, before = self.best_of(losses[: epoch + 1]), self.best_of(losses[:epoch])
        gone = {epoch - self.last} | before
        return sorted(each for each in gone if 0 <= each <= epoch - self.last and each not in best)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of `size` workers holds of a tensor that is split: as many rows as `torch.chunk` gives it."""

    rank: int = 0
    size: int = 1

    def rows(self, count: int) -> range:
        """Its rows of `count`; the last workers may have none."""
        each = -(-count // self.size)
        return range(min(count, self.rank * each), min(count, (self.rank + 1) * each))


WHOLE = Share()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a trainer after an epoch: tensors by name, and facts that are JSON.

    rows: how many rows there are, all shares together, of each tensor that is split.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    rows: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training, below `folder` in `store`."""

    store: ObjectStore
    folder: str
    keep: Keep = Keep()

    @classmethod
    def of(cls, store: ObjectStore, determined_by: Mapping[str, Any], keep: Keep = Keep()) -> Self:
        """Those of the training that `determined_by`, which is JSON, describes."""
        return cls(store, f"checkpoints/{digest_of(determined_by)}/", keep)

    def save(self, epoch: int, snapshot: Snapshot, share: Share = WHOLE) -> None:
        """Keep the state after `epoch`, or a worker's share of it; of the earlier ones stay those that `keep` names."""
        metadata = {"facts": json.dumps(snapshot.facts), "rows": json.dumps(snapshot.rows)}
        payload = safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}, metadata
        )
        self.store.put(self._key(epoch, share), hashlib.sha256(payload).digest() + payload)
        losses = [each["valid_loss"] for each in snapshot.facts.get("epochs", [])]
        for old in self.keep.dropped(epoch, losses):
            self.store.delete(self._key(old, share))

    def latest(self, share: Share = WHOLE) -> Snapshot | None:
        """The newest whole one, with the rows of `share` of what is split, or None."""
        for keys in self._whole_ones():
            parts = _Parts(share)
            if all(self._read(key, Share(rank, len(keys)), parts) for rank, key in enumerate(keys)):
                return parts.joined()
        return None

    def at(self, epoch: int) -> Snapshot | None:
        """The state after `epoch` as a whole model's trainer saved it, or None if it is not there or damaged."""
        parts = _Parts(WHOLE)
        return parts.joined() if self._read(self._key(epoch, WHOLE), WHOLE, parts) else None

    def drop(self) -> None:
        """Forget them, but for the best that are to be kept: the training has ended well."""
        last = next(self._whole_ones(), None)
        found = self._facts(last) if last and self.keep.best else None
        best = self.keep.best_of([each["valid_loss"] for each in found["epochs"]]) if found else set()
        for key in list(self.store.list(self.folder)):
            told = _NAME.fullmatch(key.removeprefix(self.folder))
            if not told or int(told.group(1)) not in best:
                self.store.delete(key)

    def _key(self, epoch: int, share: Share) -> str:
        which = "" if share == WHOLE else f".{share.rank}-of-{share.size}"
        return f"{self.folder}{epoch:06d}{which}.safetensors"

    def _whole_ones(self) -> Iterator[list[str]]:
        """The files of each epoch that has all of them, in the order of shares, the newest epoch first."""
        found: dict[tuple[int, int], set[int]] = {}
        for key in self.store.list(self.folder):
            told = _NAME.fullmatch(key.removeprefix(self.folder))
            if told:
                epoch, rank, size = (int(each) for each in told.groups(default="0"))
                found.setdefault((epoch, max(1, size)), set()).add(rank)
        for (epoch, size), ranks in sorted(found.items(), reverse=True):
            if ranks == set(range(size)):
                yield [self._key(epoch, Share(rank, size)) for rank in range(size)]

    def _facts(self, keys: list[str]) -> dict[str, Any] | None:
        parts = _Parts(WHOLE)
        return parts.joined().facts if self._read(keys[0], Share(0, len(keys)), parts) else None

    def _read(self, key: str, held: Share, parts: _Parts) -> bool:
        """Add what `held` had saved to `parts`; False if it is damaged or was replaced meanwhile."""
        data = self.store.find(key)
        if data is None:
            return False
        digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != digest:
            _logger.warning("checkpoint %s is damaged; the one before it is used", key)
            return False
        parts.add(_parsed(payload), held)
        return True


class _Parts:
    """Gathers what one worker needs from the files of all, one file after the other."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._facts: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._tensors: dict[str, list[Tensor]] = {}

    def add(self, saved: Snapshot, held: Share) -> None:
        """Take from a file what is split and wanted, and the rest of the first one."""
        self._facts, self._rows = saved.facts, saved.rows
        for name, tensor in saved.tensors.items():
            if name in saved.rows:
                has, wants = held.rows(saved.rows[name]), self._share.rows(saved.rows[name])
                start, stop = max(has.start, wants.start), max(has.start, min(has.stop, wants.stop))
                part = tensor[start - has.start : stop - has.start]
                self._tensors.setdefault(name, []).append(part.clone() if len(part) < len(tensor) else part)
            elif name not in self._tensors:
                self._tensors[name] = [tensor]

    def joined(self) -> Snapshot:
        """All of it."""
        tensors = {
            name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in self._tensors.items()
        }
        return Snapshot(tensors, self._facts, self._rows)


def keep_of(params: TabularParams | RecipeParams) -> Keep:
    """What a training's settings say of its checkpoints."""
    return Keep(params.keep_last, params.keep_best)


def digest_of(what: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, in hex; the order of its names does not count."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _parsed(payload: bytes) -> Snapshot:
    length = int.from_bytes(payload[:_HEADER_BYTES], "little")
    header = json.loads(payload[_HEADER_BYTES : _HEADER_BYTES + length])
    metadata = header["__metadata__"]
    return Snapshot(
        safetensors.torch.load(payload), json.loads(metadata["facts"]), json.loads(metadata.get("rows", "{}"))
    )
