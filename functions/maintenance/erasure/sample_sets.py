"""Sample sets that hold a subject: copies of tables' rows, in shards of Arrow, Parquet or tar that no search of JSON reads.

A set that was made of a table's version is deleted where that version lost rows, as its own rows may have no name any more; it is
written anew from the table. Of any other set, shards with the subject's rows are written anew without them.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toque.functions.maintenance.erasure.record import PendingErasure, TableErasure
from toque.functions.maintenance.erasure.subject import Traces
from toque.functions.training_data.formats import (
    SetIndex,
    Shard,
    ShardFormat,
    TarShard,
    open_bytes,
    write_shard,
)
from toque.registry import ObjectStore

FOLDER = "samples/"
_PLACE = "sample sets"


def erase_from_sets(store: ObjectStore, traces: Traces, pending: PendingErasure) -> list[str]:
    """Remove the subject from sample sets; returns the shards that no set names, and that nobody can say are free of it."""
    for key, index in _sets(store):
        shards: list[Shard | None] = []
        if not _is_touched(index, pending.tables):
            shards = [_without(store, index.format, shard, traces) for shard in index.shards]
        staying = tuple(shard for shard in shards if shard is not None)
        if staying == index.shards:
            continue
        if staying:
            changed = index.model_copy(update={"shards": staying})
            store.put(key, changed.model_dump_json().encode())
        for shard in {*index.shards} - {*staying}:
            store.delete(shard.key)
        if not staying:  # last: a kill before it is made good by the next run
            store.delete(key)
        pending.count(_PLACE, 1)
    return [
        f"{key} (no sample set names it: its writer is at work or was killed; delete it, or wait, and erase again)"
        for key in _unnamed(store)
    ]


def find_sets(store: ObjectStore, traces: Traces, lost: Mapping[str, TableErasure]) -> dict[str, str]:
    """Find the sets that `erase_from_sets` would change, with why; changes nothing. lost: rows that go, by table."""
    reasons: dict[str, str] = {}
    for key, index in _sets(store):
        if _is_touched(index, lost):
            reasons[key] = f"made of {index.origin['table']}, which has its rows; is deleted whole"
        elif any(_has_rows(store, index.format, shard, traces) for shard in index.shards):
            reasons[key] = "has its rows"
    return reasons


def _sets(store: ObjectStore) -> Iterator[tuple[str, SetIndex]]:
    for key in list(store.list(FOLDER)):
        data = store.find(key) if "/index/" in key else None
        if data is not None:
            yield key, SetIndex.model_validate_json(data)


def _unnamed(store: ObjectStore) -> list[str]:
    """List shards that no set names; those beside shards of a set were written anew by a run that was killed, and are deleted."""
    named = {shard.key for _, index in _sets(store) for shard in index.shards}
    published = {key.rpartition("/")[0] for key in named}
    unnamed = [key for key in store.list(FOLDER) if "/shards/" in key and key not in named]
    for key in unnamed:
        if key.rpartition("/")[0] in published:
            store.delete(key)
    return [key for key in unnamed if key.rpartition("/")[0] not in published]


def _is_touched(index: SetIndex, lost: Mapping[str, TableErasure]) -> bool:
    name, _, version = index.origin.get("table", "").rpartition("@")
    return name in lost and lost[name].touches(int(version))


def _rows_of(store: ObjectStore, form: ShardFormat, shard: Shard) -> pa.Table | None:
    """Read the rows of a shard; None if it is gone."""
    if not store.find_modified_at(shard.key):
        return None
    with tempfile.TemporaryDirectory(prefix="toque-erasure-") as folder:
        path = Path(folder, "shard")
        store.download(shard.key, path)
        if form == "parquet":
            return pq.read_table(path)
        if form == "arrow":
            with pa.OSFile(str(path)) as source:
                return pa.ipc.open_file(source).read_all()
        samples = TarShard(path)
        return pa.table(
            {name: list(values) for name, values in samples.take(np.arange(samples.rows)).items()}
        )


def _has_rows(store: ObjectStore, form: ShardFormat, shard: Shard, traces: Traces) -> bool:
    rows = _rows_of(store, form, shard)
    return rows is not None and bool(pc.any(_mask(rows, traces)).as_py())


def _without(store: ObjectStore, form: ShardFormat, shard: Shard, traces: Traces) -> Shard | None:
    """Write a shard without the subject's rows; returns the same one if it has none, None if no row is left, or it is gone."""
    rows = _rows_of(store, form, shard)
    if rows is None:
        return None
    mask = _mask(rows, traces)
    if not pc.any(mask).as_py():
        return shard
    staying = rows.filter(pc.invert(mask))
    if not staying.num_rows:
        return None
    with tempfile.TemporaryDirectory(prefix="toque-erasure-") as folder:
        written = Path(folder, "written")
        write_shard(form, written, staying)
        digest = hashlib.sha256(written.read_bytes()).hexdigest()
        stem, _, suffix = shard.key.rpartition(".")
        key = f"{stem}-{digest[:8]}.{suffix}"
        store.upload(key, written)
        return Shard(
            key=key,
            rows=staying.num_rows,
            size_bytes=written.stat().st_size,
            open_bytes=open_bytes(form, written),
            digest=digest,
        )


def _mask(rows: pa.Table, traces: Traces) -> pa.Array:
    """Tell for each sample whether it is the subject's: by its columns, or by JSON or text in one of its fields."""
    mask = traces.mask(rows)
    for column in rows.columns:
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            fields = (value.encode() if isinstance(value, str) else value for value in column.to_pylist())
            inside = [value is not None and traces.in_bytes(value) for value in fields]
            mask = pc.or_(mask, pa.array(inside, pa.bool_()))
    return mask
