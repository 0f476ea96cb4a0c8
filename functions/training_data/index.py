"""Index of a sharded set of samples: which files it has, with their rows, sizes and digests.

A set is written once. Its shards lie under a folder of their own, and the numbered index is created last: a writer that is
killed leaves shards that no index names, and a set that is named is whole.
"""

from __future__ import annotations

import uuid
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from toque.functions.training_data.errors import SampleSetError
from toque.registry import AlreadyExists, ObjectStore
from toque.registry.names import check_name

ShardFormat = Literal["arrow", "parquet", "webdataset"]
_FOLDER = "samples"


class Shard(BaseModel):
    """One stored file of samples. size_bytes: as stored; open_bytes: on a reader's disk; digest: SHA-256 of the stored bytes."""

    model_config = ConfigDict(frozen=True)

    key: str
    rows: int = Field(ge=1)
    size_bytes: int
    open_bytes: int
    digest: str


class SetRef(BaseModel):
    """Name and version of a set, by which it is read for ever."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class SetIndex(BaseModel):
    """Files of a set in order. columns: names of a sample's fields; origin: what the samples were made of."""

    model_config = ConfigDict(frozen=True)

    format: ShardFormat
    columns: tuple[str, ...]
    shards: tuple[Shard, ...]
    origin: dict[str, str] = Field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of samples of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def starts(self) -> list[int]:
        """Number of each shard's first sample, and of the one behind the last shard."""
        return [0, *accumulate(shard.rows for shard in self.shards)]


def new_folder(name: str) -> str:
    """Make the name of a folder for the shards of one write of the set `name`. Raises: InvalidInput for a malformed name."""
    return f"{_FOLDER}/{_checked(name)}/shards/{uuid.uuid4().hex}"


def publish(store: ObjectStore, name: str, index: SetIndex) -> SetRef:
    """Make written shards the next version of the set `name`. Raises: SampleSetError if there are none."""
    if not index.shards:
        raise SampleSetError(f"sample set {name!r} would have no samples; give some rows")
    version = max(versions(store, name), default=0) + 1
    while True:
        try:
            store.create(_key(name, version), index.model_dump_json().encode())
        except AlreadyExists:
            version += 1
        else:
            return SetRef(name=name, version=version)


def versions(store: ObjectStore, name: str) -> list[int]:
    """List the versions of a set, ascending."""
    folder = f"{_FOLDER}/{_checked(name)}/index/"
    return [int(key.removeprefix(folder).removesuffix(".json")) for key in store.list(folder)]


def read_index(store: ObjectStore, ref: SetRef) -> SetIndex:
    """Read the index of a set. Raises: SampleSetError if there is no such version."""
    data = store.find(_key(ref.name, ref.version))
    if data is None:
        raise SampleSetError(
            f"there is no sample set {ref} in {store.url}; versions of {ref.name!r}: {versions(store, ref.name)}"
        )
    return SetIndex.model_validate_json(data)


def delete_set(store: ObjectStore, ref: SetRef) -> None:
    """Delete a version of a set, its index first; one that is not there is deleted already."""
    data = store.find(_key(ref.name, ref.version))
    store.delete(_key(ref.name, ref.version))
    for shard in () if data is None else SetIndex.model_validate_json(data).shards:
        store.delete(shard.key)


def _key(name: str, version: int) -> str:
    return f"{_FOLDER}/{_checked(name)}/index/{version:08d}.json"


def _checked(name: str) -> str:
    return "/".join(check_name(part, what="sample set name part") for part in name.split("/"))
