"""Sharded sets of samples: files in three formats with random access to their samples, and the index of a set.

A sample's fields are numbers, lists of numbers of one length, or bytes and texts. Numbers are read in place from a mapped
file. WebDataset tars hold a file `{key}.{field}` for each field, all bytes, and are read at the offsets of their headers.
A set is written once. Its shards lie under a folder of their own, and the numbered index is created last: a writer that is
killed leaves shards that no index names, and a set that is named is whole.
"""

from __future__ import annotations

import io
import mmap
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from toque.registry import AlreadyExists, ObjectStore, RegistryError
from toque.registry.names import check_name

KEY = "__key__"
_BLOCK = 512  # of a tar
_REGULAR = (b"0", b"\0")  # types of a tar's members that are plain files

Values = npt.NDArray[Any]
"""Values of a field by sample: numbers (rows, …), or objects, each bytes, text or an array."""
Columns = Mapping[str, Values]
ShardFormat = Literal["arrow", "parquet", "webdataset"]
_FOLDER = "samples"


class SampleSetError(RegistryError, ValueError):
    """A sample set that cannot be written or read as asked."""


class OpenShard(Protocol):
    """Opened shard, whose samples are numbered from 0."""

    rows: int

    def take(self, rows: npt.NDArray[np.int64]) -> dict[str, Values]:
        """Read the samples with these numbers, in this order, by field."""


def write_shard(form: ShardFormat, path: Path, rows: pa.Table) -> None:
    """Write samples to a file. Raises: SampleSetError for a tar's field that is no bytes or text."""
    if form == "arrow":
        _write_arrow(path, rows)
    elif form == "parquet":
        pq.write_table(rows, path)
    else:
        _write_tar(path, rows)


def open_bytes(form: ShardFormat, path: Path) -> int:
    """Size in bytes of a written shard on a reader's disk: Parquet is kept there as Arrow, which can be mapped."""
    if form != "parquet":
        return path.stat().st_size
    counted = pa.MockOutputStream()
    _write_arrow(counted, pq.read_table(path))
    return int(counted.size())


def unpack_shard(form: ShardFormat, stored: Path, path: Path) -> None:
    """Bring a stored shard into the form in which `open_shard` maps it, at `path`."""
    if form != "parquet":
        stored.replace(path)
        return
    _write_arrow(path, pq.read_table(stored))


def open_shard(form: ShardFormat, path: Path) -> OpenShard:
    """Open an unpacked shard; its file may be unlinked while it is open."""
    return TarShard(path) if form == "webdataset" else ArrowShard(path)


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

    name: str = Field(description="Name of the sample set, of one or more parts with '/' between them.")
    version: int = Field(le=1_000_000_000, ge=1, description="Number of the set's version, from 1.")

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


def _write_arrow(target: Any, rows: pa.Table) -> None:
    """Write one record batch, so that each field is one stretch of the mapped file."""
    whole = rows.combine_chunks()
    with pa.ipc.new_file(str(target) if isinstance(target, Path) else target, whole.schema) as writer:
        for batch in whole.to_batches():
            writer.write_batch(batch)


class ArrowShard:
    """Shard in the Arrow format, mapped into memory."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        self.rows: int = table.num_rows
        self._columns = {name: _readable(table.column(name)) for name in table.column_names}

    def take(self, rows: npt.NDArray[np.int64]) -> dict[str, Values]:
        """Read the samples with these numbers, in this order, by field."""
        return {
            name: values[rows] if isinstance(values, np.ndarray) else _objects(values.take(pa.array(rows)))
            for name, values in self._columns.items()
        }


def _readable(column: pa.ChunkedArray) -> Values | pa.Array:
    """View a field of numbers as an array in place; other fields stay Arrow's."""
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    width, kind = None, array.type
    if pa.types.is_fixed_size_list(kind):
        width, kind = kind.list_size, kind.value_type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) or array.null_count:
        return array
    numbers = array if width is None else array.flatten()
    if numbers.null_count:
        return array
    values: Values = numbers.to_numpy(zero_copy_only=True)
    return values if width is None else values.reshape(-1, width)


def _objects(array: pa.Array) -> Values:
    if pa.types.is_boolean(array.type) or pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    found = np.empty(len(array), dtype=object)
    nested = pa.types.is_nested(array.type)
    for place, value in enumerate(array):
        found[place] = np.asarray(value.values) if nested and value.is_valid else value.as_py()
    return found


class TarShard:
    """Shard in the WebDataset format: a tar whose members are found once, and read at their offsets."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        for name, start, size in _members(self._map):
            key, field = split_member(name)
            samples.setdefault(key, {})[field] = (start, size)
        self._keys = list(samples)
        self._places = list(samples.values())
        self._fields = list(dict.fromkeys(field for sample in self._places for field in sample))
        self.rows = len(self._keys)

    @property
    def columns(self) -> list[str]:
        """Fields of all samples, and the key."""
        return [KEY, *self._fields]

    def take(self, rows: npt.NDArray[np.int64]) -> dict[str, Values]:
        """Read the samples with these numbers, in this order, by field; None where a sample lacks one."""
        numbers = rows.tolist()
        found = {KEY: _of_objects([self._keys[number] for number in numbers])}
        for field in self._fields:
            places = (self._places[number].get(field) for number in numbers)
            found[field] = _of_objects([None if at is None else self._map[at[0] : sum(at)] for at in places])
        return found


def _of_objects(values: list[Any]) -> Values:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def split_member(name: str) -> tuple[str, str]:
    """Split a tar member's name into the sample's key and the field: the name's first dot after its folder is between them."""
    folder, slash, file = name.rpartition("/")
    stem, dot, field = file.partition(".")
    if not dot or not stem or not field:
        raise SampleSetError(f"tar member {name!r} has no field: name it like '{stem or 'key'}.jpg'")
    return f"{folder}{slash}{stem}", field.lower()


def _members(data: mmap.mmap) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the regular files of a tar; long names by Python's own reader."""
    place, end = 0, len(data)
    while place + _BLOCK <= end:
        header = data[place : place + _BLOCK]
        if header[0] == 0:  # the end has empty blocks
            return
        kind = header[156:157]
        if kind in {b"L", b"x", b"g", b"K"} or header[124] & 0x80:
            yield from _members_of_tarfile(data, place)
            return
        size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
        if kind in _REGULAR:
            prefix, name = _text(header[345:500]) if header[257:262] == b"ustar" else "", _text(header[:100])
            yield (f"{prefix}/{name}" if prefix else name), place + _BLOCK, size
        place += _BLOCK + -(-size // _BLOCK) * _BLOCK


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode()


def _members_of_tarfile(data: mmap.mmap, start: int) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data[start:])) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, start + member.offset_data, member.size


def _write_tar(path: Path, rows: pa.Table) -> None:
    fields = [name for name in rows.column_names if name != KEY]
    keys = rows.column(KEY).to_pylist() if KEY in rows.column_names else None
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number, sample in enumerate(rows.select(fields).to_pylist()):
            key = f"{number:08d}" if keys is None else keys[number]
            for field, value in sample.items():
                data = value.encode() if isinstance(value, str) else value
                if not isinstance(data, bytes):
                    raise SampleSetError(
                        f"field {field!r} of sample {key!r} is {type(value).__name__}: a WebDataset tar holds bytes and texts; "
                        "write format='arrow' or 'parquet'"
                    )
                member = tarfile.TarInfo(f"{key}.{field}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _key(name: str, version: int) -> str:
    return f"{_FOLDER}/{_checked(name)}/index/{version:08d}.json"


def _checked(name: str) -> str:
    return "/".join(check_name(part, what="sample set name part") for part in name.split("/"))
