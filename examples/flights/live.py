"""Departures as a live stream: each moves the windows of its airport when it leaves, online first and offline the same.

`python -m examples.flights.live --redis redis://localhost:6379/0 --day 2013-07-10` plays a day in a few seconds on a clock of
its own, and compares in the end what is online with what is computed from the stored events.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import redis

from examples.flights import data
from examples.flights.features import DAY, airport
from examples.flights.plans import ManualClock
from examples.flights.sources import EVERY, HOUR
from toque.featurestore import (
    Aggregation,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Int64,
    RedisStream,
    StreamSource,
    String,
    Windows,
)
from toque.featurestore.stream_views import open_stream
from toque.featurestore.windows.aggregations import Function
from toque.registry import open_store

LOG, AIRPORTS = "flights-departures", ("EWR", "JFK", "LGA")

departures = StreamSource(
    "departures",
    RedisStream("$TOQUE_REDIS_URL", LOG),
    schema=[Field("flight_id", Int64), Field("origin", String), Field("dep_delay", Float64)],
    timestamp="departed_at",
    unique=["flight_id"],
    allowed_lateness=6 * HOUR,
    owner="ops-data",
    description="One message each time an aircraft has left the gate.",
)
airport_now = FeatureView(
    "airport_now",
    entities=[airport],
    source=Windows(
        [
            Aggregation(Function.COUNT, HOUR, name="left_1h"),
            Aggregation(Function.MEAN, HOUR, "dep_delay", "dep_delay_1h"),
            Aggregation(Function.MAX, 3 * HOUR, "dep_delay", "worst_delay_3h"),
        ]
    ),
    events=departures,
    ttl=DAY,
    owner="ops-data",
    description="What has left each airport lately, as of its last departure.",
)


def play(
    features: FeatureStore, clock: ManualClock, redis_url: str, day: date
) -> Iterator[tuple[datetime, dict[str, list[Any]]]]:
    """Send a day's departures as they happened, and yield after each half hour what is online for the airports."""
    log: Any = redis.Redis.from_url(redis_url)
    log.delete(LOG)  # of an earlier day
    begin = datetime.combine(day, time(), UTC)
    left = data.flights().filter(pl.col("departed_at").is_between(begin, begin + DAY, closed="left"))
    left = left.sort("departed_at", "flight_id")
    clock.now = begin
    features.apply([airport_now])
    consumer = open_stream(features, departures.name, secrets=lambda _: redis_url).consumer()
    for number in range(1, DAY // EVERY + 1):
        after, clock.now = clock.now, begin + number * EVERY
        sent = left.filter(pl.col("departed_at").is_between(after, clock.now, closed="left"))
        _send(log, sent)
        while consumer.step(timeout_s=0):
            pass
        asked = [{"origin": each} for each in AIRPORTS]
        yield clock.now, features.get_online_features(airport_now, asked).columns()
    consumer.close()


def _send(log: Any, flights: pl.DataFrame) -> None:
    """Put departures into the stream, which takes them at the times of the replayed clock, each after those of its moment."""
    pipe, sent = log.pipeline(transaction=False), Counter[int]()
    for row in flights.select("flight_id", "origin", "dep_delay", "departed_at").iter_rows(named=True):
        at: datetime = row["departed_at"]
        event = json.dumps(row | {"departed_at": at.isoformat()})
        moment = int(at.timestamp() * 1000)
        # Numbered here: Redis numbers the entries of a moment that it is given (`MOMENT-*`) from 7 on alone.
        pipe.xadd(LOG, {"event": event}, id=f"{moment}-{sent[moment]}")
        sent[moment] += 1
    pipe.execute()


def main(arguments: list[str] | None = None) -> int:
    """Play a day and print the airports' rows; returns 1 if offline differs from online."""
    parser = argparse.ArgumentParser(prog="python -m examples.flights.live", description=__doc__)
    parser.add_argument("--redis", default=os.environ.get("TOQUE_REDIS_URL", "redis://localhost:6379/0"))
    parser.add_argument("--day", type=date.fromisoformat, default=date(2013, 7, 10))
    chosen = parser.parse_args(arguments)
    clock = ManualClock()
    with tempfile.TemporaryDirectory(prefix="flights-live-") as folder:
        store = open_store(Path(folder).as_uri())
        features = FeatureStore(store, chosen.redis, project="flights-live", clock=clock)
        online: dict[str, list[Any]] = {}
        for at, online in play(features, clock, chosen.redis, chosen.day):
            found = zip(AIRPORTS, online["left_1h"], online["dep_delay_1h"], strict=True)
            shown = [f"{name} {count or 0:3} left, {delay or 0:5.1f} min" for name, count, delay in found]
            sys.stdout.write(f"{at:%H:%M}  {'   '.join(shown)}\n")
        same = computed_offline(features, clock.now) == online
    sys.stdout.write(f"offline equals online: {'yes' if same else 'NO'}\n")
    return 0 if same else 1


def computed_offline(features: FeatureStore, at: datetime) -> dict[str, list[Any]]:
    """Compute the airports' rows from the stored events, as a training set would have them at a time."""
    features.refresh_view(airport_now)
    asked = pa.table({"origin": list(AIRPORTS), "event_timestamp": [at] * len(AIRPORTS)})
    found = features.get_historical_features(asked, features=airport_now).to_arrow()
    return {name: found[name].to_pylist() for name in airport_now.features}


if __name__ == "__main__":
    sys.exit(main())
