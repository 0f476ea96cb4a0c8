"""Fill the offline tables: one function a view, fanned out over the cluster."""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from examples.flights import data
from examples.flights import features as kitchen
from examples.flights.model import ENTITIES
from functions import Resources, context, function
from registry import Table, TableSnapshot

FIRST_DAY = datetime(2013, 1, 1, tzinfo=UTC)


class Prepared(BaseModel):
    """A table that was filled."""

    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    snapshot: TableSnapshot


@function(resources=Resources(num_cpus=1), timeout_s=600)
def prepare_view(view: str) -> Prepared:
    """Compute all of 2013 for one feature view and append it to the view's offline table."""
    store = context().features()
    definition = store.get_feature_view(view)
    if view == kitchen.airport_weather.name:
        rows = kitchen.weather_rows(data.weather())
    elif view == kitchen.aircraft_facts.name:
        rows = kitchen.aircraft_rows(known_from=FIRST_DAY)
    else:
        events = kitchen.events(definition, data.flights())
        snapshot = store.compute_offline(definition, events)
        return Prepared(
            name=view,
            rows=store.offline_table(definition).read(columns=["event_timestamp"]).num_rows,
            snapshot=snapshot,
        )
    return Prepared(name=view, rows=rows.num_rows, snapshot=store.write_offline(definition, rows))


@function(resources=Resources(num_cpus=1), timeout_s=600)
def prepare_entities() -> Prepared:
    """Write the flights that are asked about, with their labels and when those became known."""
    rows = kitchen.entity_table(data.flights())
    return Prepared(
        name=ENTITIES, rows=rows.num_rows, snapshot=Table(context().store, ENTITIES).overwrite(rows)
    )
