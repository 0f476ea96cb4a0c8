"""A stream of clicks of eight users on Redis, a view over it, and what consumers that run in other processes made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

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

PARTITIONS = 4
USERS = [{"user": f"u{n}"} for n in range(8)]
EVENTS_URL = "EVENTS"
"""Secret that holds the address of the stream's Redis."""
clicks = StreamSource(
    "clicks",
    RedisStream(f"${EVENTS_URL}", "clicks", partitions=PARTITIONS),
    [Field("user", String), Field("amount", Float64)],
    timestamp="at",
    partitioned_by=["user"],
    commit_every=timedelta(seconds=1),
)
_day = timedelta(days=1)
spent = FeatureView(
    "spent",
    [Entity("user", dtype=String)],
    source=Windows(
        [Aggregation("count", _day, name="count"), Aggregation("sum", _day, "amount", name="sum")]
    ),
    events=clicks,
)


@dataclass
class Clicks:
    """Clicks that are sent, each user's to a partition of their own, and what is stored of them."""

    features: FeatureStore
    url: str
    sent: list[int] = field(default_factory=lambda: [0] * len(USERS))

    def __post_init__(self) -> None:
        self._client: Any = redis.Redis.from_url(self.url)

    def send(self, count: int) -> None:
        """Send so many clicks, one after the other of each user."""
        for number in range(count):
            user = number % len(USERS)
            event = {"user": f"u{user}", "amount": 1.5, "at": datetime.now(UTC).isoformat()}
            self._client.xadd(f"clicks:{user % PARTITIONS}", {"event": json.dumps(event)})
            self.sent[user] += 1

    def online(self) -> list[int]:
        """Count the clicks of each user by their online rows."""
        found = self.features.get_online_features(spent, USERS).columns()["count"]
        return [each or 0 for each in found]

    def check_stored_once(self) -> None:
        """Check that both stores have each click once."""
        names = ["stream_partition", "stream_position"]
        rows = self.features.stream_table("clicks").events(columns=names).to_pylist()
        assert len({tuple(each.values()) for each in rows}) == len(rows) == sum(self.sent)
        found = self.features.get_online_features(spent, USERS).columns()
        assert found["sum"] == [1.5 * each for each in self.sent]

    def are_stored(self) -> bool:
        """Whether all that was sent is in both stores."""
        return self.online() == self.sent and self.features.stream_table("clicks").events().num_rows == sum(
            self.sent
        )
