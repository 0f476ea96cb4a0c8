"""Checkpoints of one training: named by what determines its weights, committed by a journal, kept by policy.

The name is a digest of data, settings and code. So a training needs no record of having been begun: whatever starts the same one
again, the worker group, the durable function or a person, goes on after its last checkpoint. The number of workers is not part
of the name: a training may resume with fewer, or more.
The last entry of the journal names the checkpoints that count, the newest last. A worker that was thought dead cannot commit:
another one has taken the number of its entry. What a kill leaves is objects that no entry names, which the next start deletes.
The index of a checkpoint is JSON, since torch's own is a pickle, which may run anything when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from toque.functions.training.errors import TrainingError
from toque.functions.training.params import digest_of
from toque.registry import Journal, ObjectStore

_ACTOR = "training"
_DTYPES = {str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)}


@dataclass(frozen=True, slots=True)
class Retention:
    """How many checkpoints are kept: the `last` ones, and the `best` by validation loss after an epoch, also after the end.

    last: two by default, since the newest may be found damaged.
    """

    last: int = 2
    best: int = 0

    def kept(self, saved: Sequence[Saved]) -> list[Saved]:
        """Select those to keep, in their order; of equal losses the earlier one."""
        best = self.best_of(saved)
        return [each for each in saved if each in saved[-self.last :] or each in best]

    def best_of(self, saved: Sequence[Saved]) -> list[Saved]:
        """Select those with the lowest losses."""
        scored = [each for each in saved if each.loss is not None]
        return sorted(scored, key=lambda each: (each.loss, each.step))[: self.best]


class Saved(BaseModel):
    """Checkpoint that counts: after how many steps, its validation loss if it is of an epoch's end, its index and all its objects."""

    model_config = ConfigDict(frozen=True)

    step: int
    loss: float | None
    index: str
    digest: str
    files: tuple[str, ...]


@dataclass(slots=True)
class Checkpoints:
    """Checkpoints of one training below `folder` in `store`; used by its first worker."""

    store: ObjectStore
    folder: str
    retention: Retention = field(default_factory=Retention)
    _journal: Journal | None = None
    _next: int = 0
    _kept: list[Saved] = field(default_factory=list)

    @classmethod
    def of(cls, store: ObjectStore, key: Mapping[str, Any], retention: Retention = Retention()) -> Self:
        """Checkpoints of the training that `key`, a JSON object, determines."""
        return cls(store, f"checkpoints/{digest_of(key)}/", retention)

    @property
    def parts(self) -> str:
        """Folder of the objects of all checkpoints."""
        return f"{self.folder}parts/"

    def open(self) -> list[Saved]:
        """Read which checkpoints count, the newest first, and delete objects that a killed training left beside them.

        Only before anything is saved: what is being saved no entry names yet.
        """
        self._read()
        named = {file for each in self._kept for file in (each.index, *each.files)}
        for key in list(self.store.list(self.parts)):
            if key not in named:
                self.store.delete(key)
        return self._kept[::-1]

    def _read(self) -> Journal:
        """Read the journal, which is kept open."""
        self._journal = journal = Journal(self.store, f"{self.folder}journal", actor=_ACTOR)
        last = journal.find_last(0)
        self._next = 0 if last is None else last + 1
        body = {} if last is None else journal.entry(last).body
        self._kept = [Saved.model_validate(each) for each in body.get("kept", [])]
        return journal

    def find_index(self, saved: Saved) -> Index | None:
        """Read the index of a checkpoint; None if it is absent or damaged."""
        data = self.store.find(saved.index)
        if data is None or hashlib.sha256(data).hexdigest() != saved.digest:
            return None
        return Index.parse(data)

    def commit(self, step: int, loss: float | None, index: Index) -> None:
        """Let a checkpoint count whose objects are all stored, and delete those that are not kept any longer.

        Raises: Conflict if another process trains this.
        """
        journal = self._journal or self._read()
        data = index.to_bytes()
        files = tuple(sorted({piece.file for piece in index.pieces.values()}))
        digest = hashlib.sha256(data).hexdigest()
        saved = Saved(
            step=step,
            loss=loss,
            index=f"{self.parts}{step:010d}-{digest[:12]}.json",
            digest=digest,
            files=files,
        )
        self.store.put(saved.index, data)
        before = [
            each for each in self._kept if each.step < step
        ]  # a training that began again at an earlier one
        kept = self.retention.kept([*before, saved])
        journal.append({"kept": [each.model_dump(mode="json") for each in kept]}, at=self._next)
        dropped = [each for each in self._kept if each not in kept]
        self._next, self._kept = self._next + 1, kept
        for each in dropped:
            for file in (each.index, *each.files):
                self.store.delete(file)

    def drop(self) -> None:
        """Delete the checkpoints of a training that has ended well, except the best that are to be kept."""
        best = self.retention.best_of(self.open()[::-1]) if self.retention.best else []
        if not best:
            for key in list(self.store.list(self.folder)):
                self.store.delete(key)
            return
        assert self._journal is not None  # noqa: S101 - opened above
        self._journal.append({"kept": [each.model_dump(mode="json") for each in best]}, at=self._next)
        self.open()

    def find_latest(self) -> Iterator[tuple[Saved, Index]]:
        """Iterate over the checkpoints that count and whose index is whole, the newest first."""
        for saved in self.open():
            index = self.find_index(saved)
            if index is not None:
                yield saved, index


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one part of a tensor. digests: of its blocks of a mebibyte, so that a reader of some rows can verify them."""

    file: str
    start: int
    size_bytes: int
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """Index of one checkpoint: torch's metadata, the piece of each part, and facts about the training that are JSON."""

    metadata: Metadata
    pieces: Mapping[tuple[str, tuple[int, ...]], Piece]
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Metadata, results: Iterable[WriteResult], facts: dict[str, Any]) -> Self:
        """Make the index of what all workers have written."""
        return cls(metadata, {place(each.index): each.storage_data for each in results}, facts)

    @property
    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Whole size and type of each tensor by name."""
        tensors = self.metadata.state_dict_metadata.items()
        return {
            name: (each.size, each.properties.dtype)
            for name, each in tensors
            if isinstance(each, TensorStorageMetadata)
        }

    def to_bytes(self) -> bytes:
        """Write the index as JSON."""
        tensors = {}
        for name, (size, dtype) in self.shapes.items():
            found = self.metadata.state_dict_metadata[name]
            parts = [
                {
                    "at": [*each.offsets],
                    "size": [*each.sizes],
                    **asdict(self.pieces[name, tuple(each.offsets)]),
                }
                for each in found.chunks  # type: ignore[union-attr]  # shapes has tensors only
            ]
            tensors[name] = {"size": [*size], "dtype": str(dtype), "parts": parts}
        return json.dumps({"format": 1, "facts": self.facts, "tensors": tensors}).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an index that `to_bytes` wrote. Raises: TrainingError if a newer version wrote it."""
        content = json.loads(data)
        if content["format"] != 1:
            raise TrainingError(
                f"checkpoint of format {content['format']}: this version reads format 1; update it"
            )
        tensors: dict[str, Any] = {}
        pieces = {}
        for name, each in content["tensors"].items():
            chunks = []
            for part in each["parts"]:
                at, size = torch.Size(part["at"]), torch.Size(part["size"])
                chunks.append(ChunkStorageMetadata(at, size))
                pieces[name, tuple(at)] = Piece(
                    part["file"], part["start"], part["size_bytes"], tuple(part["digests"])
                )
            properties = TensorProperties(dtype=_DTYPES[each["dtype"]])
            tensors[name] = TensorStorageMetadata(properties, torch.Size(each["size"]), chunks)
        return cls(Metadata(tensors), pieces, content["facts"])


def place(index: MetadataIndex) -> tuple[str, tuple[int, ...]]:
    """Name of a tensor and where its part begins."""
    return index.fqn, tuple(index.offset or ())
