"""Erasures reach the events of streams, the messages that were kept aside, and what consumers hold of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.featurestore.conftest import spare_redis
from tests.featurestore.streams.events import clicks, user
from tests.featurestore.streams.history import MemoryLog
from tests.redis_server import RedisServer
from toque.featurestore import Aggregation, FeatureStore, FeatureView, Windows
from toque.featurestore.errors import StreamRewritten
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.table import rewrites_of
from toque.functions import Context, use_context
from toque.functions.maintenance.compaction import compact_open_days, compact_tables
from toque.functions.maintenance.erasure.jobs import erase_subject
from toque.registry import open_store

__all__ = ["spare_redis"]

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GONE, OTHER = "u7", "u8"
ASKED = [{"user": GONE}, {"user": OTHER}]
spent = FeatureView(
    "spent",
    [user],
    source=Windows([Aggregation("count", timedelta(days=1), name="count")]),
    events=clicks(reads=clicks().reads, commit_every=timedelta(milliseconds=1)),
)


@pytest.fixture
def context(tmp_path: Path, spare_redis: RedisServer) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    made = Context(open_store(url), url, redis_url=spare_redis.url, actor="ada", clock=lambda: NOW)
    with use_context(made):
        yield made
    made.features().online.close()


def send(log: MemoryLog, name: str, count: int, **given: Any) -> None:
    for number in range(count):
        event = {"user": name, "amount": 1.0, "at": (NOW - timedelta(hours=1)).isoformat(), "id": f"{number}"}
        log.send(0, json.dumps(event | given).encode(), at=NOW - timedelta(minutes=5))


def consumer(features: FeatureStore, log: MemoryLog) -> StreamConsumer:
    return StreamConsumer(
        features.stream_table("clicks"),
        features.list_feature_views(),
        log.connect(),
        online=features.online,
        owned=lambda: [0],
        clock=features.now,
        rewrites=rewrites_of(features.online, "clicks"),
    )


def counts(features: FeatureStore) -> list[Any]:
    return features.get_online_features(features.get_feature_view("spent"), ASKED).columns()["count"]


def test_events_messages_kept_aside_and_what_consumers_hold_are_erased(context: Context) -> None:
    features, log = context.features(), MemoryLog(1)
    features.apply([spent])
    send(log, GONE, 3)
    send(log, OTHER, 2)
    send(log, GONE, 1, amount="many")  # is kept aside
    log.send(0, b'{"user": "u7", "am', at=NOW - timedelta(minutes=5))  # so is torn JSON
    follower = consumer(features, log)
    while follower.step(timeout_s=0):
        pass
    follower.flush()
    assert counts(features) == [3, 2]
    assert "features/default/streams/clicks" in {each.table for each in compact_tables()}
    compact_open_days()
    certificate = erase_subject({"user": GONE})
    assert certificate.left == []
    assert {name: found.rows for name, found in certificate.tables.items()} == {
        "features/default/streams/clicks": 2
        * (3 + 2),  # events and messages kept aside, in files that were merged since
    }
    table = features.stream_table("clicks")
    assert set(table.events().column("user").to_pylist()) == {OTHER}
    assert table.rejected.read().num_rows == 0
    assert counts(features) == [None, 2]
    send(log, GONE, 1)
    with pytest.raises(StreamRewritten):
        follower.step(timeout_s=0)
    after = consumer(features, log)
    after.step(timeout_s=0)
    assert counts(features) == [1, 2]
