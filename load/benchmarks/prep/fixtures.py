"""Fixtures of the feature-store benchmarks: a feature view, rows for it, and a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from toque.featurestore import Entity, FeatureView, Field, Float64
from toque.featurestore.definitions.dtypes import TIMESTAMP

START = datetime(2013, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=400)
FEATURES = 20
KEYS = 20_000  # of the training sets
DAYS = 10
wide = FeatureView("wide", [Entity("key")], [Field(f"f{i}", Float64) for i in range(FEATURES)])


@contextmanager
def cluster(folder: Path, object_store_bytes: int) -> Iterator[None]:
    """Start a Ray cluster on this machine that spills into the folder."""
    ray.init(
        address="local",  # never a cluster that happens to run here
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=object_store_bytes,
        object_spilling_directory=str(folder),
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def feature_rows(rows: int, *, keys: int, seed: int = 0) -> pa.Table:
    """Make rows of the wide view over ten days; with as many keys as rows, one per key."""
    rng = np.random.default_rng(seed)
    number = np.arange(rows) if keys == rows else rng.integers(0, keys, rows)
    micros = int(START.timestamp()) * 10**6 + rng.integers(0, DAYS * 86_400 * 10**6, rows)
    columns: dict[str, Any] = {f"f{i}": rng.normal(size=rows) for i in range(FEATURES)}
    columns["key"] = pa.array(number).cast(pa.string())
    times = pa.array(micros).cast(TIMESTAMP)
    return pa.table(columns | {"event_timestamp": times, "created_timestamp": times})


def entity_rows(rows: int, *, keys: int = KEYS) -> pa.Table:
    """Make entity rows with keys and times like those of the features."""
    return feature_rows(rows, keys=keys, seed=1).select(["key", "event_timestamp"])


def event_rows(events: int, *, keys: int = 1_000) -> pa.Table:
    """Make a year of events, known when they happen."""
    rng = np.random.default_rng(2)
    micros = int(START.timestamp()) * 10**6 + np.sort(rng.integers(0, 365 * 86_400 * 10**6, events))
    times = pa.array(micros).cast(TIMESTAMP)
    key = pa.array(rng.integers(0, keys, events)).cast(pa.string())
    x = rng.integers(-30, 300, events).astype(np.float64)
    return pa.table({"key": key, "event_timestamp": times, "known_at": times, "x": x})
