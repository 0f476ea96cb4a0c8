"""Drain of the stream into Delta tables, each record exactly once; and export of what no table has yet.

A commit carries, as Delta transactions, the number of each writer's last record in it. A drain reads those
numbers in the snapshot it commits to and leaves out what is already there; Delta refuses the commit if another
drain moved them meanwhile, and the drain retries. Only then are the records dropped from the stream, and
after that from the writers' files. Whatever dies in between, the next drain finds the rest.
An export is taken before a store is copied. What is drained in between is in both, and is added once, by the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict

from toque.clusters.redis_clients import open_redis
from toque.functions.prediction_log.errors import PredictionLogError
from toque.functions.prediction_log.frames import Frame, encode_frame, read_frames
from toque.functions.prediction_log.records import (
    LABELS,
    LABELS_TABLE,
    LARGE,
    PREDICTIONS,
    decode_prediction,
    large_values_table,
    predictions_table,
)
from toque.functions.prediction_log.writing.columns import (
    has_large_value,
    label_columns,
    large_columns,
    prediction_columns,
)
from toque.functions.prediction_log.writing.lost_writers import KINDS, adopt_orphans
from toque.functions.prediction_log.writing.series import DRAINED
from toque.functions.prediction_log.writing.stream import Stream
from toque.registry.access import DEFAULT_WORKSPACE
from toque.registry.errors import NewerFormat
from toque.registry.store import ObjectStore, Table
from toque.registry.store.tables.files import settle
from toque.registry.store.tables.table import commit_properties
from toque.registry.times import CHANCE

COMMITS_AT_ONCE = 8
"""Tables to which one drain appends at a time."""
_BATCH_BYTES = 64 << 20  # of records that a round holds, however many writers there are
_WRITER_BYTES = 16 << 20  # of one writer
Batch = Mapping[str, list[Frame]]
"""Frames that were read, by writer, in order."""
_FORMAT = 1  # of an export


@dataclass(frozen=True, slots=True)
class Share:
    """Share of the writers that one of `count` drains moves."""

    index: int = 0
    count: int = 1

    def has(self, writer: str) -> bool:
        """Whether a writer is in this share."""
        return crc32(writer.encode()) % self.count == self.index


WHOLE = Share()


class DrainResult(BaseModel):
    """Result of one drain: rows added to the tables, writers they came from, dead writers' folders claimed.

    lost: writers that vanished and were written off now.
    """

    model_config = ConfigDict(frozen=True)

    predictions: int = 0
    labels: int = 0
    writers: int = 0
    adopted: int = 0
    lost: int = 0

    def __add__(self, other: DrainResult) -> DrainResult:
        return DrainResult(
            predictions=self.predictions + other.predictions,
            labels=self.labels + other.labels,
            writers=max(self.writers, other.writers),
            adopted=self.adopted + other.adopted,
            lost=self.lost + other.lost,
        )

    def beside(self, other: DrainResult) -> DrainResult:
        """Add the result of a drain that moved other writers' records."""
        return (self + other).model_copy(update={"writers": self.writers + other.writers})


def drain(
    store: ObjectStore,
    redis_url: str,
    *,
    workspace: str = DEFAULT_WORKSPACE,
    wal_root: Path | None = None,
    max_rounds: int = 1_000,
    share: Share = WHOLE,
) -> DrainResult:
    """Move every record that is in the streams, and those of dead writers under `wal_root`, into the tables.

    What comes meanwhile may wait for the next drain: under load there is always something, and each round is a commit.

    store: of the workspace whose records they are. share: of the writers, where several processes share them.
    Safe to run several at once. Raises: redis.RedisError, PredictionLogError, registry's Unavailable.
    """
    client = open_redis(redis_url, timeout_s=30.0)
    try:
        total = DrainResult()
        for kind in KINDS:
            stream = Stream(client, kind, workspace=workspace)
            if wal_root is not None:
                total += DrainResult(adopted=adopt_orphans(wal_root, stream))
            total += _move_all(store, stream, max_rounds, share, DRAINED.labels(workspace, kind))
        return total
    finally:
        client.close()


def _move_all(
    store: ObjectStore, stream: Stream, max_rounds: int, share: Share, drained: Counter
) -> DrainResult:
    total = DrainResult()
    for _ in range(max_rounds):
        batch, is_rest = _next_batch(stream, share)
        if batch:
            total += add_records(store, stream.kind, batch) + DrainResult(writers=len(batch))
        for writer, frames in batch.items():
            stream.mark_drained(writer, frames[-1].number)
            drained.inc(len(frames))
        if is_rest:
            break
    return total


def waiting_writers(redis_url: str, *, workspace: str = DEFAULT_WORKSPACE) -> int:
    """Count the writers whose predictions wait in Redis. Raises: redis.RedisError."""
    client = open_redis(redis_url, timeout_s=30.0)
    try:
        return len(Stream(client, "predictions", workspace=workspace).writers())
    finally:
        client.close()


def _next_batch(stream: Stream, share: Share) -> tuple[dict[str, list[Frame]], bool]:
    """Read a batch, bounded over all writers together, and whether it is all that the stream had."""
    batch: dict[str, list[Frame]] = {}
    waiting = [writer for writer in stream.writers() if share.has(writer)]
    left, is_rest = _BATCH_BYTES, True
    for writer in CHANCE.sample(waiting, len(waiting)):  # none is always last
        if left <= 0:
            return batch, False
        room = min(left, _WRITER_BYTES)
        if frames := list(stream.read(writer, max_bytes=room)):
            batch[writer] = frames
            size = sum(len(frame.payload) for frame in frames)
            left -= size
            is_rest = is_rest and size < room / 2  # the stream counts headers, too
    return batch, is_rest


def _move_predictions(store: ObjectStore, batch: Batch) -> DrainResult:
    """Append the predictions of each model to its table, of several models at once: a commit mostly waits for the store."""

    def move(model: str, its_own: Batch) -> int:
        def build(payloads: Iterable[bytes]) -> pa.Table:
            return prediction_columns(payloads).get(model, PREDICTIONS.empty_table())

        _move_large(store, model, its_own)  # first, so that no row names what is not there
        return _append_new(Table(store, predictions_table(model)), its_own, build, PREDICTIONS)

    by_model = _by_model(batch)
    with ThreadPoolExecutor(COMMITS_AT_ONCE, thread_name_prefix="drain") as pool:
        return DrainResult(predictions=sum(pool.map(move, by_model.keys(), by_model.values())))


def _move_large(store: ObjectStore, model: str, batch: Batch) -> None:
    """Append the large values of a model's records to a table of their own."""
    may_have = {
        writer: found
        for writer, frames in batch.items()
        if (found := [frame for frame in frames if has_large_value(frame.payload)])
    }
    if not may_have:
        return

    def build(payloads: Iterable[bytes]) -> pa.Table:
        return large_columns(payloads).get(model, LARGE.empty_table())

    _append_new(Table(store, large_values_table(model)), may_have, build, LARGE)


def _by_model(batch: Batch) -> dict[str, dict[str, list[Frame]]]:
    """Split a batch by model, so that each table decodes its own records alone."""
    found: dict[str, dict[str, list[Frame]]] = {}
    for writer, frames in batch.items():
        for frame in frames:
            model = decode_prediction(frame.payload)["model"]
            found.setdefault(model, {}).setdefault(writer, []).append(frame)
    return found


def _move_labels(store: ObjectStore, batch: Batch) -> DrainResult:
    return DrainResult(labels=_append_new(Table(store, LABELS_TABLE), batch, label_columns, LABELS))


_MOVES = {"predictions": _move_predictions, "labels": _move_labels}


def add_records(store: ObjectStore, kind: str, batch: Batch) -> DrainResult:
    """Append records to the tables of a store, those left out that are there, and have them on the disk.

    Raises: Unavailable if others keep it from its commit, or the disk fails.
    """
    added = _MOVES[kind](store, batch)
    settle(store)  # also what another drain committed and did not live to settle
    return added


def _append_new(
    table: Table, batch: Batch, build: Callable[[Iterable[bytes]], pa.Table], schema: pa.Schema
) -> int:
    """Append the records of `batch` that the table does not have; returns the rows added."""
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]  # no unit stands in the log

    def append(opened: DeltaTable) -> int:
        fresh, last = _fresh(opened, batch)
        rows = build(frame.payload for frame in fresh)
        if rows.num_rows:
            write_deltalake(
                opened,
                rows,
                mode="append",
                schema_mode="merge",  # with the columns of traces, or without them into a table that has them
                commit_properties=commit_properties(last, None),
            )
        return int(rows.num_rows)

    return table.commit_unsettled(append, schema=schema, partition_by=["day"], bounds=times)


def _fresh(snapshot: DeltaTable, batch: Batch) -> tuple[list[Frame], dict[str, int]]:
    """Select the frames that are not in this snapshot, and the last number of each writer."""
    fresh: list[Frame] = []
    last: dict[str, int] = {}
    for writer, frames in batch.items():
        there = snapshot.transaction_version(writer) or 0
        new = [frame for frame in frames if frame.number > there]
        if new:
            fresh += new
            last[writer] = new[-1].number
    return fresh, last


@dataclass(frozen=True, slots=True)
class WriterExport:
    """Records of one writer that were in its stream and in no table."""

    kind: str
    workspace: str
    writer: str
    frames: tuple[Frame, ...]

    def to_bytes(self) -> bytes:
        """Write as a line of JSON and the frames."""
        head = {"format": _FORMAT, "kind": self.kind, "workspace": self.workspace, "writer": self.writer}
        line = json.dumps(head | {"records": len(self.frames)})
        return b"\n".join(
            (line.encode(), b"".join(encode_frame(frame.number, frame.payload) for frame in self.frames))
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> WriterExport:
        """Read an export that `to_bytes` wrote. Raises: NewerFormat; PredictionLogError if it is damaged."""
        line, _, body = data.partition(b"\n")
        try:
            head: dict[str, Any] = json.loads(line)
            found = head["format"]
            if found > _FORMAT:
                raise NewerFormat(where, found, _FORMAT)
            frames = tuple(read_frames(body))
            whole = len(frames) == head["records"]
            export = cls(head["kind"], head["workspace"], head["writer"], frames)
        except (ValueError, KeyError, TypeError) as error:
            raise PredictionLogError(f"{where} is no export of a stream: {error!r}") from error
        if not whole:
            raise PredictionLogError(
                f"{where} holds {len(frames)} whole records of {head['records']}: it is damaged"
            )
        return export


def export_streams(redis_url: str, workspaces: Iterable[str]) -> Iterator[WriterExport]:
    """Read the records that no table has yet, writer by writer; nothing is removed.

    Raises: redis.RedisError; PredictionLogError if a stream is damaged.
    """
    client = open_redis(redis_url, timeout_s=30.0)
    try:
        for workspace in workspaces:
            for stream in (Stream(client, kind, workspace=workspace) for kind in KINDS):
                for writer in stream.writers():
                    frames = tuple(stream.read(writer, max_bytes=1 << 62))
                    yield WriterExport(stream.kind, workspace, writer, frames)
    finally:
        client.close()


def add_exports(store_of: Callable[[str], ObjectStore], exports: Iterable[WriterExport]) -> DrainResult:
    """Append exported records to the tables that lack them; may be killed and repeated, and exports may overlap.

    store_of: opens the store of a workspace. Raises: PredictionLogError; registry's Unavailable.
    """
    total = DrainResult()
    for export in exports:
        if export.frames:
            total += add_records(store_of(export.workspace), export.kind, {export.writer: [*export.frames]})
    return total


__all__ = [
    "DrainResult",
    "Share",
    "WriterExport",
    "add_exports",
    "add_records",
    "drain",
    "export_streams",
    "waiting_writers",
]
