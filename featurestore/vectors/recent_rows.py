"""Rows that were pushed online lately, as the tail of a search: they may not be in the offline table, or not be seen there yet."""

import threading
import time
from typing import Any, TypeAlias

import pyarrow as pa

from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView, projection
from toque.featurestore.online.keys import RequestKeys
from toque.featurestore.online.recent import Key, RecentKeys
from toque.featurestore.online.redis_store import OnlineStore
from toque.featurestore.online.serving import Lookup
from toque.featurestore.rows import conform, offline_schema
from toque.featurestore.vectors.layers import Layers
from toque.featurestore.vectors.rows import VectorRows
from toque.featurestore.vectors.searched import positions_of
from toque.registry.times import epoch_us, from_epoch_us

Row: TypeAlias = dict[str, Any]


class RecentRows:
    """Rows of the recent keys of one view, read once each. Safe for threads."""

    def __init__(self) -> None:
        self._position = "0-0"
        self._rows: dict[Key, Row] = {}
        self._read_at = time.monotonic()
        self._settled: int | None = None
        self._extended: tuple[Layers, Layers] | None = None
        self._lock = threading.Lock()

    def extend(
        self,
        layers: Layers,
        version: int | None,
        online: OnlineStore,
        view: FeatureView,
        layouts: list[RowLayout],
        *,
        max_age_s: float,
    ) -> Layers:
        """Add the recent rows to a view's tail.

        version: of the offline table that the layers are of; rows that it has are no longer kept here. max_age_s: how long ago
        rows may have been read whose keys were not pushed since, such as one that was deleted.
        Raises: OnlineStoreUnavailable.
        """
        with self._lock:
            keys, self._position = RecentKeys(online, view).after(self._position)
            if time.monotonic() - self._read_at >= max_age_s:
                keys = list(dict.fromkeys([*self._rows, *keys]))
                self._rows, self._read_at = {}, time.monotonic()
            if keys:
                self._rows |= _read(online, view, layouts, keys)
            if version != self._settled:
                self._rows = {key: row for key, row in self._rows.items() if not _stored(layers, key, row)}
                self._settled, self._extended = version, None
            if not self._rows:
                return layers
            if keys or self._extended is None or self._extended[0] is not layers:
                self._extended = layers, _with_rows(layers, view, list(self._rows.values()))
            return self._extended[1]


def _read(
    online: OnlineStore, view: FeatureView, layouts: list[RowLayout], keys: list[Key]
) -> dict[Key, Row]:
    names = [key.name for key in view.join_keys]
    asked = [dict(zip(names, key, strict=True)) for key in keys]
    lookup = Lookup(online.project, projection(view), layouts)
    values = online.read(RequestKeys(online.project, view, names).of(asked))
    rows: dict[Key, Row] = {}
    for key, named, value in zip(keys, asked, values, strict=True):
        if value is not None:
            event, created, features = lookup.unpack(value)
            times = {
                EVENT_TIMESTAMP: from_epoch_us(event),
                CREATED_TIMESTAMP: from_epoch_us(created),
            }
            rows[key] = named | dict(zip(view.features, features, strict=True)) | times
    return rows


def _stored(layers: Layers, key: Key, row: Row) -> bool:
    """Whether the offline rows have the row of a key, or one that takes precedence over it by time."""
    times = (EVENT_TIMESTAMP, CREATED_TIMESTAMP)
    recent = tuple(row[name] for name in times)
    for rows in (layers.base, layers.tail):
        for position in positions_of(rows, key):
            stored = tuple(rows.table.column(name)[position].as_py() for name in times)
            if stored >= recent:
                return True
    return False


def _with_rows(layers: Layers, view: FeatureView, rows: list[Row]) -> Layers:
    newest = max((row[CREATED_TIMESTAMP] for row in rows), key=epoch_us)
    typed = conform(view, rows, clock=lambda: newest).select(offline_schema(view).names)
    tail = pa.concat_tables([layers.tail.taken(range(len(layers.tail))), typed])
    return Layers(layers.base, VectorRows.of(view, layers.base.field, tail))
