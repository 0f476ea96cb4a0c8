"""A small platform that knows a person in every place it has, and a search through all of its bytes."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64
from toque.functions import Context, function, use_context
from toque.functions.features.jobs import build_training_set
from toque.functions.prediction_log import (
    Label,
    LogWriter,
    default_wal_root,
    drain,
    encode_labels,
    encode_prediction,
)
from toque.functions.runtime.durable.ledger import Ledger
from toque.registry import Lineage, Table, TableSnapshot, open_store

UNIT, RIDER = "unit-5f2e8a1c", "rider-9b7d4403"
T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
rides = FeatureView("rides", [Entity("rider")], [Field("length", Float64)], ttl=timedelta(days=30))


@dataclass
class Platform:
    """A platform in a folder: its context, its open log, and the training set and version that know the person."""

    context: Context
    log: LogWriter
    training_set: TableSnapshot
    version: int


@function
def greet(rider: str) -> str:
    return rider


def prediction(name: str, unit: str, rider: str) -> bytes:
    return encode_prediction(
        id=name, model="late", version=1, arm="champion", shadow=False, unit=unit, at_us=1_772_366_400_000_000,
        latency_ms=1.0, rows=1, numeric=None, categorical=[[rider]], outputs=None, entities=[{"rider": rider}],
    )  # fmt: skip


def filled(folder: Path, redis_url: str) -> Platform:
    """Make the platform with the person and a bystander in every place."""
    url = f"file://{folder}/store"
    context = Context(open_store(url), url, redis_url=redis_url, actor="ada", clock=lambda: T0)
    with use_context(context):
        training_set = _features(context)
        version = _version(context, folder, training_set)
        _objects(context)
        log = LogWriter(default_wal_root(url), "predictions", redis_url, poll_s=0.01, tidy_every_s=0.02)
        labels = LogWriter(default_wal_root(url), "labels", redis_url, poll_s=0.01, tidy_every_s=0.02)
        for batch in range(2):
            log.append(prediction(f"p{batch}", UNIT, "rider-other"))
            log.append(prediction(f"q{batch}", "unit-other", RIDER))
            log.append(prediction(f"r{batch}", "unit-other", "rider-other"))
            labels.extend([encode_labels([Label(f"{name}{batch}", 1.0, T0, T0)]) for name in "pqr"])
            if batch == 0:
                _drained(context, log)
    return Platform(context, log, training_set, version)


def _drained(context: Context, log: LogWriter) -> None:
    assert context.redis_url is not None
    moved = 0
    while moved < 3:
        moved += drain(context.store, context.redis_url).predictions


def _features(context: Context) -> TableSnapshot:
    features = context.features()
    features.apply([rides, FeatureService("late", [rides])])
    rows = [{"rider": each, "length": 2.5, "event_timestamp": T0} for each in (RIDER, "rider-other")]
    features.write_offline(rides, pa.Table.from_pylist(rows))
    features.materialize_incremental(T0)
    labelled = [row | {"late": 1.0, "event_timestamp": T0 + timedelta(hours=1)} for row in rows]
    chosen = pa.Table.from_pylist(labelled).drop_columns(["length"])
    entities = Table(context.store, "rides/entities").overwrite(chosen)
    return build_training_set(
        "late", entities, "late", T0, T0 + timedelta(days=1), known_by=T0 + timedelta(days=2)
    )


def _version(context: Context, folder: Path, training_set: TableSnapshot) -> int:
    (folder / "weights").write_bytes(b"w")
    registry = context.registry()
    registry.create_model("late")
    made = registry.create_version("late", folder / "weights", lineage=Lineage(datasets=[training_set]))
    return made.version


def _objects(context: Context) -> None:
    store = context.store
    store.put("reports/late.html", f"<td>{UNIT}</td>".encode())
    store.put("reports/other.html", b"<td>unit-other</td>")
    store.put("memos/score/0.json", json.dumps({"json": {"rider": RIDER}}).encode())
    invocation = Ledger(store, actor="ada").submit(greet, {"rider": RIDER})
    Ledger(store, actor="ada").cancel(invocation)


def traces_in(platform: Platform, *values: str) -> list[str]:
    """List every place whose bytes, or whose decompressed rows, hold one of the values."""
    found = []
    assert isinstance(platform.context.redis_url, str)
    root = Path(platform.context.store_url.removeprefix("file://"))
    client: Any = redis.Redis.from_url(platform.context.redis_url)
    folders = [root, default_wal_root(platform.context.store_url), Path(client.config_get("dir")["dir"])]
    for path in [path for folder in folders for path in folder.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        texts = str(pq.read_table(io.BytesIO(data)).to_pylist()) if path.suffix == ".parquet" else ""
        if any(value.encode() in data or value in texts or value in str(path) for value in values):
            found.append(str(path))
    readers = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"stream": client.xrange,
        b"set": client.smembers,
    }
    for key in client.scan_iter():
        content = str([key, readers[client.type(key)](key)])
        found += [f"redis {key!r}"] if any(value in content for value in values) else []
    return found
