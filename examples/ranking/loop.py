"""Five weeks of the ranking of flights in one process: `python -m examples.ranking.loop`.

A request is the flights of a day to one destination. Flights, carriers and delays are those of May and June 2013. At
first a flight serves who arrives in time; from one day on travellers want to leave after work, whatever the delay.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from examples.flights.data import flights
from examples.loop import DAY, START, play
from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import DriftMonitor, PerformanceMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import XGBoost
from toque.functions.tuning import Choice, Space

AFTER_WORK = 14  # the day on which travellers begin to want it
REQUESTS_A_DAY = 100
FEWEST_FLIGHTS, MOST_FLIGHTS = 4, 8
_FIRST, _DAYS = date(2013, 5, 1), 60
_IN_TIME, _NEARLY = 0, 15  # minutes late
_EVENING, _AFTERNOON = 17, 14  # hours in New York
ENTITIES = "ranking/items"

flight_order = ModelDefinition(
    name="flight-order",
    entities=ENTITIES,
    label="relevance",
    outcome="ranking",
    group="request",
    numeric=("hour", "distance"),
    categorical=("carrier", "origin"),
    trainer=XGBoost(rounds=60, early_stopping=10, max_depth=3, split="random", valid_fraction=0.2),
    gate=Gate(max_log_loss_ratio={"constant": 0.97, "popularity": 1.05}, item="carrier", min_rows=50),
    monitors=(PerformanceMonitor(min_labels=30), DriftMonitor()),
    rollout=ROLLOUT,
    retraining=RETRAINING,
    governance=GOVERNANCE,
)
FEATURES: list[Any] = []
MODELS = [flight_order]
SPACE: Space = {"max_depth": Choice(choices=[2, 4])}


def requests(day: int) -> pa.Table:
    """Items of one day's requests, a row each; the relevances are known half a day later."""
    generator = np.random.default_rng(day)
    choices = _by_destination(_FIRST + timedelta(days=day))
    parts = []
    for number in range(REQUESTS_A_DAY):
        offered = choices[int(generator.integers(len(choices)))]
        items = offered.sample(min(MOST_FLIGHTS, len(offered)), seed=int(generator.integers(1 << 31)))
        asked = START + day * DAY + DAY * (number + 0.5) / REQUESTS_A_DAY
        parts.append(
            items.select(
                pl.format("{}-{}:{}", pl.lit(day), pl.lit(number), pl.int_range(pl.len())).alias("row_id"),
                pl.lit(f"{day}-{number}").alias("request"),
                pl.lit(asked).cast(pl.Datetime("us", "UTC")).alias("event_timestamp"),
                pl.lit(asked + DAY / 2).cast(pl.Datetime("us", "UTC")).alias("label_known_at"),
                _relevance(day).cast(pl.Int64).alias("relevance"),
                pl.col("hour").cast(pl.Float64),
                pl.col("distance").cast(pl.Float64),
                "carrier",
                "origin",
            )
        )
    return pl.concat(parts).to_arrow().cast(_SCHEMA)


_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("request", pa.string()),
        ("event_timestamp", pa.timestamp("us", "UTC")),
        ("label_known_at", pa.timestamp("us", "UTC")),
        ("relevance", pa.int64()),
        ("hour", pa.float64()),
        ("distance", pa.float64()),
        ("carrier", pa.string()),
        ("origin", pa.string()),
    ]
)


def _relevance(day: int) -> pl.Expr:
    """Grade of an item: 2 serves well, 1 somewhat, 0 not."""
    if day >= AFTER_WORK:
        hour = pl.col("hour")
        return pl.when(hour >= _EVENING).then(2).when(hour >= _AFTERNOON).then(1).otherwise(0)
    late = pl.col("arr_delay").fill_null(1_000.0)  # cancelled: it serves nobody
    return pl.when(late <= _IN_TIME).then(2).when(late <= _NEARLY).then(1).otherwise(0)


def _by_destination(day: date) -> list[pl.DataFrame]:
    found = _flights().filter(pl.col("day_of_flight") == day).partition_by("dest", maintain_order=True)
    return [each for each in found if len(each) >= FEWEST_FLIGHTS]


@cache
def _flights() -> pl.DataFrame:
    """Flights of the days that are played, with the day and hour in New York."""
    local = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York")
    last = _FIRST + timedelta(days=_DAYS)
    return (
        flights()
        .with_columns(day_of_flight=local.dt.date(), hour=local.dt.hour())
        .filter(pl.col("day_of_flight").is_between(_FIRST, last))
        .select("day_of_flight", "dest", "carrier", "origin", "distance", "hour", "arr_delay")
    )


if __name__ == "__main__":
    play("examples.ranking", flight_order, requests, SPACE)
