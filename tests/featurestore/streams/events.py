"""A stream of clicks for tests: its declaration, and messages as a log would give them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from toque.featurestore import Entity, Field, Float64, InRange, RedisStream, StreamSource, String
from toque.featurestore.definitions.stream_source import Messages

START = datetime(2024, 5, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
user = Entity("user", dtype=String)


def clicks(**given: Any) -> StreamSource:
    declared: dict[str, Any] = {
        "reads": RedisStream("redis://localhost:6379/0", "clicks", partitions=4),
        "schema": [Field("user", String), Field("amount", Float64), Field("id", String)],
        "timestamp": "at",
        "partitioned_by": ["user"],
        "expectations": [InRange("amount", least=0, most=1_000)],
    }
    return StreamSource("clicks", **(declared | given))


def messages(
    partition: int, first: int, events: Sequence[Any], *, at: datetime = START + 60 * MINUTE
) -> Messages:
    """Messages of a partition from a position on, one each second; dicts as JSON, bytes as they are."""
    found = Messages()
    for number, event in enumerate(events, first):
        value = event if isinstance(event, bytes | None) else json.dumps(event).encode()
        taken = at + timedelta(seconds=number)
        found.add(partition, number, int(taken.timestamp() * 1e6), value)
    return found


def event(name: str = "u1", amount: Any = 1.0, *, at: Any = None, number: int = 0) -> dict[str, Any]:
    return {"user": name, "amount": amount, "at": at or START.isoformat(), "id": f"e{number}"}
