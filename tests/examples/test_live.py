"""The example's live stream: after each half hour the airports' rows are those of the departures until then."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl

from examples.flights import data
from examples.flights.live import AIRPORTS, computed_offline, play
from examples.flights.plans import ManualClock
from tests.redis_server import RedisServer
from toque.featurestore import FeatureStore
from toque.registry import open_store

HOUR = timedelta(hours=1)


def brute_force(left: pl.DataFrame, origin: str, at: datetime) -> tuple[int | None, float | None]:
    """Departures within an hour of the last one before a time, and their mean delay."""
    own = left.filter((pl.col("origin") == origin) & (pl.col("departed_at") < at))
    if not own.height:
        return None, None
    last = own["departed_at"].max()
    delays = own.filter(pl.col("departed_at") > last - HOUR)["dep_delay"]
    return len(delays), sum(delays) / len(delays)


def test_a_day_of_departures_is_online_as_it_happens_and_offline_the_same(tmp_path: Path) -> None:
    server, clock, day = RedisServer(tmp_path), ManualClock(), date(2013, 2, 8)  # a snow storm
    server.start()
    features = FeatureStore(open_store(f"file://{tmp_path}/store"), server.url, clock=clock)
    begin = datetime(2013, 2, 8, tzinfo=UTC)
    left = data.flights().filter(pl.col("departed_at") >= begin)
    online: dict[str, list[object]] = {}
    moments = 0
    for at, online in play(features, clock, server.url, day):
        found = list(zip(online["left_1h"], online["dep_delay_1h"], strict=True))
        assert found == [brute_force(left, each, at) for each in AIRPORTS], at
        moments += 1
    assert (moments, computed_offline(features, clock.now)) == (48, online)
    features.online.close()
    server.kill()
