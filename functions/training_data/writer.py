"""Writer of sample sets: from tables of samples, however many, to shards of a size in the store."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from toque.functions.training_data.errors import SampleSetError
from toque.functions.training_data.formats import open_bytes, write_shard
from toque.functions.training_data.index import SetIndex, SetRef, Shard, ShardFormat, new_folder, publish
from toque.registry import ObjectStore, Table, TableSnapshot

SHARD_BYTES = 64 << 20
_SUFFIX: Mapping[ShardFormat, str] = {"arrow": "arrow", "parquet": "parquet", "webdataset": "tar"}


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
