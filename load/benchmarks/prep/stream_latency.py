"""Benchmark of a stream's latency: run `python -m toque.load.benchmarks.prep.stream_latency [--rate 10000] [--seconds 30] [--reads 1000000]`.

Messages are sent at a rate by a process of their own, consumed by another, and read online by a third, one of them a probe every 50 ms: the
time is taken from when its event was to be sent to when it is in the online row of its key. In the end every row that was read is
compared with what a training set has for its key at its time, which is computed from the stored events: they must be the same bits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import redis

from toque.featurestore import FeatureStore
from toque.load.benchmarks.prep.fixtures import redis_server
from toque.load.benchmarks.prep.streams import USERS, event, follower, view_of
from toque.load.benchmarks.timing import print_machine
from toque.registry import open_store

PROBE, PROBES_S, STEP_S = "probe", 0.05, 0.01
READ_AT_ONCE, PAUSE_S = 200, 0.002
WARM_UP_S = 5.0


def main() -> None:
    """Run it, and print what was measured; ends with an error if a row that was read online is another one offline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=10_000, help="messages a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--reads", type=int, default=1_000_000, help="rows to read online meanwhile")
    given = parser.parse_args()
    print_machine("polars", "pyarrow", "redis", "deltalake")
    print(f"# load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        measure(Path(folder), url, given.rate, given.seconds, given.reads)
    print(f"# load {os.getloadavg()[0]:.1f}")


@dataclass
class Reads:
    """Rows that were read online: keys, times, and values by column."""

    users: list[str] = field(default_factory=list)
    times: list[datetime | None] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, users: list[str], times: list[datetime | None], values: dict[str, list[Any]]) -> None:
        """Add the rows of one request."""
        self.users += users
        self.times += times
        for name, column in values.items():
            self.values.setdefault(name, []).extend(column)


def measure(folder: Path, url: str, rate: int, seconds: float, reads: int) -> None:
    """Let messages flow for some seconds, print quantiles of the probes' latency, and compare what was read."""
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
    found = read_while_it_flows(features, begin.value, seconds, reads)
    producing.join()
    stop.set()
    following.join()
    compare(features, found)


def follow(folder: Path, url: str, stop: Event, ready: Event) -> None:
    """Consume the stream until it is told to stop; prints the CPU that it took."""
    _, consumer = follower(folder, url)
    told = threading.Event()
    following = threading.Thread(target=consumer.run, args=(told,))
    following.start()
    ready.set()
    stop.wait()
    told.set()
    following.join()
    print(f"consumer: {consumer.counts.rows:,} events in {time.process_time():.1f} s of CPU", flush=True)


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
    view, rng, found = features.get_feature_view("spent"), np.random.default_rng(3), Reads()
    probes, waited = int(seconds / PROBES_S), list[float]()
    while len(waited) < probes and time.time() < begin + 3 * seconds + 30:
        time.sleep(PAUSE_S)
        due = reads * min(1.0, max(0.0, time.time() - begin) / seconds)
        others = rng.integers(0, USERS, READ_AT_ONCE - 1) if len(found.users) < due else ()
        users = [PROBE, *(f"u{each}" for each in others)]
        answer = features.get_online_features(view, [{"user": each} for each in users])
        now, values = time.time(), answer.columns()
        seen = values["count_1h"][0] or 0
        waited += [now - (begin + number * PROBES_S) for number in range(len(waited), seen)]
        if len(users) > 1:
            found.add(users, answer.event_timestamps["count_1h"], values)
    half, most, longest = np.quantile(waited, [0.5, 0.99, 1.0]) * 1e3
    print(
        f"event to online, {len(waited)} of {probes} probes: p50 {half:.0f} ms, p99 {most:.0f} ms, longest {longest:.0f} ms"
    )
    return found


def compare(features: FeatureStore, found: Reads) -> None:
    """Compare rows that were read online with those of a training set at their times."""
    view = features.get_feature_view("spent")
    features.refresh_view(view)
    online = pl.DataFrame({"user": found.users, "event_timestamp": found.times} | found.values)
    online = online.drop_nulls("event_timestamp")
    asked = online.select("user", "event_timestamp").unique()
    offline = pl.DataFrame(features.get_historical_features(asked.to_arrow(), view).to_arrow())
    keys = ["user", "event_timestamp"]
    both = online.join(offline.select(online.columns), on=keys, how="left", suffix="_offline")
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_offline")) for name in found.values)
    differ = both.filter(~same)
    print(
        f"{online.height:,} rows were read online, {asked.height:,} different ones; {differ.height} differ offline"
    )
    if differ.height or not online.height:
        raise SystemExit(f"online is not offline: {differ.head(3).to_dicts()}")


if __name__ == "__main__":
    main()
