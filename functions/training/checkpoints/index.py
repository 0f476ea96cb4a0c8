"""Index of a checkpoint as JSON: which bytes of which file hold which part of which tensor, and the digests of the bytes.

Torch's own index is a pickle, which may run anything when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from toque.functions.training.errors import TrainingError

_DTYPES = {str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)}


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
