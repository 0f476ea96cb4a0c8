"""Benchmark of streams: events a second from a Redis stream into both stores by one consumer, beside a plain polars loop.

The view has a count, sum and mean of an hour and of a day for 10,000 users. The loop reads the same messages on the same redis-server,
without late, doubled or corrected events and without any guarantee. How long an event takes is measured by `stream_latency`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
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
from toque.featurestore.stream_views import open_stream
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.windows.aggregations import Function
from toque.load.benchmarks.harness import Stopwatch, main, say, temporary
from toque.load.benchmarks.servers import redis_server
from toque.registry import open_store

USERS, BATCH = 10_000, 20_000
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def run(*, events: int = 200_000) -> None:
    """Run both, and print one line for each figure."""
    with temporary() as folder, redis_server(folder, password="") as url:
        fill(url, events)
        ours, plain = consumed(folder, url, events), polars_loop(folder, url)
    for what, own, base in zip(
        ("events/s into both stores", "events a second of CPU"), ours, plain, strict=True
    ):
        say(f"{what:28}{own:12,.0f}   polars loop {base:12,.0f}   {own / base:6.2f} x")


def rates(watch: Stopwatch, events: int) -> tuple[float, float]:
    """Events a second, and a second of this process's CPU, which other processes on the machine change less."""
    return events / watch.wall_s, events / watch.cpu_s


def event(user: str, amount: float) -> bytes:
    """Make a message of now."""
    return orjson.dumps({"user": user, "amount": amount, "at": datetime.now(UTC).isoformat()})


def fill(url: str, events: int) -> None:
    """Put messages into the stream."""
    client: Any = redis.Redis.from_url(url)
    rng = np.random.default_rng(1)
    for _ in range(0, events, BATCH):
        pipe = client.pipeline(transaction=False)
        for user, amount in zip(rng.integers(0, USERS, BATCH), rng.random(BATCH), strict=True):
            pipe.xadd("clicks", {"event": event(f"u{user}", float(amount))})
        pipe.execute()


def view_of(url: str) -> FeatureView:
    """Make the view that is measured."""
    schema = [Field("user", String), Field("amount", Float64)]
    source = StreamSource("clicks", RedisStream(url, "clicks"), schema, timestamp="at")
    windows = [Aggregation(Function.COUNT, length) for length in (HOUR, DAY)] + [
        Aggregation(function, length, "amount")
        for length in (HOUR, DAY)
        for function in (Function.SUM, Function.MEAN)
    ]
    return FeatureView("spent", [Entity("user", dtype=String)], source=Windows(windows), events=source)


def follower(folder: Path, url: str) -> tuple[FeatureStore, StreamConsumer]:
    """Make a store with the view, and a consumer of its stream."""
    features = FeatureStore(open_store(f"file://{folder}/store"), url)
    features.apply([view_of(url)])
    return features, open_stream(features, "clicks", secrets=str).consumer()


def consumed(folder: Path, url: str, events: int) -> tuple[float, float]:
    """Consume all messages until they are committed."""
    features, consumer = follower(folder, url)
    watch = Stopwatch()
    while consumer.counts.rows < events:
        consumer.step()
    consumer.flush()
    ours = rates(watch, events)
    consumer.close()
    stored = features.stream_table("clicks").events(columns=["user"]).num_rows
    if stored != events:
        raise RuntimeError(f"{stored} events are stored of {events}")
    return ours


def polars_loop(folder: Path, url: str) -> tuple[float, float]:
    """Do what is least: parse, append to a frame and to files, and aggregate the users of each batch."""
    client: Any = redis.Redis.from_url(url)
    schema = pl.Schema({"user": pl.String(), "amount": pl.Float64(), "at": pl.Datetime("us", "UTC")})
    last, count, events, amount = "-", 0, pl.DataFrame(schema=schema), pl.col("amount")
    watch = Stopwatch()
    while entries := client.xrange("clicks", min=last, count=BATCH):
        last, count = f"({entries[-1][0].decode()}", count + len(entries)
        lines = b"\n".join(fields[b"event"] for _, fields in entries)
        new = pl.read_ndjson(lines).with_columns(
            pl.col("at").str.to_datetime(time_unit="us", time_zone="UTC")
        )
        new.write_parquet(folder / f"polars-{count}.parquet")
        events = pl.concat([events, new.select(events.columns)], rechunk=False)
        now, touched = datetime.now(UTC), events.join(new.select("user").unique(), on="user", how="semi")
        hour, day = (
            touched.filter(pl.col("at") > now - length)
            .group_by("user")
            .agg(count=pl.len(), sum=amount.sum(), mean=amount.mean())
            for length in (HOUR, DAY)
        )
        rows = hour.join(day, on="user", suffix="_day").iter_rows(named=True)
        client.mset({f"polars:{row['user']}": orjson.dumps(row) for row in rows})
    return rates(watch, count)


if __name__ == "__main__":
    main(run, "polars", "pyarrow", "redis", "deltalake")
