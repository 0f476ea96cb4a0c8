"""Rows of a view that follow from events of a stream: the same bits from the consumer, from a refresh, and from all events at once.

A row says as its created time how much it knew: the moment itself if all events up to then were there, else that of the last event
of its partition. So of two rows of one moment the one that knew more wins, whoever wrote it and when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from toque.featurestore.definitions.batch_source import KNOWN_AT
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.stream_source import PARTITION
from toque.featurestore.errors import UnknownDefinition
from toque.featurestore.streams.decode import Place
from toque.featurestore.streams.table import StreamTable
from toque.featurestore.windows.aggregations import Windows
from toque.featurestore.windows.windowing import REPLACED_AT
from toque.registry.times import MICROSECOND, from_epoch_us

if TYPE_CHECKING:
    from toque.featurestore.definitions.views import FeatureView

_PARTITION_KNOWN = "partition_known"


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows to write, and the positions up to which they have the stream's events, by partition. rejected: events without a key."""

    rows: pa.Table
    until: dict[int, int]
    rejected: int = 0


def windows_of(view: FeatureView) -> Windows:
    """Windows that a view computes over its stream. Raises: UnknownDefinition for another transformation."""
    if not isinstance(view.source, Windows):
        raise UnknownDefinition(
            f"feature view {view.name!r}: only Windows are computed from a stream, not {view.source}"
        )
    return view.source


def events_of(view: FeatureView, events: pa.Table) -> pa.Table:
    """Select the events that belong to a view: those with all that it needs."""
    for name in view.needed:
        if events.column(name).null_count:
            events = events.filter(events.column(name).is_valid())
    return events


def with_replaced(events: pa.Table, unique: Sequence[str]) -> pa.Table:
    """Add from when each event is replaced by the next that has its `unique` values and event time, null for the last."""
    if not unique:
        return events
    following = pl.col(KNOWN_AT).shift(-1).over([*unique, EVENT_TIMESTAMP], order_by=KNOWN_AT)
    replaced = pl.DataFrame(events).select(following).to_series().to_arrow()
    return events.append_column(REPLACED_AT, replaced.cast(events.schema.field(KNOWN_AT).type))


def own_rows(view: FeatureView, events: pa.Table) -> pa.Table:
    """Rows of a view without a transformation: the events, made when they became known."""
    names = [*(key.name for key in view.join_keys), *view.features, EVENT_TIMESTAMP]
    return events.select(names).append_column(CREATED_TIMESTAMP, events.column(KNOWN_AT))


def with_created(rows: pa.Table, keys: Sequence[str], known: pl.DataFrame) -> pa.Table:
    """Add to computed rows when they were made: at their moment, or when the last event they knew of became known.

    known: keys and `partition_known`, when the last event of each key's partition did.
    """
    frame = pl.DataFrame(rows)
    joined = (
        frame.join(known, on=list(keys), how="left", maintain_order="left")
        if keys
        else frame.join(known, how="cross", maintain_order="left")
    )
    created = pl.min_horizontal(EVENT_TIMESTAMP, _PARTITION_KNOWN).alias(CREATED_TIMESTAMP)
    return rows.append_column(
        CREATED_TIMESTAMP,
        joined.select(created).to_series().to_arrow().cast(rows.schema.field(EVENT_TIMESTAMP).type),
    )


def known_of_keys(events: pa.Table, keys: Sequence[str], places: Mapping[int, Place]) -> pl.DataFrame:
    """When the last event of each key's partition became known; a key is in the partition of its newest event."""
    known = pl.DataFrame(
        {
            PARTITION: list(places),
            _PARTITION_KNOWN: [from_epoch_us(each.known_us) for each in places.values()],
        },
        schema={PARTITION: pl.Int32, _PARTITION_KNOWN: pl.Datetime("us", "UTC")},
    )
    last = pl.DataFrame(events.select([*keys, PARTITION, KNOWN_AT])).sort(KNOWN_AT)
    last = last.unique(list(keys), keep="last") if keys else last.tail(1)
    return last.join(known, on=PARTITION).select([*keys, _PARTITION_KNOWN])


def new_rows(view: FeatureView, table: StreamTable, after: Mapping[int, int]) -> NewRows | None:
    """Make the rows that follow from the events at or after some positions; None if there are none."""
    places = table.known_places()
    until = {each: place.position for each, place in places.items()}
    between = {each: (after.get(each, 0), end) for each, end in until.items() if end > after.get(each, 0)}
    read = table.events(partitions=between)
    new = events_of(view, read)
    if not new.num_rows:
        return None
    rows = own_rows(view, new) if view.source is None else _computed(view, table, new, places)
    return NewRows(rows, until, read.num_rows - new.num_rows) if rows.num_rows else None


def _computed(view: FeatureView, table: StreamTable, new: pa.Table, places: Mapping[int, Place]) -> pa.Table:
    """Compute the windows of the keys of new events, from the first moment that those change."""
    source = windows_of(view)
    earliest = pl.DataFrame(new).select(pl.col(KNOWN_AT).min()).item() - MICROSECOND
    reached = events_of(
        view,
        table.events(
            partitions={each: (0, place.position) for each, place in places.items()},
            since=earliest + (source.watermark or timedelta(0)) - source.reach,
            known_since=earliest,  # a late event has a row of its own, in whose windows it may not be
        ),
    )
    return computed_rows(view, new, with_replaced(reached, table.source.event_name), places)


def computed_rows(
    view: FeatureView, new: pa.Table, reached: pa.Table, places: Mapping[int, Place]
) -> pa.Table:
    """Compute the windows of the keys of new events from the events that they reach back to, `with_replaced`.

    places: of the partitions, up to which these are all events.
    """
    source, keys = windows_of(view), [key.name for key in view.join_keys]
    first = pl.col(KNOWN_AT).min().alias("first")
    fresh = pl.DataFrame(new)
    earliest = fresh.select(first).item()
    since = earliest - MICROSECOND + (source.watermark or timedelta(0))
    touched = _touched(fresh, pl.DataFrame(reached), keys, earliest) if keys else fresh.select(first)
    if keys:
        frame = pl.DataFrame(reached).join(touched, on=keys, how="semi", maintain_order="left")
        reached = frame.to_arrow().cast(reached.schema)
    rows = source.compute(reached, keys=keys, since=since)
    if keys:  # rows before a key's own first new event are written already
        frame = pl.DataFrame(rows).join(touched, on=keys, how="left", maintain_order="left")
        rows = rows.filter((frame[EVENT_TIMESTAMP] >= frame["first"]).to_arrow())
    return with_created(rows, keys, known_of_keys(reached, keys, places))


def _touched(
    fresh: pl.DataFrame, reached: pl.DataFrame, keys: Sequence[str], earliest: datetime
) -> pl.DataFrame:
    """Keys of new events, and of those that new ones replace, with the first moment that changes for each."""
    changes = [fresh.select([*keys, pl.col(KNOWN_AT).alias("first")])]
    if REPLACED_AT in reached.columns:
        replaced = reached.filter(pl.col(REPLACED_AT) >= earliest)
        changes.append(replaced.select([*keys, pl.col(REPLACED_AT).alias("first")]))
    return pl.concat(changes).group_by(list(keys)).agg(pl.col("first").min())
