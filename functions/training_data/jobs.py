"""Functions on sample sets, which are written from tables such as a training set, or from folders, and deleted.

Folders hold pictures sorted by their class, texts that are tokenized and packed, or WebDataset tars.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from toque.functions.arguments import Dataset
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function
from toque.functions.training_data.formats import (
    SampleSetError,
    SetIndex,
    SetRef,
    Shard,
    ShardFormat,
    TarShard,
    delete_set,
    new_folder,
    open_bytes,
    publish,
    write_shard,
)
from toque.registry import ObjectStore, Table, TableSnapshot

SHARD_BYTES = 64 << 20
_SUFFIX: Mapping[ShardFormat, str] = {"arrow": "arrow", "parquet": "parquet", "webdataset": "tar"}
Tokenize = Callable[[str], Sequence[int]]
_FILES_AT_ONCE = 256
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3))
def write_sample_set(
    dataset: Dataset,
    name: Annotated[
        str,
        Field(
            description="Name of the sample set, of one or more parts with '/' between them, as in 'digits/train'."
        ),
    ],
    columns: Annotated[
        list[str] | None, Field(description="Columns that become fields of the samples; all unless given.")
    ] = None,
    form: Annotated[
        ShardFormat, Field(description="Format of the shards; tars (webdataset) hold bytes and texts only.")
    ] = "arrow",
    shard_mb: Annotated[
        int,
        Field(
            ge=1,
            le=65_536,
            description="MiB of a shard's samples in memory, where one shard is held; under 1 counts as 1.",
        ),
    ] = 64,
) -> SetRef:
    """Write the rows of a table's version, such as a training set, as the next version of the sample set `name`.

    Raises: NotFound; SampleSetError if the table has no rows.
    """
    return write_table(
        context().store, name, dataset, columns=columns, form=form, shard_bytes=max(1, shard_mb) << 20
    )


@function(http=True, timeout_s=3600, retries=Retries(max_attempts=3))
def delete_sample_set(
    sample_set: Annotated[SetRef, Field(description="Version that is deleted; it may be gone already.")],
) -> SetRef:
    """Delete a version of a sample set, its index first, so that nobody opens what is being deleted; safe to repeat."""
    delete_set(context().store, sample_set)
    return sample_set


def write_samples(
    store: ObjectStore,
    name: str,
    parts: Iterable[pa.Table],
    *,
    form: ShardFormat = "arrow",
    shard_bytes: int = SHARD_BYTES,
    origin: Mapping[str, str] | None = None,
) -> SetRef:
    """Write tables of samples, in order, as the next version of the set `name`; holds one shard.

    shard_bytes: of a shard's samples in memory; origin: what they were made of, kept in the index.
    Raises: SampleSetError if there are no samples, or their fields change.
    """
    folder, shards, columns = new_folder(name), list[Shard](), ()
    with tempfile.TemporaryDirectory(prefix="toque-samples-") as local:
        for rows in cut_by_bytes(parts, shard_bytes):
            if columns and tuple(rows.column_names) != columns:
                raise SampleSetError(
                    f"sample set {name!r}: fields changed from {columns} to {rows.column_names}"
                )
            columns = tuple(rows.column_names)
            path = Path(local, f"shard.{_SUFFIX[form]}")
            write_shard(form, path, rows)
            key = f"{folder}/{len(shards):06d}.{_SUFFIX[form]}"
            shards.append(_uploaded(store, form, path, rows, key))
            del rows  # not held while the next shard is collected
    index = SetIndex(format=form, columns=columns, shards=tuple(shards), origin=dict(origin or {}))
    return publish(store, name, index)


def write_table(
    store: ObjectStore,
    name: str,
    snapshot: TableSnapshot,
    *,
    columns: list[str] | None = None,
    form: ShardFormat = "arrow",
    shard_bytes: int = SHARD_BYTES,
) -> SetRef:
    """Write the rows of a table's version, such as a training set, as a sample set. columns: by default all.

    Raises: NotFound; SampleSetError if it has no rows.
    """
    parts = Table(store, snapshot.name).batches(version=snapshot.version, columns=columns)
    return write_samples(
        store, name, parts, form=form, shard_bytes=shard_bytes, origin={"table": str(snapshot)}
    )


def cut_by_bytes(parts: Iterable[pa.Table], most: int) -> Iterator[pa.Table]:
    """Cut and join tables to about `most` bytes each, in order; a single sample may be larger."""
    waiting, have = list[pa.Table](), 0
    for whole in parts:
        if not whole.num_rows:
            continue
        each = max(1, whole.nbytes // whole.num_rows)
        rest = whole
        while rest.num_rows:
            fitting = max(1, (most - have) // each)
            waiting.append(rest.slice(0, fitting))
            have += waiting[-1].num_rows * each
            rest = rest.slice(fitting)
            if have + each > most:
                yield pa.concat_tables(waiting)
                waiting, have = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _uploaded(store: ObjectStore, form: ShardFormat, path: Path, rows: pa.Table, key: str) -> Shard:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    store.upload(key, path)
    return Shard(
        key=key,
        rows=rows.num_rows,
        size_bytes=path.stat().st_size,
        open_bytes=open_bytes(form, path),
        digest=digest,
    )


def images_of(folder: Path) -> Iterator[pa.Table]:
    """Read the pictures of a folder with a folder for each class, in order of their names, as they are encoded.

    Fields: `image` (bytes), `label` (number of the class, in order of names), `name`. Raises: SampleSetError if there are none.
    """
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in _PICTURES)
    if not files:
        raise SampleSetError(
            f"{folder} has no pictures in folders named by class, such as {folder}/cat/1.jpg"
        )
    classes = sorted({path.parent.name for path in files})
    for start in range(0, len(files), _FILES_AT_ONCE):
        some = files[start : start + _FILES_AT_ONCE]
        yield pa.table(
            {
                "image": pa.array([path.read_bytes() for path in some], pa.binary()),
                "label": pa.array([classes.index(path.parent.name) for path in some], pa.int64()),
                "name": [f"{path.parent.name}/{path.name}" for path in some],
            }
        )


def texts_of(folder: Path, pattern: str = "**/*.txt") -> Iterator[str]:
    """Read the texts of a folder, in order of their names."""
    for path in sorted(folder.glob(pattern)):
        yield path.read_text()


def tars_of(paths: Sequence[Path]) -> Iterator[pa.Table]:
    """Read the samples of WebDataset tars, each tar at once."""
    for path in paths:
        shard = TarShard(path)
        yield pa.table(
            {name: pa.array(list(values)) for name, values in shard.take(np.arange(shard.rows)).items()}
        )


def packed(
    texts: Iterable[str], tokenize: Tokenize, *, length: int, end: int, dtype: str = "int32"
) -> Iterator[pa.Table]:
    """Tokenize texts and pack them into samples of `length` tokens, `end` behind each text; what is left at the end is dropped.

    Fields: `tokens` (length,) and `position` (length,), of each token in its own text, by which attention can be kept within texts.
    Raises: ValueError if a token does not fit `dtype`.
    """
    limit = np.iinfo(dtype)
    waiting: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.int64]] = []
    have = 0
    for text in texts:
        tokens = np.append(np.fromiter(tokenize(text), dtype=np.int64), end)
        if tokens.min() < limit.min or tokens.max() > limit.max:
            raise ValueError(f"token {tokens.max()} does not fit dtype={dtype!r}; pass a larger one")
        waiting.append(tokens)
        places.append(np.arange(len(tokens)))
        have += len(tokens)
        if have >= length * _FILES_AT_ONCE:
            whole = have // length
            yield _samples(np.concatenate(waiting), np.concatenate(places), whole, length, dtype)
            waiting, places = (
                [np.concatenate(waiting)[whole * length :]],
                [np.concatenate(places)[whole * length :]],
            )
            have -= whole * length
    if have >= length:
        yield _samples(np.concatenate(waiting), np.concatenate(places), have // length, length, dtype)


def _samples(
    tokens: npt.NDArray[np.int64], places: npt.NDArray[np.int64], count: int, length: int, dtype: str
) -> pa.Table:
    def column(values: npt.NDArray[np.int64], kind: str) -> pa.Array:
        flat = pa.array(values[: count * length].astype(kind))
        return pa.FixedSizeListArray.from_arrays(flat, length)

    return pa.table({"tokens": column(tokens, dtype), "position": column(places, "int32")})


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode pixels (height, width, channels) or (height, width) without loss."""
    from PIL import Image  # late: few processes write pictures

    target = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(target, "PNG")
    return target.getvalue()
