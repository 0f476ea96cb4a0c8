"""The same joins and aggregates over Ray Data, for what does not fit one machine; the room's one module with Ray.

Both are functions of all rows of a key, so rows are shuffled by key into partitions and each partition runs the local
code: identical results, whatever the number of blocks or partitions. What is shuffled are Arrow tables as bytes, one for
each (block, partition): entity rows and feature rows of any schema meet in one group, and Ray moves few large values
instead of many small rows. Nothing is gathered on the driver.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from featurestore.applied import ViewOrName
from featurestore.definitions import (
    FeatureView,
    Projection,
)
from featurestore.errors import InvalidRows, UnknownDefinition
from featurestore.fields import (
    EVENT_DAY,
)
from featurestore.historical import RetrievalJob, attach, check_entities, finish, stored_view
from featurestore.offline import OfflineStore, scan, storable
from featurestore.retrieval import Retrieval
from featurestore.rows import conform, offline_schema
from featurestore.store import Features, FeatureStore
from kernels.hashing import hash_strings
from registry.tables import TableSnapshot

ROW = "toque_row"  # number of an entity row, to give rows back in order

_PART, _SIDE, _PAYLOAD = "part", "side", "payload"
_ENTITIES, _ROWS = 0, 1
_MIN_PARTITIONS = 8
_FILES_PER_TASK = 32
_ROWS_PER_BLOCK = 250_000

Dataset = ray.data.Dataset


def historical(job: RetrievalJob, *, partitions: int | None = None) -> Dataset:
    """A retrieval job as a dataset: its entity rows, in order, with the features appended.

    partitions: of the keys; by default as many as the cluster has CPUs, and at least 8.
    """
    numbered = job.entities.append_column(ROW, pa.array(np.arange(job.entities.num_rows)))
    starts = range(0, max(numbered.num_rows, 1), _ROWS_PER_BLOCK)
    dataset = ray.data.from_arrow([numbered.slice(at, _ROWS_PER_BLOCK) for at in starts])
    return _joined(dataset, job, job.entities.column_names, partitions=partitions)


def get_historical_features(
    fs: FeatureStore,
    entities: Dataset,
    features: Features,
    *,
    row_number: str,
    as_known: bool = False,
    partitions: int | None = None,
) -> Dataset:
    """As `FeatureStore.get_historical_features`, for an entity table that is itself a dataset.

    row_number: its Int64 column that numbers the rows; they come back in that order.
    Raises: InvalidRows, UnknownDefinition.
    """
    columns = list(entities.schema().names)
    if row_number not in columns:
        raise InvalidRows(f"entity table: row number column {row_number!r} is missing; got {columns}")
    sample = fs.get_historical_features(_empty(entities), features, as_known=as_known)
    checked = entities.map_batches(
        partial(_checked, retrieval=sample.retrieval, row_number=row_number),
        batch_format="pyarrow",
        batch_size=None,
    )
    return _joined(checked, sample, columns, partitions=partitions)


def _empty(dataset: Dataset) -> pa.Table:
    schema = dataset.schema()
    return pa.schema(list(zip(schema.names, schema.types, strict=True))).empty_table()


def _checked(entities: pa.Table, *, retrieval: Retrieval, row_number: str) -> pa.Table:
    return check_entities(entities, retrieval).append_column(ROW, entities.column(row_number))


def _joined(
    entities: Dataset, job: RetrievalJob, columns: Sequence[str], *, partitions: int | None
) -> Dataset:
    parts = _partitions(partitions)
    for lookup in job.retrieval.lookups:
        left = _packed(entities, lookup.key_columns, _ENTITIES, parts)
        rows = _stored_rows(job, lookup)
        view = stored_view(lookup)
        right = _packed(rows, [key.name for key in view.join_keys], _ROWS, parts)
        join = partial(_join_partition, lookup=lookup, as_known=job.as_known)
        entities = (
            left.union(right).groupby(_PART, num_partitions=parts).map_groups(join, batch_format="pyarrow")
        )
    finished = partial(finish, entity_columns=[*columns, ROW], retrieval=job.retrieval)
    done = entities.map_batches(finished, batch_format="pyarrow", batch_size=None)
    return done.sort(ROW).drop_columns([ROW])


def _partitions(given: int | None) -> int:
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]  # Ray leaves it so
    return given or max(_MIN_PARTITIONS, int(cpus))


def _stored_rows(job: RetrievalJob, lookup: Projection) -> Dataset:
    """All features of a view's rows, read by tasks; ties may need them all."""
    view = stored_view(lookup)
    snapshot = job.versions[view.name]
    if snapshot is None:
        return ray.data.from_arrow(offline_schema(view).empty_table())
    version = job.offline.version(view, snapshot.version)
    count = len(version.files) if version else 0
    pieces = [
        {"first": at, "last": min(at + _FILES_PER_TASK, count)} for at in range(0, count, _FILES_PER_TASK)
    ]
    read = partial(_read_files, offline=job.offline, view=view, number=snapshot.version)
    return ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        read, batch_format="pyarrow", batch_size=None
    )


def _read_files(pieces: pa.Table, *, offline: OfflineStore, view: FeatureView, number: int) -> pa.Table:
    version = offline.version(view, number)
    if version is None:
        raise UnknownDefinition(f"feature view {view.name!r}: version {number} of its table cannot be read")
    files = [f for piece in pieces.to_pylist() for f in version.files[piece["first"] : piece["last"]]]
    return scan(version, files, offline_schema(view))


def _packed(dataset: Dataset, keys: Sequence[str], side: int, parts: int) -> Dataset:
    pack = partial(_pack, keys=list(keys), side=side, parts=parts)
    return dataset.map_batches(pack, batch_format="pyarrow", batch_size=None)


def _pack(table: pa.Table, *, keys: Sequence[str], side: int, parts: int) -> pa.Table:
    """A block as one serialized table for each partition that has rows in it."""
    part = _part_of(table, keys, parts)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(parts + 1))
    found = [p for p in range(parts) if bounds[p] < bounds[p + 1]]
    payloads = [_to_bytes(table.take(pa.array(order[bounds[p] : bounds[p + 1]]))) for p in found]
    if not found:  # its schema still has to be known
        found, payloads = [0], [_to_bytes(table)]
    return pa.table(
        {
            _PART: pa.array(found, pa.int32()),
            _SIDE: pa.array([side] * len(found), pa.int8()),
            _PAYLOAD: pa.array(payloads, pa.large_binary()),
        }
    )


def _part_of(table: pa.Table, keys: Sequence[str], parts: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    mixed = np.zeros(table.num_rows, dtype=np.uint64)
    for key in keys:
        texts = table.column(key).cast(pa.string()).combine_chunks().dictionary_encode()
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hash_strings(texts).astype(np.uint64)
    return ((mixed >> np.uint64(17)) % np.uint64(parts)).astype(np.int64)


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _unpacked(group: pa.Table, side: int) -> pa.Table | None:
    payloads = [
        payload
        for payload, its_side in zip(group.column(_PAYLOAD), group.column(_SIDE).to_pylist(), strict=True)
        if its_side == side
    ]
    tables = [pa.ipc.open_stream(payload.as_buffer()).read_all() for payload in payloads]
    return pa.concat_tables(tables) if tables else None


def _join_partition(group: pa.Table, *, lookup: Projection, as_known: bool) -> pa.Table:
    entities, rows = _unpacked(group, _ENTITIES), _unpacked(group, _ROWS)
    if entities is None:  # rows that nobody asks for
        return pa.table({})
    if rows is None:
        rows = offline_schema(stored_view(lookup)).empty_table()
    return attach(entities, rows, lookup, as_known=as_known)[0]


def compute_offline(
    fs: FeatureStore, view: ViewOrName, events: Dataset, *, partitions: int | None = None
) -> TableSnapshot:
    """As `FeatureStore.compute_offline`, for events that are a dataset: aggregate by key, write in one commit.

    Raises: InvalidRows, UnknownDefinition (also if the view has no source).
    """
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    if found.source is None:
        raise UnknownDefinition(
            f"feature view {found.name!r} has no source; write its rows with write_offline"
        )
    keys = [key.name for key in found.join_keys]
    rows = by_key(events, partial(found.source.compute, keys=keys), keys=keys, partitions=partitions)
    return write_offline(fs, found, rows, partitions=partitions)


def by_key(
    dataset: Dataset,
    compute: Callable[[pa.Table], pa.Table],
    *,
    keys: Sequence[str],
    partitions: int | None = None,
) -> Dataset:
    """`compute` on all rows of each key together; a partition has many keys, and no key is in two."""
    parts = _partitions(partitions)
    packed = _packed(dataset, keys, _ROWS, parts)
    return packed.groupby(_PART, num_partitions=parts).map_groups(
        partial(_computed, compute=compute), batch_format="pyarrow"
    )


def _computed(group: pa.Table, *, compute: Callable[[pa.Table], pa.Table]) -> pa.Table:
    return compute(_unpacked(group, _ROWS))


def write_offline(
    fs: FeatureStore, view: ViewOrName, rows: Dataset, *, partitions: int | None = None
) -> TableSnapshot:
    """As `FeatureStore.write_offline`, for rows that are a dataset: one commit, and one file a day.

    Raises: InvalidRows, UnknownDefinition.
    """
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    table = fs.offline.create(found)
    now = fs.now()
    shaped = rows.map_batches(partial(_shaped, view=found, now=now), batch_format="pyarrow", batch_size=None)
    by_day = by_key(shaped, _as_is, keys=[EVENT_DAY], partitions=partitions)
    by_day.write_delta(table.uri, partition_by=[EVENT_DAY], storage_options=table.storage_options or None)
    return table.snapshot()


def _shaped(rows: pa.Table, *, view: FeatureView, now: datetime) -> pa.Table:
    return storable(conform(view, rows, clock=lambda: now))


def _as_is(rows: pa.Table) -> pa.Table:
    return rows
