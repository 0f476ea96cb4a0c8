"""Streams as functions: tell how far each was read and how far its consumers are behind, and replay one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from toque.featurestore import UnreadableSource
from toque.featurestore.definitions.stream_source import Connection
from toque.featurestore.stream_views import FilledView, fill_views
from toque.featurestore.streams.registered import RegisteredConnection, connect
from toque.featurestore.streams.replay import ReplayedPartition, read_again
from toque.featurestore.streams.table import StreamTable
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Retries
from toque.functions.runtime.function import function
from toque.functions.runtime.secret import secret_value, use_secrets
from toque.registry.times import from_epoch_us


class StreamPartition(BaseModel, frozen=True):
    """Partition of a stream as its table has it.

    position: of the next message to store. lag: messages from there on, None if the log does not answer. known_at: when the
    last message became known; watermark: greatest event time.
    """

    partition: int
    position: int
    lag: int | None = None
    known_at: datetime | None = None
    watermark: datetime | None = None


class StreamStatus(BaseModel, frozen=True):
    """State of a stream source. views: over it; unreadable: why its log does not answer, empty if it does."""

    source: str
    reads: str
    owner: str
    views: list[str]
    partitions: list[StreamPartition]
    unreadable: str = ""


@function(http=True, role="viewer", timeout_s=600, in_thread=True)
def stream_status(
    sources: Annotated[
        list[str] | None, Field(description="Names of stream sources; all of the project unless given.")
    ] = None,
) -> list[StreamStatus]:
    """Tell of stream sources what they read, how far, how many messages are behind that, and which views use them.

    Raises: UnknownDefinition.
    """
    features = context().features()
    views = features.list_feature_views()
    found = []
    for name in features.list_stream_sources() if sources is None else sources:
        table = features.stream_table(name)
        described = table.source.reads.describe()
        partitions, unreadable = _partitions(name)
        found.append(
            StreamStatus(
                source=name,
                reads=f"{described['type']} {described.get('topic') or described.get('key')}",
                owner=table.source.owner,
                views=[each.name for each in views if each.reads_from(table.source)],
                partitions=partitions,
                unreadable=unreadable,
            )
        )
    return found


class StreamReplay(BaseModel, frozen=True):
    """Result of a replay: the partitions that were read again, and the views that were filled anew."""

    source: str
    partitions: list[ReplayedPartition]
    views: list[FilledView]


@function(http=True, timeout_s=24 * 3600, retries=Retries(max_attempts=3), max_concurrency=1)
def replay_stream(
    source: Annotated[str, Field(description="Name of a stream source.")],
    start: Annotated[
        datetime | None,
        Field(
            description=(
                "Time since which the log took the messages to read again, with an offset from UTC; "
                "all that it has unless given."
            )
        ),
    ] = None,
    *,
    stored: Annotated[
        bool,
        Field(
            description="Whether the log is left unread, and the views are filled from the events that are stored."
        ),
    ] = False,
) -> StreamReplay:
    """Read a stream's log again by its definition in force, and fill all views over it anew; each event stays stored once.

    Consumers go on meanwhile. Repeat it if it was killed.
    Raises: UnknownDefinition; UnreadableSource if the log does not have the messages.
    """
    features = context().features()
    table = features.stream_table(source)
    if stored:
        return StreamReplay(source=source, partitions=[], views=fill_views(features, table))
    with connected(table) as connection:
        partitions = read_again(table, connection, start=start)
    return StreamReplay(source=source, partitions=partitions, views=fill_views(features, table))


def _partitions(name: str) -> tuple[list[StreamPartition], str]:
    """Read the places of a stream's partitions, and how many messages are behind them, if the log answers."""
    table, lag, unreadable = context().features().stream_table(name), dict[int, int](), ""
    known = table.known_partitions()
    try:
        with connected(table) as connection:
            known = sorted({*known, *connection.partitions()})
            places = table.places(known)
            lag = connection.lag({each: place.position if place else None for each, place in places.items()})
            if isinstance(connection, RegisteredConnection):
                connection.schemas.require_answer()
    except UnreadableSource as error:
        unreadable, places = str(error), table.places(known)
    partitions = [
        StreamPartition(
            partition=each,
            position=place.position if place else 0,
            lag=lag.get(each),
            known_at=from_epoch_us(place.known_us) if place else None,
            watermark=from_epoch_us(place.watermark_us) if place and place.watermark_us else None,
        )
        for each, place in places.items()
    ]
    return partitions, unreadable


@contextmanager
def connected(table: StreamTable) -> Iterator[Connection]:
    """Connect to the log of a source with its secrets, within the block. Raises: MissingSecret, UnreadableSource."""
    source = table.source
    with use_secrets(f"stream source {source.name!r}", source.secret_names, context().find_secret):
        connection = connect(table, secret_value)
        try:
            yield connection
        finally:
            connection.close()
