"""Functions that fill the offline tables of the example's feature views from their sources."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from examples.flights import data, sources
from examples.flights import features as flight_features
from examples.flights.model import ENTITIES
from toque.featurestore import BatchSource, FeatureStore, FeatureView
from toque.functions import context, function
from toque.registry import Table, TableSnapshot

FIRST_DAY = datetime(2013, 1, 1, tzinfo=UTC)


class Prepared(BaseModel):
    """Table that was filled, with its number of rows."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    snapshot: TableSnapshot


@function(timeout_s=600)
def prepare_view(view: str) -> Prepared:
    """Bring all of 2013 into the offline table of one feature view."""
    store = context().features()
    definition = store.get_feature_view(view)
    fill_view(store, definition)
    table = store.offline_table(definition)
    rows = table.read(columns=["event_timestamp"]).num_rows
    return Prepared(name=view, rows=rows, snapshot=TableSnapshot(name=table.name, version=table.version()))


@function(timeout_s=600)
def prepare_entities() -> Prepared:
    """Write the flights to predict, with their labels and when the labels became known."""
    rows = flight_features.entity_table(data.flights())
    return Prepared(
        name=ENTITIES, rows=rows.num_rows, snapshot=Table(context().store, ENTITIES).overwrite(rows)
    )


def fill_view(store: FeatureStore, view: FeatureView) -> None:
    """Load a view's source, if it has one, and bring what is new into the view; aircraft stand in no source."""
    if isinstance(view.events, BatchSource):
        sources.export()
        store.source_table(view.events).load(_no_secret)
        store.refresh_view(view)
    else:
        store.write_offline(view, flight_features.aircraft_rows(known_from=FIRST_DAY))


def _no_secret(name: str) -> str:
    raise KeyError(name)
