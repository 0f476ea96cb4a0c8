"""Benchmark of streams: run `python -m toque.load.benchmarks.prep.streams [--events 200000] [--feast PYTHON]`.

Measured are events a second from a Redis stream into both stores by one consumer, whose view has a count, sum and mean of an hour and of
a day for 10,000 users; beside it, on the same messages and redis-server, a plain polars loop without late, doubled or corrected events
and without any guarantee, and Feast's push of rows that are computed already. How long an event takes is measured by `stream_latency`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from toque.featurestore import (
    Aggregation,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    RedisStream,
    StreamSource,
    String,
    Windows,
)
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.opening import open_stream
from toque.featurestore.windows.aggregations import Function
from toque.load.benchmarks.prep.fixtures import redis_server
from toque.load.benchmarks.timing import print_machine
from toque.registry import open_store

USERS, BATCH = 10_000, 20_000
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def main() -> None:
    """Run all cases, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--feast", default="", help="interpreter of an environment that has Feast")
    given = parser.parse_args()
    print_machine("polars", "pyarrow", "redis", "deltalake")
    print(f"# load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        fill(url, given.events)
        ours = consumed(Path(folder), url, given.events)
        plain = polars_loop(Path(folder), url)
        show("events/s into both stores", ours.a_second, plain.a_second, "polars loop")
        show("events a second of CPU", ours.a_cpu_second, plain.a_cpu_second, "polars loop")
        if given.feast:
            feast = pushed_by_feast(Path(folder), url, given.feast)
            peer = f"Feast {feast['version']}"
            for name in ("online", "both"):
                show(f"the same, against Feast's push: {name}", ours.a_second, feast[name], peer)
                show(f"a second of CPU: {name}", ours.a_cpu_second, feast[f"{name}_cpu"], peer)
    print(f"# load {os.getloadavg()[0]:.1f}")


@dataclass(frozen=True)
class Rate:
    """Events a second, and a second of this process's CPU, which other processes on the machine change less."""

    a_second: float
    a_cpu_second: float


@dataclass
class Stopwatch:
    """Time and CPU time of this process since it was made."""

    begun: float = field(default_factory=time.perf_counter)
    used: float = field(default_factory=time.process_time)

    def rate(self, events: int) -> Rate:
        """Divide a number of events by what went by."""
        return Rate(events / (time.perf_counter() - self.begun), events / (time.process_time() - self.used))


def show(what: str, ours: float, peer: float, name: str) -> None:
    """Print a figure beside a peer's."""
    print(f"{what:46}{ours:12,.0f}   {name} {peer:12,.0f}   {ours / peer:6.2f} x", flush=True)


def event(user: str, amount: float) -> bytes:
    """Make a message of now."""
    return orjson.dumps({"user": user, "amount": amount, "at": datetime.now(UTC).isoformat()})


def fill(url: str, events: int) -> None:
    """Put messages into the stream."""
    client: Any = redis.Redis.from_url(url)
    rng = np.random.default_rng(1)
    for at in range(0, events, BATCH):
        pipe = client.pipeline(transaction=False)
        for user, amount in zip(rng.integers(0, USERS, BATCH), rng.random(BATCH), strict=True):
            if at < events:
                pipe.xadd("clicks", {"event": event(f"u{user}", float(amount))})
        pipe.execute()


def view_of(url: str) -> FeatureView:
    """Make the view that is measured."""
    source = StreamSource(
        "clicks",
        RedisStream(url, "clicks"),
        [Field("user", String), Field("amount", Float64)],
        timestamp="at",
    )
    windows = [
        each
        for length in (HOUR, DAY)
        for each in (
            Aggregation(Function.COUNT, length),
            Aggregation(Function.SUM, length, "amount"),
            Aggregation(Function.MEAN, length, "amount"),
        )
    ]
    return FeatureView("spent", [Entity("user", dtype=String)], source=Windows(windows), events=source)


def follower(folder: Path, url: str) -> tuple[FeatureStore, StreamConsumer]:
    """Make a store with the view, and a consumer of its stream."""
    features = FeatureStore(open_store(f"file://{folder}/store"), url)
    features.apply([view_of(url)])
    pa.array([0])  # pyarrow imports pandas now, as Feast's process has done before it is measured
    return features, open_stream(features, "clicks", secrets=str).consumer()


def consumed(folder: Path, url: str, events: int) -> Rate:
    """Consume all messages until they are committed."""
    features, consumer = follower(folder, url)
    watch = Stopwatch()
    while consumer.counts.rows < events:
        consumer.step()
    consumer.flush()
    found = watch.rate(events)
    consumer.close()
    stored = features.stream_table("clicks").events(columns=["user"]).num_rows
    if stored != events:
        raise SystemExit(f"{stored} events are stored of {events}")
    return found


def polars_loop(folder: Path, url: str) -> Rate:
    """Do what is least: parse, append to a frame and to files, and aggregate the users of each batch."""
    client: Any = redis.Redis.from_url(url)
    last, count, kept = (
        "-",
        0,
        pl.DataFrame(schema={"user": pl.String, "amount": pl.Float64, "at": pl.Datetime("us", "UTC")}),
    )
    watch = Stopwatch()
    while entries := client.xrange("clicks", min=last, count=BATCH):
        last, count = f"({entries[-1][0].decode()}", count + len(entries)
        lines = b"\n".join(fields[b"event"] for _, fields in entries)
        new = pl.read_ndjson(lines).with_columns(
            pl.col("at").str.to_datetime(time_unit="us", time_zone="UTC")
        )
        new.write_parquet(folder / f"polars-{count}.parquet")
        kept = pl.concat([kept, new.select(kept.columns)], rechunk=False)
        now = datetime.now(UTC)
        touched = kept.join(new.select("user").unique(), on="user", how="semi")
        rows = [
            touched.filter(pl.col("at") > now - length)
            .group_by("user")
            .agg(
                pl.len().alias("count"),
                pl.col("amount").sum().alias("sum"),
                pl.col("amount").mean().alias("mean"),
            )
            for length in (HOUR, DAY)
        ]
        joined = rows[0].join(rows[1], on="user", suffix="_day")
        client.mset({f"polars:{row['user']}": orjson.dumps(row) for row in joined.iter_rows(named=True)})
    return watch.rate(count)


def pushed_by_feast(folder: Path, url: str, python: str) -> dict[str, Any]:
    """Push rows of as many users by Feast; returns its rows a second, and a second of CPU."""
    rng, rows = np.random.default_rng(1), 60_000
    table = pa.table(
        {
            "user": [f"u{n}" for n in rng.integers(0, USERS, rows)],
            "count": rng.random(rows),
            "sum": rng.random(rows),
            "mean": rng.random(rows),
            "event_timestamp": pa.array([datetime.now(UTC)] * rows, pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, folder / "pushed.parquet")
    script = Path(__file__).resolve().parents[2] / "peers" / "feast_push.py"
    done = subprocess.run(
        [python, "-P", str(script), str(folder), url], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
