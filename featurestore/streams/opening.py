"""Opening of a stream source: its log is connected to, and the views over it are looked up."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from toque.featurestore.definitions.stream_source import Connection
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import UnreadableSource
from toque.featurestore.online.redis_store import OnlineStore
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.registered import RegisteredConnection, Schemas
from toque.featurestore.streams.table import StreamTable, rewrites_of
from toque.registry.times import Clock

if TYPE_CHECKING:
    from toque.featurestore.definitions.batch_source import Secrets
    from toque.featurestore.store import FeatureStore


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


def connect(table: StreamTable, secrets: Secrets) -> Connection:
    """Connect to the log of a source; its messages come as JSON. Raises: UnreadableSource."""
    log, declared = table.source.reads.connect(secrets), table.source.schemas
    return (
        log
        if declared is None
        else RegisteredConnection(log, Schemas.of(declared, table.table.store, secrets))
    )
