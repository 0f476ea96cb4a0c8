"""Rows of a view that follow from what its batch source loaded since the last refresh."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.batch_source import KNOWN_AT
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import UnknownDefinition
from toque.featurestore.sources.load_log import LOAD
from toque.featurestore.sources.loading import SourceTable
from toque.featurestore.sources.rows import REASON, REJECTED
from toque.featurestore.windows.aggregations import Windows
from toque.featurestore.windows.windowing import REPLACED_AT
from toque.registry.times import MICROSECOND


class Refreshed(BaseModel):
    """Result of a view's refresh. source: its batch or stream source, or the views that it is derived from.

    load: of the batch source, up to which the view has its rows, of a stream the sum of its positions. rows: written.
    rejected: rows of the source that have no value in a key, or in a feature that is not nullable, with `reasons` by how often; those
    of a batch source are kept aside.
    """

    model_config = ConfigDict(frozen=True)

    view: str
    source: str
    load: int = 0
    rows: int
    rejected: int = 0
    reasons: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows to write, None if there are none, and the number of the load up to which they are. aside: as `Checked.rejected`, and the load."""

    rows: pa.Table | None
    until: int
    aside: pa.Table | None = None

    @property
    def reasons(self) -> dict[str, int]:
        """Reasons of the rows that are kept aside, by how often."""
        return Counter([] if self.aside is None else self.aside.column(REASON).to_pylist())


def new_rows(view: FeatureView, events: SourceTable, after: int) -> NewRows:
    """Make the rows of a view that follow from the loads after `after`.

    Without a transformation they are the source's own. Windows are computed again for the keys of new events and of those that
    they replace, from the moment on at which the first of these became known: of rows with one event time the one that was made
    later counts.
    """
    until = events.state().number
    read = events.rows(after=after, until=until) if until > after else None
    if read is None or not read.num_rows:
        return NewRows(None, until)
    new, aside = _told_apart(view, events, read)
    keys = [key.name for key in view.join_keys]
    if view.source is None and not new.num_rows:
        return NewRows(None, until, aside)
    if view.source is None:
        names = [*keys, *view.features, EVENT_TIMESTAMP]
        return NewRows(
            new.select(names).append_column(CREATED_TIMESTAMP, _created(events, new, after)), until, aside
        )
    if not isinstance(view.source, Windows):
        raise UnknownDefinition(
            f"feature view {view.name!r}: only Windows are computed from a batch source, not {view.source}"
        )
    replaced = _replaced_by(events, read, after)  # a row that lost its key is in no window any more
    rows = _computed(view.source, events, pa.concat_tables([read, replaced]), until, keys)
    return NewRows(rows if rows is not None and rows.num_rows else None, until, aside)


def keep_aside(view: FeatureView, events: SourceTable, aside: pa.Table) -> None:
    """Store rows of a source that are none of the view's, each once, beside those that its loads rejected."""
    name = f"view:{view.stored_as}"
    done = (events.rejected.transaction(name) or 0) if events.rejected.exists() else 0
    new = aside.filter(pc.greater(aside.column(LOAD), done))
    if new.num_rows:
        events.rejected.append(new, transactions={name: pc.max(new.column(LOAD)).as_py()})


def _told_apart(view: FeatureView, events: SourceTable, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Tell the rows of a view apart from those without a value that it needs; these as they are kept aside."""
    reason = pa.nulls(rows.num_rows, pa.string())
    for name in reversed(view.needed):  # the first one counts
        text = f"feature view {view.name!r} needs column {events.source.read_columns.get(name, name)!r}, which has no value"
        reason = pc.if_else(rows.column(name).is_null(), text, reason)
    there = {events.source.read_columns.get(name, name): name for name in rows.column_names if name != LOAD}
    bad = rows.filter(pc.is_valid(reason))
    texts = [
        json.dumps({name: row[here] for name, here in there.items()}, default=str, ensure_ascii=False)
        for row in bad.to_pylist()
    ]
    aside = [pc.drop_null(reason).cast(pa.string()), pa.array(texts, pa.string()), bad.column(LOAD)]
    return rows.filter(pc.is_null(reason)), pa.table(aside, names=[*REJECTED.names, LOAD])


def _replaced_by(events: SourceTable, new: pa.Table, after: int) -> pa.Table:
    """Find the rows of the loads up to `after` that counted until new ones came in their place."""
    if not events.source.unique or not after:
        return new.slice(0, 0)
    return events.rows_named_as(new, until=after).cast(new.schema)


def _computed(
    source: Windows, events: SourceTable, changed: pa.Table, until: int, keys: list[str]
) -> pa.Table | None:
    """Compute the windows of the keys of changed events, from the first moment that those change.

    changed: new events, and those in whose place they came.
    """
    first = pc.min(changed.column(source.known_at)).as_py()
    if first is None:  # nothing of it is known yet
        return None
    since = first - MICROSECOND + (source.watermark or timedelta(0))
    # An event that became known late has a row of its own, in whose windows it may not be.
    bounds = {
        source.known_at: first,
        source.event_time: since - source.reach,
    }  # the latter, if they are one column
    counting, replaced = (
        _of_keys(each, changed, keys) for each in events.versions(until=until, since=bounds)
    )
    if replaced.num_rows:
        rows = source.compute(replaced, keys=keys, since=since)
        counting = pa.concat_tables([counting, _moments(source, rows, keys)], promote_options="default")
    return source.compute(counting, keys=keys, since=since)


def _of_keys(events: pa.Table, changed: pa.Table, keys: list[str]) -> pa.Table:
    """Select the events of the keys of changed ones."""
    schema, frame = events.schema, pl.DataFrame(events)
    if keys:
        frame = frame.join(pl.DataFrame(changed.select(keys)).unique(), on=keys, how="semi")
    return frame.to_arrow().cast(schema).drop_columns([LOAD])


def _moments(source: Windows, rows: pa.Table, keys: list[str]) -> pa.Table:
    """Make events that have a row at the moments of these rows and are in no window.

    Rows that replaced events once had are written already, and must be written anew, without those events.
    """
    at = rows.column(EVENT_TIMESTAMP)
    named = {source.event_time: at, source.known_at: at, REPLACED_AT: at}
    return pa.table({key: rows.column(key) for key in keys} | named)


def _created(events: SourceTable, new: pa.Table, after: int) -> pa.ChunkedArray:
    """When each row was made: when it became known, and when it was loaded for one that corrects an earlier one."""
    known, loaded = new.column(KNOWN_AT), pa.scalar(events.state().loads[-1].at, TIMESTAMP)
    if not events.source.known_at:
        return known
    if events.source.unique and after:
        keys = [*events.source.unique, EVENT_TIMESTAMP]
        earlier = pl.DataFrame(events.rows_named_as(new, until=after).select(keys))
        given = pl.DataFrame(new.select(keys)).with_row_index("row")
        corrected = given.join(earlier, on=keys, how="semi").get_column("row").to_list()
        mask = pa.array(pl.Series(range(new.num_rows)).is_in(corrected).to_arrow())
        known = pc.if_else(mask, loaded, known)
    return pc.coalesce(known, loaded)
