"""Functions that fill the offline tables from raw flights by Ray Data, one table for each feature view."""

from datetime import UTC, datetime
from functools import partial

import polars as pl
import pyarrow as pa
import ray.data
from pydantic import BaseModel, ConfigDict

from examples.flights import data
from examples.flights import features as flight_features
from examples.flights.model import ENTITIES
from featurestore import FeatureView
from featurestore.offline import distributed
from functions import context, function
from registry import Table, TableSnapshot

FIRST_DAY = datetime(2013, 1, 1, tzinfo=UTC)
_PARTS = 4  # a year of flights is little: more blocks and partitions only cost their overhead


class Prepared(BaseModel):
    """Table that was filled, with its number of rows."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    snapshot: TableSnapshot


@function(timeout_s=600)
def prepare_view(view: str) -> Prepared:
    """Compute all of 2013 for one feature view and append it to the view's offline table."""
    store = context().features()
    definition = store.get_feature_view(view)
    if view == flight_features.airport_weather.name:
        snapshot = store.write_offline(definition, flight_features.weather_rows(data.weather()))
    elif view == flight_features.aircraft_facts.name:
        snapshot = store.write_offline(definition, flight_features.aircraft_rows(known_from=FIRST_DAY))
    else:
        raw = ray.data.from_arrow(_blocks(data.flights()))
        events = raw.map_batches(partial(_events, view=definition), batch_format="pyarrow", batch_size=None)
        snapshot = distributed.compute_offline(store, definition, events, partitions=_PARTS)
    rows = store.offline_table(definition).read(columns=["event_timestamp"]).num_rows
    return Prepared(name=view, rows=rows, snapshot=snapshot)


@function(timeout_s=600)
def prepare_entities() -> Prepared:
    """Write the flights to predict, with their labels and when the labels became known."""
    rows = flight_features.entity_table(data.flights())
    return Prepared(
        name=ENTITIES, rows=rows.num_rows, snapshot=Table(context().store, ENTITIES).overwrite(rows)
    )


def _blocks(flights: pl.DataFrame) -> list[pa.Table]:
    size = -(-flights.height // _PARTS)
    return [part.to_arrow() for part in flights.iter_slices(size)]


def _events(block: pa.Table, view: FeatureView) -> pa.Table:
    return flight_features.events(view, pl.DataFrame(block))
