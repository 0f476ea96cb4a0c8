"""Declarations of stream sources: refused when they cannot work, and the same after they were applied."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.featurestore.streams.events import clicks, user
from toque.featurestore import (
    Aggregation,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Freshness,
    IncompatibleChange,
    InRange,
    InvalidDefinition,
    KafkaTopic,
    SchemaRegistry,
    String,
    Windows,
)

HOUR = timedelta(hours=1)
sums = Windows([Aggregation("sum", HOUR, "amount")])


def test_a_view_over_a_stream_is_the_same_in_another_process(
    make_store: Callable[..., FeatureStore],
) -> None:
    source = clicks(
        reads=KafkaTopic("clicks", "kafka-1:9092,kafka-2:9092", {"sasl.password": "$KAFKA"}),
        unique=["id"],
        allowed_lateness=HOUR,
        commit_every=timedelta(seconds=2),
        schemas=SchemaRegistry("https://registry:8081", "$REGISTRY"),
        owner="ada",
    )
    assert source.secret_names == ("KAFKA", "REGISTRY")
    view = FeatureView("spent", [user], source=sums, events=source)
    make_store().apply([view])
    other = make_store()
    assert other.get_feature_view("spent").semantics() == view.semantics()
    assert other.get_stream_source("clicks") == source
    assert other.list_stream_sources() == ["clicks"]
    with pytest.raises(IncompatibleChange, match="stream source 'clicks' is used by feature view 'spent'"):
        other.apply([], remove=["stream_source/clicks"])
    changed = [Field("user", String), Field("amount", String), Field("id", String)]
    with pytest.raises(IncompatibleChange, match="column 'amount' is stored as Float64, not String"):
        other.apply([clicks(schema=changed, expectations=[])])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schema": []}, "has no columns"),
        ({"unique": ["order"]}, "unique names 'order'"),
        ({"partitioned_by": ["shop"]}, "names 'shop'"),
        ({"timezone": "Mars"}, "timezone 'Mars'"),
        ({"timestamp_unit": "h"}, "timestamp_unit is one of"),
        ({"allowed_lateness": -HOUR}, "allowed_lateness must not be negative"),
        ({"commit_every": timedelta(0)}, "commit_every must be positive"),
        ({"expectations": [Freshness(HOUR)]}, "judges batches, and a stream has none"),
        ({"expectations": [InRange("price", least=0)]}, "price"),
        (
            {"schema": [Field("user", String), Field("stream_position", Float64)], "expectations": []},
            "the store's own",
        ),
    ],
)
def test_a_source_that_cannot_work_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        clicks(**given)


def test_a_view_that_a_stream_cannot_keep_right_is_refused() -> None:
    with pytest.raises(InvalidDefinition, match="partitioned by 'user', which is no join key"):
        FeatureView("all", source=sums, events=clicks())
    past = Windows([Aggregation("sum", HOUR, "amount")], known_at="event_timestamp")
    with pytest.raises(InvalidDefinition, match=r"known_at='event_timestamp'.*leave known_at out"):
        FeatureView("past", [user], source=past, events=clicks())
    with pytest.raises(InvalidDefinition, match="declare its expectations on 'clicks'"):
        FeatureView(
            "last",
            [user],
            [Field("amount", Float64)],
            events=clicks(),
            expectations=[InRange("amount", least=0)],
        )
