"""Views over a stream source: opened with it for its consumers, and filled anew from its stored events.

A view's offline rows are then replaced in one commit by those that follow from all stored events, and its online rows by
the newest of them. Consumers that hold what was stored before begin anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.batch_source import Secrets
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.stream_source import Connection
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import UnreadableSource
from toque.featurestore.online.redis_store import OnlineStore
from toque.featurestore.rows import conform
from toque.featurestore.store import FeatureStore
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.refresh import new_rows
from toque.featurestore.streams.registered import connect
from toque.featurestore.streams.replay import view_rows
from toque.featurestore.streams.table import StreamTable, announce_rewrite, rewrites_of
from toque.registry.times import Clock


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Stream source whose log was connected to, with the views over it."""

    table: StreamTable
    views: list[FeatureView]
    connection: Connection
    partitions: tuple[int, ...]
    online: OnlineStore | None
    clock: Clock
    rewrites: int

    def consumer(self, owned: Callable[[], Collection[int]] | None = None) -> StreamConsumer:
        """Make a consumer of the partitions that are its own, by default of all."""
        return StreamConsumer(
            self.table,
            self.views,
            self.connection,
            online=self.online,
            owned=owned or (lambda: self.partitions),
            clock=self.clock,
            rewrites=self.rewrites,
            partitions=self.partitions,
        )


def open_stream(features: FeatureStore, source: str, *, secrets: Secrets) -> OpenStream:
    """Open a source in force, for all views over it.

    Raises: UnknownDefinition; UnreadableSource if the log does not answer, or is not what the source declares;
    OnlineStoreUnavailable.
    """
    online = features.online if features.has_online else None
    rewrites = rewrites_of(online, source) if online is not None else 0  # before the definitions are read
    table = features.stream_table(source)
    connection = connect(table, secrets)
    partitions = tuple(connection.partitions())
    if len(partitions) > 1 and not table.source.partitioned_by:
        connection.close()
        raise UnreadableSource(
            f"stream source {source!r} has {len(partitions)} partitions; say by which fields the producers choose one: partitioned_by=[…]"
        )
    views = [view for view in features.list_feature_views() if view.reads_from(table.source)]
    return OpenStream(table, views, connection, partitions, online, features.now, rewrites)


class FilledView(BaseModel):
    """View that was filled anew. rows: offline; online: rows that were put there, removed: keys that have none any more."""

    model_config = ConfigDict(frozen=True)

    view: str
    rows: int
    online: int = 0
    removed: int = 0


def fill_views(features: FeatureStore, table: StreamTable) -> list[FilledView]:
    """Fill every view over a source anew from its stored events, offline and online; its consumers begin anew.

    What consumers write online in between may be overwritten by what was stored before it. So they begin anew a second time, and
    rows of the events that they have committed meanwhile are written after that.
    """
    views = [each for each in features.list_feature_views() if each.reads_from(table.source)]
    _begin_anew(features, table)
    filled = [_fill(features, table, each) for each in views]
    if features.has_online:
        _begin_anew(features, table)
        for view, (_, until) in zip(views, filled, strict=True):
            since = new_rows(view, table, until)
            if since is not None:
                features.online.write(view, _come(features, conform(view, since.rows, clock=features.now)))
    return [each for each, _ in filled]


def _begin_anew(features: FeatureStore, table: StreamTable) -> None:
    """Have consumers begin anew by the definitions in force: commits of what they hold now are refused from here on."""
    table.fence()
    if features.has_online:
        announce_rewrite(features.online, table.source.name)


def _fill(features: FeatureStore, table: StreamTable, view: FeatureView) -> tuple[FilledView, dict[int, int]]:
    """Fill one view; returns, too, the positions up to which it has the stream's events."""
    with tempfile.TemporaryDirectory(prefix="toque-replay-") as folder:
        rows = view_rows(view, table, Path(folder), clock=features.now)
        loads = {f"{table.source.stored_as}:{each}": position for each, position in rows.until.items()}
        features.offline.replace(view, rows.by_time(), loads=loads)
        put = removed = 0
        if features.has_online:
            pieces = (_come(features, each) for each in rows.by_key())
            put, removed = features.online.replace(view, pieces)
        return FilledView(view=view.name, rows=rows.count, online=put, removed=removed), rows.until


def _come(features: FeatureStore, rows: pa.Table) -> pa.Table:
    """Select the rows whose moment has come."""
    return rows.filter(pc.less_equal(rows.column(EVENT_TIMESTAMP), pa.scalar(features.now(), TIMESTAMP)))
