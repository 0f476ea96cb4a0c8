"""Features of a flight that are known an hour before its scheduled departure.

Stored features are published on the half hours: a row at 14:30 holds what was known by 14:30 and is used for predictions
between 14:30 and 15:00. So training (a point-in-time join) and serving (the values in Redis) see the same. A flight's own
outcome (dep_delay, arr_delay, air_time, the actual times) is unknown then and appears in no feature of that flight; past
flights count from the moment they left or landed.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pyarrow as pa

from examples.flights import data, sources
from examples.flights.sources import EVERY, HOUR, WEATHER
from toque.featurestore import (
    Aggregation,
    BatchSource,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    Int64,
    OnDemandFeatureView,
    RequestSource,
    Windows,
)
from toque.featurestore.definitions.views import Definition
from toque.featurestore.windows.aggregations import Function

DAY = timedelta(days=1)
NEW_YORK = ZoneInfo("America/New_York")

airport = Entity("airport", join_keys=["origin"])
carrier = Entity("carrier")
route = Entity("route", join_keys=["origin", "dest"])
aircraft = Entity("aircraft", join_keys=["tailnum"])

airport_weather = FeatureView(
    "airport_weather",
    entities=[airport],
    schema=[Field(name, Float64) for name in WEATHER],
    events=sources.weather,
    ttl=3 * HOUR,
    owner="ops-data",
    description="The hourly observation at the origin, published when its hour is over.",
)
airport_congestion = FeatureView(
    "airport_congestion",
    entities=[airport],
    source=Windows(
        [
            Aggregation(Function.MEAN, HOUR, "dep_delay", "airport_dep_delay_1h"),
            Aggregation(Function.MEAN, HOUR, "dep_late", "airport_dep_late_1h"),
            Aggregation(Function.MEAN, 3 * HOUR, "dep_delay", "airport_dep_delay_3h"),
            Aggregation(Function.COUNT, HOUR, "dep_delay", "airport_departures_1h"),
            Aggregation(Function.SUM, 6 * HOUR, "waiting", "airport_backlog_6h"),
        ],
        every=EVERY,
        event_time="known_at",
    ),
    events=sources.movements,
    ttl=DAY,
    owner="ops-data",
    description="Departures of the last hours, and how many scheduled ones have not left yet.",
)
carrier_history = FeatureView(
    "carrier_history",
    entities=[carrier],
    source=Windows(
        [
            Aggregation(Function.MEAN, 3 * HOUR, "dep_delay", "carrier_dep_delay_3h"),
            Aggregation(Function.MEAN, 6 * HOUR, "arr_delay", "carrier_arr_delay_6h"),
            Aggregation(Function.MEAN, DAY, "late", "carrier_late_1d"),
            Aggregation(Function.MEAN, 7 * DAY, "late", "carrier_late_7d"),
        ],
        every=HOUR,
        event_time="known_at",
    ),
    events=sources.movements,
    ttl=7 * DAY,
    owner="ops-data",
)
route_history = FeatureView(
    "route_history",
    entities=[route],
    source=Windows(
        [
            Aggregation(Function.MEAN, 7 * DAY, "late", "route_late_7d"),
            Aggregation(Function.MEAN, 7 * DAY, "arr_delay", "route_arr_delay_7d"),
            Aggregation(Function.MEAN, 30 * DAY, "late", "route_late_30d"),
            Aggregation(Function.COUNT, 7 * DAY, "late", "route_flights_7d"),
        ],
        every=DAY,
        event_time="known_at",
    ),
    events=sources.arrivals,
    ttl=30 * DAY,
    owner="ops-data",
)
aircraft_history = FeatureView(
    "aircraft_history",
    entities=[aircraft],
    source=Windows(
        [
            Aggregation(Function.MEAN, DAY, "arr_delay", "aircraft_arr_delay_1d"),
            Aggregation(Function.MEAN, DAY, "left_late", "aircraft_dep_delay_1d"),
            Aggregation(Function.MEAN, 7 * DAY, "late", "aircraft_late_7d"),
            Aggregation(Function.COUNT, 7 * DAY, "late", "aircraft_flights_7d"),
        ],
        event_time="known_at",
    ),
    events=sources.arrivals,
    ttl=7 * DAY,
    owner="fleet-data",
    description="One row each time a flight of the aircraft has landed.",
)
aircraft_facts = FeatureView(
    "aircraft_facts",
    entities=[aircraft],
    schema=[Field("built", Float64), Field("seats", Float64)],
    owner="fleet-data",
    description="What does not change: year of manufacture and seats.",
)

booking = RequestSource(
    "booking",
    [
        Field("departure_s", Int64),  # scheduled departure, seconds since 1970 UTC
        Field("planned_minutes", Float64),
        Field("distance", Float64),
    ],
)


def timetable_features(columns: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Compute New York's hour (0 to 24) and weekday (1 Monday) of departure; pass planned minutes and miles on."""
    local = [datetime.fromtimestamp(at, NEW_YORK) for at in columns["departure_s"].tolist()]
    return {
        "departure_hour": np.array([at.hour + at.minute / 60 for at in local]),
        "weekday": np.array([float(at.isoweekday()) for at in local]),
        "minutes_planned": np.asarray(columns["planned_minutes"], dtype=np.float64),
        "miles": np.asarray(columns["distance"], dtype=np.float64),
    }


timetable = OnDemandFeatureView(
    "timetable",
    sources=[booking],
    schema=[Field(name, Float64) for name in ("departure_hour", "weekday", "minutes_planned", "miles")],
    transform=timetable_features,
)

STORED = (
    airport_weather,
    airport_congestion,
    carrier_history,
    route_history,
    aircraft_history,
    aircraft_facts,
)
flight_delay = FeatureService(
    "flight_delay",
    [*STORED, timetable],
    owner="delay-team",
    description="An hour before scheduled departure.",
)
FEATURES: list[Definition] = [airport, carrier, route, aircraft, *STORED, timetable, flight_delay]
CATEGORICAL = ["carrier", "origin", "dest"]
NUMERIC = flight_delay.columns


def entity_table(flights: pl.DataFrame) -> pa.Table:
    """Make the entity rows of flights: keys, request values, the moment of prediction, and the outcome.

    `event_timestamp` is an hour before scheduled departure; `late` (1.0 or 0.0; null: never arrived) is known at
    `label_known_at`.
    """
    late = (pl.col("arr_delay") > data.LATE_MINUTES).cast(pl.Float64)
    minutes = (pl.col("scheduled_arrival") - pl.col("scheduled_departure")).dt.total_minutes()
    return (
        flights.select(
            *("flight_id", "carrier", "origin", "dest"),
            pl.col("tailnum").fill_null("unknown"),
            pl.col("distance").cast(pl.Float64),
            departure_s=pl.col("scheduled_departure").dt.epoch("s"),
            planned_minutes=minutes.cast(pl.Float64),
            event_timestamp=pl.col("scheduled_departure") - data.PREDICTION_LEAD,
            late=late,
            label_known_at="arrived_at",
        )
        .sort("event_timestamp", "flight_id")
        .to_arrow()
    )


def events(view: FeatureView, flights: pl.DataFrame) -> pa.Table:
    """Make the events that a view's windows aggregate: those of its source that have its keys."""
    assert isinstance(view.events, BatchSource)  # noqa: S101 - views with windows have one here
    rows = {sources.movements.name: sources.movement_rows, sources.arrivals.name: sources.arrival_rows}
    found = pl.DataFrame(rows[view.events.name](flights)).rename({"published_at": "known_at"})
    return found.drop_nulls([key.name for key in view.join_keys]).to_arrow()


def aircraft_rows(*, known_from: datetime) -> pa.Table:
    """Make the rows of `aircraft_facts`, known since before the first flight."""
    return (
        data.planes()
        .select("tailnum", pl.col("built").cast(pl.Float64), pl.col("seats").cast(pl.Float64))
        .with_columns(event_timestamp=pl.lit(known_from, dtype=pl.Datetime("us", "UTC")))
        .to_arrow()
    )
