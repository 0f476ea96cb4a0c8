"""Sources of the example: files of weather, movements and arrivals, as an airport's data warehouse would export them.

The files are made from the raw tables, once. An event counts from the half hour at which it is published, not from when it
happened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from examples.flights import data
from toque.featurestore import BatchSource, Field, Float64, InRange, ParquetFiles, String

EVERY, HOUR = timedelta(minutes=30), timedelta(hours=1)
KEYS = ("carrier", "origin", "dest", "tailnum")
WEATHER = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
FOLDER = Path(os.environ.get("FLIGHTS_FOLDER", Path.home() / ".cache" / "toque-flights-1"))
"""Where the files are; the number changes with what is in them."""

_keys = [Field(name, String) for name in KEYS]

weather = BatchSource(
    "weather",
    ParquetFiles(f"{FOLDER}/weather.parquet"),
    schema=[Field("origin", String), *(Field(name, Float64) for name in WEATHER)],
    timestamp="published_at",
    expectations=[InRange("humid", least=0, most=100), InRange("visib", least=0)],
    owner="ops-data",
    description="The hourly observations, published when their hour is over.",
)
movements = BatchSource(
    "movements",
    ParquetFiles(f"{FOLDER}/movements.parquet"),
    schema=[
        *_keys,
        *(Field(name, Float64) for name in ("dep_delay", "dep_late", "waiting", "arr_delay", "late")),
    ],
    timestamp="published_at",
    known_at="published_at",
    owner="ops-data",
    description="Flights that are due, have left and have landed.",
)
arrivals = BatchSource(
    "arrivals",
    ParquetFiles(f"{FOLDER}/arrivals.parquet"),
    schema=[*_keys, *(Field(name, Float64) for name in ("arr_delay", "late", "left_late"))],
    timestamp="published_at",
    known_at="published_at",
    owner="fleet-data",
    description="Flights that have landed, with how late they had left.",
)


def export(folder: Path = FOLDER) -> None:
    """Write the files of the sources, those that are not there yet."""
    made: dict[str, Callable[[], pa.Table]] = {
        weather.name: lambda: weather_rows(data.weather()),
        movements.name: lambda: movement_rows(data.flights()),
        arrivals.name: lambda: arrival_rows(data.flights()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in made.items():
        file = folder / f"{name}.parquet"
        if not file.exists():
            part = folder / f".{name}.{os.getpid()}"
            pq.write_table(make(), part)
            part.replace(file)


def weather_rows(observed: pl.DataFrame) -> pa.Table:
    """Make the rows of weather; an hour's observation is published when the hour is over."""
    return observed.select(
        "origin",
        *[pl.col(name).cast(pl.Float64) for name in WEATHER],
        published_at=pl.col("observed_hour") + HOUR,
    ).to_arrow()


def movement_rows(flights: pl.DataFrame) -> pa.Table:
    """Make the events of airports and carriers: flights due, departures, arrivals.

    Columns: the keys, published_at; dep_delay and dep_late (known when a flight has left), arr_delay and late (when it has
    landed), waiting (+1 when a departure is due, -1 when it leaves); null in other events. Delays are clipped to five hours,
    so that one stranded aircraft does not dominate its airport.
    """
    return _published(_due(flights), _left(flights), _landed(flights).drop("left_late"))


def arrival_rows(flights: pl.DataFrame) -> pa.Table:
    """Make the events of routes and aircraft: arrivals, with how late the flight had left."""
    return _published(_landed(flights))


def _published(*parts: pl.DataFrame) -> pa.Table:
    published = pl.col("known_at").dt.offset_by("-1us").dt.truncate("30m") + EVERY
    table = pl.concat(parts, how="diagonal").filter(pl.col("known_at").is_not_null())
    return table.select(pl.exclude("known_at"), published_at=published).sort("published_at").to_arrow()


def _due(flights: pl.DataFrame) -> pl.DataFrame:
    return flights.select(*KEYS, known_at="scheduled_departure", waiting=pl.lit(1.0))


def _left(flights: pl.DataFrame) -> pl.DataFrame:
    delay = pl.col("dep_delay")
    return flights.select(
        *KEYS,
        delay.cast(pl.Float64).clip(-30, 300),
        known_at="departed_at",
        dep_late=(delay > data.LATE_MINUTES).cast(pl.Float64),
        waiting=pl.lit(-1.0),
    )


def _landed(flights: pl.DataFrame) -> pl.DataFrame:
    delay = pl.col("arr_delay")
    return flights.select(
        *KEYS,
        delay.cast(pl.Float64).clip(-60, 300),
        known_at="arrived_at",
        late=(delay > data.LATE_MINUTES).cast(pl.Float64),
        left_late=pl.col("dep_delay").cast(pl.Float64).clip(-30, 300),
    )
