"""Benchmark of streams from Redis: how many events a second, how soon each is online, and how long a view takes to be filled anew.

rate: one consumer into both stores, a count, sum and mean of an hour and of a day for 10,000 users. The floor is a polars loop over the same
messages, without late, doubled or corrected events and without any guarantee.
latency: from when an event was to be sent to when it is in the online row of its key; sent by a process of their own, consumed by another,
and read online by this one, a probe every 50 ms. In the end every row that was read is compared with what a training set has for its key at its time,
which is computed from the stored events: they must be the same bits, else the exit code is 1.
replay: a view filled from stored events beside reading all of them and writing them sorted to one Parquet file, each in a process of its own;
how far its memory grew should not follow the events.
"""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Any, Literal

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
from toque.featurestore.stream_views import fill_views, open_stream
from toque.featurestore.streams.decode import Place, event_schema, rejected_schema
from toque.featurestore.streams.table import Move, StreamTable
from toque.featurestore.windows.aggregations import Function
from toque.load.benchmarks.harness import Stopwatch, bound, greatest_mib, in_child, main, say, temporary
from toque.load.benchmarks.servers import redis_server
from toque.registry import open_store

USERS, BATCH = 10_000, 20_000
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PROBE, PROBES_S, STEP_S = "probe", 0.05, 0.01
READ_AT_ONCE, PAUSE_S, WARM_UP_S = 200, 0.002, 5.0
REPLAYED_USERS, COMMITTED, BEGIN_US = 100_000, 100_000, 1_704_067_200_000_000


def run(
    what: tuple[Literal["rate", "latency", "replay"], ...] = ("rate", "latency", "replay"),
    *,
    events: Annotated[int, "of rate"] = 200_000,
    rate: Annotated[int, "messages a second of latency"] = 10_000,
    seconds: Annotated[float, "of latency"] = 30.0,
    reads: Annotated[int, "rows to read online meanwhile"] = 1_000_000,
    stored: Annotated[tuple[int, ...], "events of replay"] = (500_000, 2_000_000),
    folder: Annotated[Path | None, "for what replay stores and spills"] = None,
) -> None:
    """Run what is asked for."""
    if "rate" in what:
        compare_rates(events)
    if "latency" in what:
        measure_latency(rate, seconds, reads)
    for size in stored if "replay" in what else ():
        with temporary(folder) as place:
            write_events(opened(place)[1], size)
            own = {"TMPDIR": str(place)}
            copy, fill = (in_child(replayed, way, str(place), environment=own) for way in ("copy", "fill"))
        say(
            f"{size:>11,} events: {fill[2]:,} rows in {fill[0]:.1f} s, memory grew {fill[1]:,.0f} MiB; read whole, sorted and "
            f"copied in {copy[0]:.1f} s, {copy[1]:,.0f} MiB"
        )


def view_of(url: str, aggregations: Sequence[Aggregation] = (), **source: Any) -> FeatureView:
    """Make a view of what users spent. aggregations: a count, sum and mean of an hour and a day where there are none."""
    schema = [Field("user", String), Field("amount", Float64), *[Field("id", String)] * bool(source)]
    clicks = StreamSource("clicks", RedisStream(url, "clicks"), schema, timestamp="at", **source)
    counts = [Aggregation(Function.COUNT, length) for length in (HOUR, DAY)]
    both = itertools.product((HOUR, DAY), (Function.SUM, Function.MEAN))
    windows = aggregations or [*counts, *(Aggregation(kind, length, "amount") for length, kind in both)]
    return FeatureView("spent", [Entity("user", dtype=String)], source=Windows(windows), events=clicks)


def followed(folder: Path, url: str) -> FeatureStore:
    """Make a store with the view."""
    features = FeatureStore(open_store(f"file://{folder}/store"), url)
    features.apply([view_of(url)])
    return features


def send(client: Any, rng: np.random.Generator, count: int, *, probe: bool = False) -> None:
    """Put messages of now into the stream. probe: one more, of a user of its own."""
    pipe = client.pipeline(transaction=False)
    users = [f"u{user}" for user in rng.integers(0, USERS, count)] + [PROBE] * probe
    for user, amount in zip(users, [*rng.random(count).tolist(), *[1.0] * probe], strict=True):
        event = {"user": user, "amount": amount, "at": datetime.now(UTC).isoformat()}
        pipe.xadd("clicks", {"event": orjson.dumps(event)})
    pipe.execute()


def compare_rates(events: int) -> None:
    """Consume a stream, and go through it by polars; prints both by the clock and by CPU, which others on the machine change less."""
    with temporary() as folder, redis_server(folder, password="") as url:
        client, rng = redis.Redis.from_url(url), np.random.default_rng(1)
        for _ in range(0, events, BATCH):
            send(client, rng, BATCH)
        ours, plain = consumed(folder, url, events), polars_loop(folder, client)
    kinds = ("events/s into both stores", "events a second of CPU")
    for what, own_s, base_s in zip(kinds, ours, plain, strict=True):
        own, base = events / own_s, events / base_s
        say(f"{what:28}{own:12,.0f}   polars loop {base:12,.0f}   {own / base:6.2f} x")


def consumed(folder: Path, url: str, events: int) -> tuple[float, float]:
    """Consume all messages until they are committed; seconds by the clock, and of this process's CPU."""
    features = followed(folder, url)
    consumer, watch = open_stream(features, "clicks", secrets=str).consumer(), Stopwatch()
    while consumer.counts.rows < events:
        consumer.step()
    consumer.flush()
    took = watch.wall_s, watch.cpu_s
    consumer.close()
    stored = features.stream_table("clicks").events(columns=["user"]).num_rows
    if stored != events:
        raise RuntimeError(f"{stored} events are stored of {events}")
    return took


def polars_loop(folder: Path, client: Any) -> tuple[float, float]:
    """Do what is least: parse, append to a frame and to files, and aggregate the users of each batch."""
    schema = pl.Schema({"user": pl.String(), "amount": pl.Float64(), "at": pl.Datetime("us", "UTC")})
    last, count, events, amount = "-", 0, pl.DataFrame(schema=schema), pl.col("amount")
    at, watch = pl.col("at").str.to_datetime(time_unit="us", time_zone="UTC"), Stopwatch()
    while entries := client.xrange("clicks", min=last, count=BATCH):
        last, count = f"({entries[-1][0].decode()}", count + len(entries)
        new = pl.read_ndjson(b"\n".join(fields[b"event"] for _, fields in entries)).with_columns(at)
        new.write_parquet(folder / f"polars-{count}.parquet")
        events = pl.concat([events, new.select(events.columns)], rechunk=False)
        now, touched = datetime.now(UTC), events.join(new.select("user").unique(), on="user", how="semi")
        lately = (touched.filter(pl.col("at") > now - length).group_by("user") for length in (HOUR, DAY))
        hour, day = (rows.agg(count=pl.len(), sum=amount.sum(), mean=amount.mean()) for rows in lately)
        rows = hour.join(day, on="user", suffix="_day").iter_rows(named=True)
        client.mset({f"polars:{row['user']}": orjson.dumps(row) for row in rows})
    return watch.wall_s, watch.cpu_s


def measure_latency(rate: int, seconds: float, reads: int) -> None:
    """Let messages flow for some seconds, print quantiles of the probes' latency, and compare what was read."""
    with temporary() as folder, redis_server(folder, password="") as url:
        features = followed(folder, url)
        spawn = multiprocessing.get_context("spawn")
        stop, ready, begin = spawn.Event(), spawn.Event(), spawn.Value("d", 0.0)
        following = spawn.Process(target=follow, args=(folder, url, stop, ready))
        producing = spawn.Process(target=produce, args=(url, rate, seconds, begin))
        following.start()
        producing.start()
        ready.wait()
        begin.value = time.time() + WARM_UP_S
        rows = read_while_it_flows(features, begin.value, seconds, reads)
        producing.join()
        stop.set()
        following.join()
        is_offline(features, rows)


def follow(folder: Path, url: str, stop: Event, ready: Event) -> None:
    """Consume the stream until it is told to stop; prints the CPU that it took."""
    consumer, ended = open_stream(followed(folder, url), "clicks", secrets=str).consumer(), threading.Event()
    following = threading.Thread(target=consumer.run, args=(ended,))
    following.start()
    ready.set()
    stop.wait()
    ended.set()
    following.join()
    say(f"consumer: {consumer.counts.rows:,} events in {time.process_time():.1f} s of CPU")


def produce(url: str, rate: int, seconds: float, begin: Any) -> None:
    """Send messages at a rate from a moment on, and every 50 ms one of a user of its own."""
    client, rng = redis.Redis.from_url(url), np.random.default_rng(2)
    while not begin.value:
        time.sleep(STEP_S)
    for tick in range(int(seconds / STEP_S)):
        time.sleep(max(0.0, begin.value + tick * STEP_S - time.time()))
        send(client, rng, int(rate * STEP_S), probe=tick % round(PROBES_S / STEP_S) == 0)


def read_while_it_flows(
    features: FeatureStore, begin: float, seconds: float, reads: int
) -> dict[str, list[Any]]:
    """Read rows online, the probe's among them, until all probes are there; prints how long they took.

    Returns: what was read, by column, with keys and times.
    """
    view, rng, rows = (
        features.get_feature_view("spent"),
        np.random.default_rng(3),
        defaultdict[str, list[Any]](list),
    )
    probes, waited_s = int(seconds / PROBES_S), list[float]()
    while len(waited_s) < probes and time.time() < begin + 3 * seconds + 30:
        time.sleep(PAUSE_S)
        due = reads * min(1.0, max(0.0, time.time() - begin) / seconds)
        others = rng.integers(0, USERS, READ_AT_ONCE - 1) if len(rows["user"]) < due else ()
        users = [PROBE, *(f"u{number}" for number in others)]
        answer = features.get_online_features(view, [{"user": user} for user in users])
        now, values = time.time(), dict[str, Any](answer.columns())
        seen = range(len(waited_s), values["count_1h"][0] or 0)
        waited_s += [now - (begin + number * PROBES_S) for number in seen]
        if len(users) > 1:
            values |= {"user": users, "event_timestamp": answer.event_timestamps["count_1h"]}
            for name, column in values.items():
                rows[name] += column
    half, most, longest = np.quantile(waited_s, [0.5, 0.99, 1.0]) * 1e3
    say(
        f"event to online, {len(waited_s)} of {probes} probes: p50 {half:.0f} ms, p99 {most:.0f} ms, longest {longest:.0f} ms"
    )
    return rows


def is_offline(features: FeatureStore, rows: Mapping[str, list[Any]]) -> None:
    """Compare rows that were read online with those of a training set at their times: all must be the same bits."""
    view, keys = features.get_feature_view("spent"), ["user", "event_timestamp"]
    features.refresh_view(view)
    online = pl.DataFrame(rows).drop_nulls("event_timestamp")
    entities = online.select(keys).unique()
    offline = pl.DataFrame(features.get_historical_features(entities.to_arrow(), view).to_arrow())
    both = online.join(offline.select(online.columns), on=keys, how="left", suffix="_offline")
    same = pl.all_horizontal(
        pl.col(name).eq_missing(pl.col(f"{name}_offline")) for name in set(rows) - set(keys)
    )
    differ = both.filter(~same)
    some = differ.head(3).to_dicts() or ""
    say(f"{online.height:,} rows were read online, {entities.height:,} different ones {some}")
    bound("rows that were read", online.height, least=1)
    bound("rows that differ", differ.height, most=0)


def opened(folder: Path) -> tuple[FeatureStore, StreamTable]:
    """Open the store of a folder, with a view of a sum and a count of an hour applied."""
    store = FeatureStore(open_store((folder / "store").as_uri()))
    hourly = [Aggregation(Function.SUM, HOUR, "amount"), Aggregation(Function.COUNT, HOUR)]
    store.apply([view_of("redis://localhost", hourly, unique=["id"])])
    return store, store.stream_table("clicks")


def write_events(table: StreamTable, events: int) -> None:
    """Store events of a month, one in a hundred of them a correction."""
    place, schema, chance = None, event_schema(table.source), np.random.default_rng(1)
    for first in range(0, events, COMMITTED):
        numbers = np.arange(first, first + COMMITTED)
        micros = BEGIN_US + numbers * (30 * 86_400_000_000 // events)
        columns = {
            "event_timestamp": np.where(numbers % 100 == 1, micros - micros % 1_000_000, micros),
            "known_at": micros,
            "user": [f"u{number}" for number in chance.integers(0, REPLAYED_USERS, COMMITTED)],
            "amount": chance.random(COMMITTED),
            "id": [f"e{number}" for number in numbers],
            "stream_partition": np.zeros(COMMITTED, np.int32),
            "stream_position": numbers,
        }
        rows = pa.table([pa.array(columns[column.name], column.type) for column in schema], schema=schema)
        after = Place(int(numbers[-1]) + 1, int(micros[-1]), int(micros[-1]))
        table.commit(rows, rejected_schema().empty_table(), {0: Move(place, after)})
        place = after


def replayed(way: str, folder: str) -> tuple[float, float, int]:
    """Fill the view or copy the events: seconds, MiB that memory grew by, and rows."""
    store, table = opened(Path(folder))
    before_mib, watch = greatest_mib(), Stopwatch()
    if way == "fill":
        rows = fill_views(store, table)[0].rows
    else:
        events = table.events().sort_by([("user", "ascending"), ("known_at", "ascending")])
        pq.write_table(events, f"{folder}/copy.parquet")
        rows = events.num_rows
    return watch.wall_s, greatest_mib() - before_mib, rows


if __name__ == "__main__":
    main(run, "polars", "pyarrow", "redis", "deltalake")
