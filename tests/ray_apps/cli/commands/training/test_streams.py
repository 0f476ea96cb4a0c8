"""`toque streams`: what is behind, and a replay by a corrected definition, against a gateway on a real port and a Redis stream."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from tests.featurestore.conftest import spare_redis
from tests.featurestore.streams.schema_registry import Registry
from tests.redis_server import RedisServer
from toque.featurestore import (
    Aggregation,
    Entity,
    FeatureView,
    Field,
    Float64,
    InRange,
    RedisStream,
    SchemaRegistry,
    StreamSource,
    String,
    Windows,
)
from toque.featurestore.stream_views import open_stream
from toque.functions.features import StreamReplay
from toque.ray_apps.cli import main

__all__ = ["spare_redis"]


def spent(least: float, **more: Any) -> FeatureView:
    clicks = StreamSource(
        "clicks",
        RedisStream("$EVENTS", "clicks"),
        [Field("user", String), Field("amount", Float64)],
        timestamp="at",
        expectations=[InRange("amount", least=least)],
        **more,
    )
    counted = Windows([Aggregation("count", timedelta(days=1), name="count")])
    return FeatureView("spent", [Entity("user", dtype=String)], source=counted, events=clicks)


def test_a_stream_is_shown_and_replayed_by_a_corrected_definition(
    platform: Any, spare_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    url = spare_redis.url
    monkeypatch.setenv("EVENTS", url)
    features = platform.context.features()
    features.apply([spent(5)])
    for amount in (1, 7, 9):
        event = {"user": "u1", "amount": amount, "at": datetime.now(UTC).isoformat()}
        redis.Redis.from_url(url).xadd("clicks", {"event": json.dumps(event)})
    assert main(["streams", "list"]) == 0
    heading, line = (each.split("\t") for each in capsys.readouterr().out.splitlines())
    assert dict(zip(heading, line, strict=True))["lag"] == "3"
    consumer = open_stream(features, "clicks", secrets={"EVENTS": url}.__getitem__).consumer()
    while consumer.step(timeout_s=0):
        pass
    consumer.close()
    features.apply([spent(0)])
    assert main(["streams", "replay", "clicks", "-o", "json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert StreamReplay.model_validate(done).source == "clicks"
    (partition,), (view,) = done["partitions"], done["views"]
    assert (partition["events"], partition["rejected"], view["rows"], view["online"]) == (3, 0, 3, 0)
    assert main(["streams", "replay", "clicks", "--stored"]) == 0
    heading, line = (each.split("\t") for each in capsys.readouterr().out.splitlines())
    assert dict(zip(heading, line, strict=True)) == {
        "view": "spent",
        "rows": "3",
        "online": "0",
        "removed": "0",
    }
    assert main(["streams", "show", "clicks"]) == 0
    heading, line = (each.split("\t") for each in capsys.readouterr().out.splitlines())
    assert dict(zip(heading, line, strict=True))["lag"] == "0"
    assert main(["streams", "show", "nothing"]) == 1


def test_a_stream_whose_schema_registry_is_away_says_so(
    platform: Any, spare_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("EVENTS", spare_redis.url)
    registry = Registry()

    def unreadable() -> str:
        assert main(["streams", "list"]) == 0
        heading, line = (each.split("\t") for each in capsys.readouterr().out.splitlines())
        return dict(zip(heading, line, strict=True))["unreadable"]

    platform.context.features().apply([spent(0, schemas=SchemaRegistry(registry.url))])
    assert unreadable() == ""
    registry.go_away()
    assert f"schema registry {registry.url} does not answer" in unreadable()
