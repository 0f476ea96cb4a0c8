"""Rows of a view that follow from what its batch source loaded since the view was last refreshed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from featurestore.definitions.batch_source import KNOWN_AT
from featurestore.definitions.dtypes import TIMESTAMP
from featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from featurestore.errors import UnknownDefinition
from featurestore.sources.loading import LOAD, SourceTable
from featurestore.windows.aggregations import Windows

if TYPE_CHECKING:
    from featurestore.definitions.views import FeatureView

_MICROSECOND = timedelta(microseconds=1)


class Refreshed(BaseModel):
    """Result of a view's refresh from its batch source. load: up to which it has the source's rows; rows: written."""

    model_config = ConfigDict(frozen=True)

    view: str
    source: str
    load: int
    rows: int


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows to write, None if there are none, and the number of the load up to which they are."""

    rows: pa.Table | None
    until: int


def new_rows(view: FeatureView, events: SourceTable, after: int) -> NewRows:
    """Make the rows of a view that follow from the loads after `after`.

    Without a transformation they are the source's own. Windows are computed again for the keys of new events, from the moment
    on at which the first of those became known: of rows with one event time the one that was made later counts.
    """
    until = events.state().number
    new = events.rows(after=after, until=until) if until > after else None
    if new is None or not new.num_rows:
        return NewRows(None, until)
    keys = [key.name for key in view.join_keys]
    if view.source is None:
        names = [*keys, *view.features, EVENT_TIMESTAMP]
        return NewRows(
            new.select(names).append_column(CREATED_TIMESTAMP, _created(events, new, after)), until
        )
    if not isinstance(view.source, Windows):
        raise UnknownDefinition(
            f"feature view {view.name!r}: only Windows are computed from a batch source, not {view.source}"
        )
    rows = _computed(view.source, events, new, until, keys)
    return NewRows(rows if rows is not None and rows.num_rows else None, until)


def _computed(
    source: Windows, events: SourceTable, new: pa.Table, until: int, keys: list[str]
) -> pa.Table | None:
    """Compute the windows of the keys of new events, from the first moment that those change."""
    first = pc.min(new.column(source.known_at)).as_py()
    if first is None:  # nothing of it is known yet
        return None
    late = source.watermark or timedelta(0)
    since = first - _MICROSECOND + late
    reached = events.rows(until=until, by=source.event_time, start=since - source.reach)
    if keys:
        frame = pl.DataFrame(reached)
        touched = pl.DataFrame(new.select(keys)).unique()
        reached = frame.join(touched, on=keys, how="semi").to_arrow().cast(reached.schema)
    return source.compute(reached.drop_columns([LOAD]), keys=keys, since=since)


def _created(events: SourceTable, new: pa.Table, after: int) -> pa.ChunkedArray:
    """When each row was made: when it became known, and when it was loaded for one that corrects an earlier one."""
    known, loaded = new.column(KNOWN_AT), pa.scalar(events.state().loads[-1].at, TIMESTAMP)
    if not events.source.known_at:
        return known
    if events.source.unique and after:
        first, last = pc.min_max(new.column(EVENT_TIMESTAMP)).as_py().values()
        keys = [*events.source.unique, EVENT_TIMESTAMP]
        earlier = pl.DataFrame(events.rows(until=after, start=first, end=last).select(keys))
        given = pl.DataFrame(new.select(keys)).with_row_index("row")
        corrected = given.join(earlier, on=keys, how="semi").get_column("row").to_list()
        mask = pa.array(pl.Series(range(new.num_rows)).is_in(corrected).to_arrow())
        known = pc.if_else(mask, loaded, known)
    return pc.coalesce(known, loaded)
