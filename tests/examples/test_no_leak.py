"""No feature of a flight may use what was not known an hour before its scheduled departure.

The proof erases the future: at a moment T everything that had not happened is removed from the raw tables (delays
and times of flights that had not left or landed, weather not yet published), all features are computed again, and every
training row that would be predicted by T must come out the same, bit for bit.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from examples.flights import data
from examples.flights import features as flight_features
from examples.flights.sources import weather_rows
from toque.featurestore import FeatureStore
from toque.registry import open_store

START = datetime(2013, 1, 1, tzinfo=UTC)
WEEKS = datetime(2013, 2, 20, tzinfo=UTC)
OUTCOMES = ("late", "label_known_at")


def flights_until(moment: datetime) -> pl.DataFrame:
    """The flights table as it stood at `moment`: the timetable, and what had happened."""
    left = pl.col("departed_at") <= moment
    landed = pl.col("arrived_at") <= moment
    return data.flights().with_columns(
        *(pl.when(left).then(name).alias(name) for name in ("departed_at", "dep_delay")),
        *(pl.when(landed).then(name).alias(name) for name in ("arrived_at", "arr_delay")),
    )


def training_rows(folder: Path, flights: pl.DataFrame, weather: pl.DataFrame, entities: pa.Table) -> pa.Table:
    """Every feature of the entity rows, through the feature store, from these raw tables."""
    store = FeatureStore(open_store(folder.as_uri()), project="leak")
    store.apply(flight_features.FEATURES)
    observed = weather_rows(weather).rename_columns({"published_at": "event_timestamp"})
    store.write_offline(flight_features.airport_weather, observed)
    store.write_offline(flight_features.aircraft_facts, flight_features.aircraft_rows(known_from=START))
    for view in flight_features.STORED:
        if view.source is not None:
            rows = view.source.compute(
                flight_features.events(view, flights), keys=[key.name for key in view.join_keys]
            )
            store.write_offline(view, rows)
    return store.get_historical_features(entities, features=flight_features.flight_delay).to_arrow()


@pytest.fixture(scope="module")
def known_world() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Flights and weather of the first weeks, whole."""
    flights = data.flights().filter(pl.col("scheduled_departure") < WEEKS)
    weather = data.weather().filter(pl.col("observed_hour") < WEEKS)
    return flights, weather


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [datetime(2013, 1, 17, 22, 10, tzinfo=UTC), datetime(2013, 2, 9, 15, 0, tzinfo=UTC)]
)
def test_features_do_not_change_when_the_future_is_erased(tmp_path, known_world, moment):
    flights, weather = known_world
    entities = flight_features.entity_table(flights)
    by_then = pl.col("event_timestamp").is_between(moment - timedelta(days=2), moment)
    entities = pl.DataFrame(entities).filter(by_then).drop(OUTCOMES).to_arrow()
    assert entities.num_rows > 1000

    erased_flights = flights_until(moment).filter(pl.col("scheduled_departure") < WEEKS)
    erased_weather = weather.filter(pl.col("observed_hour") + timedelta(hours=1) <= moment)
    remembered = training_rows(tmp_path / "whole", flights, weather, entities)
    forgotten = training_rows(tmp_path / "erased", erased_flights, erased_weather, entities)

    for column in remembered.column_names:
        assert remembered[column].equals(forgotten[column]), f"{column} changes when the future is erased"


def test_what_a_request_brings_is_in_the_timetable(known_world):
    flights, _ = known_world
    moment = datetime(2013, 1, 17, 22, 10, tzinfo=UTC)
    whole = pl.DataFrame(flight_features.entity_table(flights)).drop(OUTCOMES)
    erased = flights_until(moment).filter(pl.col("scheduled_departure") < WEEKS)
    assert whole.equals(pl.DataFrame(flight_features.entity_table(erased)).drop(OUTCOMES))


def test_the_outcome_columns_are_no_features():
    outcomes = {"dep_delay", "arr_delay", "air_time", "departed_at", "arrived_at", *OUTCOMES}
    brought = {field.name for field in flight_features.booking.schema}
    assert not outcomes & (set(flight_features.NUMERIC) | set(flight_features.CATEGORICAL) | brought)


def test_every_label_is_known_after_its_prediction():
    rows = pl.DataFrame(flight_features.entity_table(data.flights()))
    known = rows.filter(pl.col("late").is_not_null())
    assert known.filter(pl.col("label_known_at") <= pl.col("event_timestamp")).is_empty()
    assert rows.filter(pl.col("late").is_null() != pl.col("label_known_at").is_null()).is_empty()
