"""Benchmark of a stream's latency, from when an event was to be sent to when it is in the online row of its key.

Messages are sent at a rate by a process of their own, consumed by another, and read online by a third, one of them a probe every 50 ms. In
the end every row that was read is compared with what a training set has for its key at its time, which is computed from the stored events:
they must be the same bits, else the exit code is 1.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import redis

from toque.featurestore import FeatureStore
from toque.load.benchmarks.harness import bound, main, say, temporary
from toque.load.benchmarks.prep.streams import USERS, event, follower, view_of
from toque.load.benchmarks.servers import redis_server
from toque.registry import open_store

PROBE, PROBES_S, STEP_S = "probe", 0.05, 0.01
READ_AT_ONCE, PAUSE_S = 200, 0.002
WARM_UP_S = 5.0


def run(
    *,
    rate: Annotated[int, "messages a second"] = 10_000,
    seconds: float = 30.0,
    reads: Annotated[int, "rows to read online meanwhile"] = 1_000_000,
) -> bool:
    """Let messages flow for some seconds, print quantiles of the probes' latency, and compare what was read."""
    with temporary() as folder, redis_server(folder, password="") as url:
        features = FeatureStore(open_store(f"file://{folder}/store"), url)
        features.apply([view_of(url)])
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
        return is_offline(features, rows)


@dataclass
class Reads:
    """Rows that were read online: keys, times, and values by column."""

    users: list[str] = field(default_factory=list)
    times: list[datetime | None] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)


def follow(folder: Path, url: str, stop: Event, ready: Event) -> None:
    """Consume the stream until it is told to stop; prints the CPU that it took."""
    _, consumer = follower(folder, url)
    ended = threading.Event()
    following = threading.Thread(target=consumer.run, args=(ended,))
    following.start()
    ready.set()
    stop.wait()
    ended.set()
    following.join()
    say(f"consumer: {consumer.counts.rows:,} events in {time.process_time():.1f} s of CPU")


def produce(url: str, rate: int, seconds: float, begin: Any) -> None:
    """Send messages at a rate from a moment on, and every 50 ms one of a user of its own."""
    client: Any = redis.Redis.from_url(url)
    rng, count = np.random.default_rng(2), int(rate * STEP_S)
    while not begin.value:
        time.sleep(STEP_S)
    for tick in range(int(seconds / STEP_S)):
        time.sleep(max(0.0, begin.value + tick * STEP_S - time.time()))
        pipe = client.pipeline(transaction=False)
        for user, amount in zip(rng.integers(0, USERS, count), rng.random(count), strict=True):
            pipe.xadd("clicks", {"event": event(f"u{user}", float(amount))})
        if tick % round(PROBES_S / STEP_S) == 0:
            pipe.xadd("clicks", {"event": event(PROBE, 1.0)})
        pipe.execute()


def read_while_it_flows(features: FeatureStore, begin: float, seconds: float, reads: int) -> Reads:
    """Read rows online, the probe's among them, until all probes are there; prints how long they took."""
    view, rng, rows = features.get_feature_view("spent"), np.random.default_rng(3), Reads()
    probes, waited_s = int(seconds / PROBES_S), list[float]()
    while len(waited_s) < probes and time.time() < begin + 3 * seconds + 30:
        time.sleep(PAUSE_S)
        due = reads * min(1.0, max(0.0, time.time() - begin) / seconds)
        others = rng.integers(0, USERS, READ_AT_ONCE - 1) if len(rows.users) < due else ()
        users = [PROBE, *(f"u{number}" for number in others)]
        answer = features.get_online_features(view, [{"user": user} for user in users])
        now, values = time.time(), answer.columns()
        seen = range(len(waited_s), values["count_1h"][0] or 0)
        waited_s += [now - (begin + number * PROBES_S) for number in seen]
        if len(users) > 1:
            rows.users += users
            rows.times += answer.event_timestamps["count_1h"]
            for name, column in values.items():
                rows.values.setdefault(name, []).extend(column)
    half, most, longest = np.quantile(waited_s, [0.5, 0.99, 1.0]) * 1e3
    say(
        f"event to online, {len(waited_s)} of {probes} probes: p50 {half:.0f} ms, p99 {most:.0f} ms, longest {longest:.0f} ms"
    )
    return rows


def is_offline(features: FeatureStore, rows: Reads) -> bool:
    """Compare rows that were read online with those of a training set at their times; returns whether all are the same bits."""
    view, keys = features.get_feature_view("spent"), ["user", "event_timestamp"]
    features.refresh_view(view)
    online = pl.DataFrame({"user": rows.users, "event_timestamp": rows.times} | rows.values)
    online = online.drop_nulls("event_timestamp")
    entities = online.select(keys).unique()
    offline = pl.DataFrame(features.get_historical_features(entities.to_arrow(), view).to_arrow())
    both = online.join(offline.select(online.columns), on=keys, how="left", suffix="_offline")
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_offline")) for name in rows.values)
    differ = both.filter(~same)
    say(
        f"{online.height:,} rows were read online, {entities.height:,} different ones {differ.head(3).to_dicts() or ''}"
    )
    return all(
        [
            bound("rows that were read", online.height, least=1),
            bound("rows that differ", differ.height, most=0),
        ]
    )


if __name__ == "__main__":
    main(run, "polars", "pyarrow", "redis", "deltalake")
