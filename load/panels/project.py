"""Project of the platform that fills every panel: models alone and in a pool, a stream, features by key, and functions of which one fails."""

from __future__ import annotations

from datetime import timedelta

from toque.featurestore import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    InRange,
    RedisStream,
    StreamSource,
    String,
    Windows,
)
from toque.featurestore.windows.aggregations import Function
from toque.functions import Cron, Retries, context, function
from toque.functions.features.jobs import record_feature_health
from toque.functions.placement import Placement
from toque.load.unmonitored import unmonitored

ANSWERING, CODES, KEYED = "answering", "codes", "keyed"
POOLED = tuple(f"pooled-{number}" for number in range(7))
"""An odd number, so that two replicas that take requests in turn are both asked for all."""
HELPER = "helper"
"""The language model, which no project defines."""
BUYER, CLICKS = "buyer", "clicks"

_user = Entity("user", dtype=String)
clicks = StreamSource(
    CLICKS,
    RedisStream("$TOQUE_REDIS_URL", CLICKS),
    schema=[Field("user", String), Field("amount", Float64)],
    timestamp="at",
    commit_every=timedelta(seconds=1),
    expectations=[InRange("amount", least=0, most=1_000)],
)
spent = FeatureView(
    "spent",
    [_user],
    source=Windows(
        [
            Aggregation(Function.COUNT, timedelta(hours=1), name="clicks_1h"),
            Aggregation(Function.SUM, timedelta(hours=1), "amount", name="spent_1h"),
        ]
    ),
    events=clicks,
)
visitors = FeatureView(
    "visitors", [_user], schema=[Field("age", Float64), Field("visits", Float64)], ttl=timedelta(days=1)
)
FEATURES: list[Entity | FeatureView | FeatureService] = [
    _user,
    visitors,
    spent,
    FeatureService(BUYER, features=[visitors]),
]


MODELS = [
    *(unmonitored(name) for name in (ANSWERING, CODES, KEYED)),
    *(unmonitored(name, Placement(pool=True)) for name in POOLED),
]


@function(http=True, schedule=Cron("* * * * * */20"))
def panels_measure() -> int:
    """Bring the stream's events into the offline tables and measure every view; returns how many there are."""
    context().features().refresh_view(spent)
    return len(record_feature_health())


@function(http=True, retries=Retries(max_attempts=1))
def panels_fail() -> None:
    """Fail, as an invocation without a second attempt."""
    raise RuntimeError("no flour")
