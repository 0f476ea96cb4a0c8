"""Rows of a view's vectors, kept in memory: as its offline table has them, and those that were pushed online lately.

They are brought up to date from new files alone. Rows pushed online are the tail of a search: they may not be in the
offline table, or not be seen there yet.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from cachetools import LRUCache

from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP, VectorIndex
from toque.featurestore.definitions.views import FeatureView, projection
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.offline.versions import Version, scan
from toque.featurestore.online.keys import RequestKeys
from toque.featurestore.online.redis_store import Key, OnlineStore, RecentKeys
from toque.featurestore.online.serving import Lookup
from toque.featurestore.rows import conform, offline_schema
from toque.featurestore.vectors.builds import IndexBuilds, LoadedIndex, Loader
from toque.featurestore.vectors.rows import Layers, VectorRows
from toque.featurestore.vectors.searching import positions_of
from toque.registry.times import epoch_us, from_epoch_us

TAIL_ROWS = 10_000
TAIL_SHARE = 0.1
"""A tail above both is sorted into the base; not into that of an index, which takes it at its next refresh."""
_KEPT_FIELDS = 8  # vector fields that a process keeps in memory
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Followed:
    """Rows of a vector field at one moment. version: of the offline table; loaded: the index over the base, if it has one."""

    layers: Layers
    version: int | None
    loaded: LoadedIndex | None


class FollowedRows:
    """Rows of one vector field, followed by one process; `recent` are those pushed online since. Safe for threads."""

    def __init__(self, view: FeatureView, field: str) -> None:
        self._field = field
        self._now = Followed(_empty(view, field), None, None)
        self._semantics = view.semantics()
        self._paths: frozenset[str] = frozenset()
        self._unusable: int | None = None
        self._looked = -float("inf")
        self._lock = threading.Lock()
        self._loader = Loader()
        self.recent = RecentRows()

    def expire(self) -> None:
        """Have the next read look at the table, as rows were just written."""
        self._looked = -float("inf")

    def read(
        self,
        offline: OfflineStore,
        builds: IndexBuilds,
        view: FeatureView,
        index: VectorIndex,
        *,
        max_age_s: float,
    ) -> Followed:
        """Read the rows as they are now. max_age_s: how long ago table and index may have been looked at."""
        with self._lock:
            if view.semantics() != self._semantics:
                self._now, self._semantics = Followed(_empty(view, self._field), None, None), view.semantics()
                self.expire()
            if time.monotonic() - self._looked >= max_age_s:
                looked = time.monotonic()
                self._take_index(self._loader.newest(builds, view, index), view)
                self._follow(offline, view)
                self._looked = looked
            return self._now

    def _take_index(self, loaded: LoadedIndex | None, view: FeatureView) -> None:
        """Begin with the rows of an index that is new."""
        number = None if loaded is None else loaded.build.number
        if loaded is None and self._now.loaded is not None:
            self._now = Followed(_empty(view, self._field), None, None)
        elif loaded is not None and loaded is not self._now.loaded and number != self._unusable:
            layers = Layers(loaded.rows, _none(view, self._field))
            self._now = Followed(layers, loaded.build.table_version, loaded)
            self._paths = frozenset(loaded.build.paths)

    def _follow(self, offline: OfflineStore, view: FeatureView) -> None:
        version, now = offline.version(view), self._now
        if version is None:
            self._now, self._paths = Followed(_empty(view, self._field), None, None), frozenset()
            return
        if version.number == now.version:
            return
        added = None
        if now.version is not None:
            added = offline.added_since(view, self._paths, now.version, version)
        schema = offline_schema(view)
        if added is None:  # the first time; and where rows have gone, which an index would still find
            self._unusable = None if now.loaded is None else now.loaded.build.number
            base = VectorRows.of(view, self._field, scan(version, version.files, schema))
            self._now = Followed(Layers(base, _none(view, self._field)), version.number, None)
        else:
            layers = self._extended(view, scan(version, added, schema)) if added else now.layers
            self._now = Followed(layers, version.number, now.loaded)
        self._paths = paths_of(version)

    def _extended(self, view: FeatureView, rows: pa.Table) -> Layers:
        base, tail = self._now.layers.base, self._now.layers.tail
        newer = pa.concat_tables([whole(tail), rows])
        if self._now.loaded is not None or newer.num_rows <= max(TAIL_ROWS, TAIL_SHARE * len(base)):
            return Layers(base, VectorRows.of(view, self._field, newer))
        everything = pa.concat_tables([whole(base), newer])
        return Layers(VectorRows.of(view, self._field, everything), _none(view, self._field))


def paths_of(version: Version) -> frozenset[str]:
    """Paths of a version's files."""
    return frozenset(file.path for file in version.files)


def whole(rows: VectorRows) -> pa.Table:
    """All rows, in the view's offline schema."""
    return rows.taken(np.arange(len(rows)))


def _none(view: FeatureView, field: str) -> VectorRows:
    return VectorRows.of(view, field, offline_schema(view).empty_table())


def _empty(view: FeatureView, field: str) -> Layers:
    return Layers(_none(view, field), _none(view, field))


class Followers:
    """The vector fields that a process searches, the least recently searched dropped first. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: LRUCache[tuple[str, ...], FollowedRows] = LRUCache(_KEPT_FIELDS)

    def of(self, where: str, view: FeatureView, field: str) -> FollowedRows:
        """Get the follower of a field. where: store and project of the view."""
        key = (where, view.stored_as, field)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = FollowedRows(view, field)
            return self._kept[key]

    def expire(self, where: str, view: str) -> None:
        """Have the next search of a view look at its table, as rows were just written."""
        with self._lock:
            found = [self._kept[key] for key in list(self._kept) if key[:2] == (where, view)]
        for rows in found:
            rows.expire()


FOLLOWERS = Followers()
"""Of this process: all feature stores that are opened in it share the rows."""


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
