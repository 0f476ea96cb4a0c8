"""Five weeks of the model of late flights in one process: `python -m examples.flights_xgboost.loop`.

Flights and delays are those of May and June 2013; late is more than 15 minutes. From one day on the approach is
closed in the afternoons: who leaves New York from 15:00 on circles three quarters of an hour before landing.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import cache
from typing import Any

import polars as pl
import pyarrow as pa

from examples.flights.data import LATE_MINUTES, flights
from examples.loop import DAY, START, play
from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import AnswerMonitor, DriftMonitor, EstimateMonitor, PerformanceMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import XGBoost
from toque.functions.tuning import Choice, Space

CLOSED = 14  # the first day on which the approach is closed
FLIGHTS_A_DAY = 150
_FIRST, _DAYS = date(2013, 5, 1), 60
_AFTERNOON, _CIRCLING_MINUTES = 15, 45
ENTITIES = "flights_xgboost/entities"

late_flights = ModelDefinition(
    name="flights-xgboost",
    entities=ENTITIES,
    label="late",
    numeric=("hour", "dep_delay", "distance"),
    categorical=("carrier", "origin"),
    trainer=XGBoost(rounds=60, early_stopping=10, max_depth=3, split="random", valid_fraction=0.2),
    gate=Gate(max_log_loss_ratio={"constant": 0.9}, max_ece=0.2, min_rows=100),
    monitors=(
        PerformanceMonitor(min_labels=30),
        DriftMonitor(),
        AnswerMonitor(),
        EstimateMonitor(min_labels=500),
    ),
    rollout=ROLLOUT,
    retraining=RETRAINING,
    governance=GOVERNANCE,
)
FEATURES: list[Any] = []
MODELS = [late_flights]
SPACE: Space = {"max_depth": Choice(choices=[1, 3])}


def take_offs(day: int) -> pa.Table:
    """Flights of one day, drawn from those that landed; whether each was late is known half a day later."""
    landed = _flights().filter(pl.col("day_of_flight") == _FIRST + timedelta(days=day))
    chosen = landed.sample(FLIGHTS_A_DAY, seed=day, shuffle=True)
    asked = [START + day * DAY + DAY * (place + 0.5) / FLIGHTS_A_DAY for place in range(FLIGHTS_A_DAY)]
    circling = pl.when(pl.col("hour") >= _AFTERNOON).then(_CIRCLING_MINUTES if day >= CLOSED else 0)
    late = pl.col("arr_delay") + circling.otherwise(0) > LATE_MINUTES
    return chosen.select(
        pl.format("{}-{}", pl.lit(day), pl.int_range(pl.len())).alias("row_id"),
        pl.Series("event_timestamp", asked, pl.Datetime("us", "UTC")),
        pl.Series("label_known_at", [moment + DAY / 2 for moment in asked], pl.Datetime("us", "UTC")),
        late.cast(pl.Int64).alias("late"),
        *(pl.col(name).cast(pl.Float64) for name in ("hour", "dep_delay", "distance")),
        "carrier",
        "origin",
    ).to_arrow().cast(_SCHEMA)  # fmt: skip


_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("event_timestamp", pa.timestamp("us", "UTC")),
        ("label_known_at", pa.timestamp("us", "UTC")),
        ("late", pa.int64()),
        ("hour", pa.float64()),
        ("dep_delay", pa.float64()),
        ("distance", pa.float64()),
        ("carrier", pa.string()),
        ("origin", pa.string()),
    ]
)


@cache
def _flights() -> pl.DataFrame:
    """Flights of the days that are played that landed where they were bound, with the day and hour in New York."""
    local = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York")
    return (
        flights()
        .with_columns(day_of_flight=local.dt.date(), hour=local.dt.hour())
        .filter(pl.col("day_of_flight").is_between(_FIRST, _FIRST + timedelta(days=_DAYS)))
        .drop_nulls(["arr_delay", "dep_delay"])
        .select("day_of_flight", "hour", "dep_delay", "distance", "carrier", "origin", "arr_delay")
    )


if __name__ == "__main__":
    play("examples.flights_xgboost", late_flights, take_offs, SPACE)
