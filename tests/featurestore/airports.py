"""The weather and traffic of airports, as the tests of the store define them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from toque.featurestore import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    Int64,
    RequestSource,
    String,
    on_demand_feature_view,
)

START = datetime(2013, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
airport = Entity("airport", join_keys=["origin"])
weather = FeatureView(
    "weather",
    [airport],
    [Field("temp", Float64), Field("gusts", Int64), Field("sky", String)],
    ttl=timedelta(hours=6),
)
traffic = FeatureView("traffic", [airport, Entity("hour", dtype=Int64)], [Field("flights", Int64)])
ask = RequestSource("ask", [Field("limit", Float64)])


@on_demand_feature_view(
    sources=[weather[["temp"]], ask], schema=[Field("above", Float64), Field("is_hot", Int64)]
)
def heat(inputs: Any) -> Any:
    """Compute how far the temperature is above the request's limit."""
    above = inputs["temp"] - inputs["limit"]
    return {"above": above, "is_hot": np.where(np.isnan(above), np.nan, above > 0)}


service = FeatureService("late", [weather[["temp", "sky"]], traffic, heat])


def row(
    origin: str, hours: float, temp: float | None, sky: str | None = "clear", **more: Any
) -> dict[str, Any]:
    at = START + timedelta(hours=hours)
    return {"origin": origin, "temp": temp, "gusts": 3, "sky": sky, "event_timestamp": at} | more
