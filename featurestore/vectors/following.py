"""Rows of a view's vectors as its offline table has them, kept in memory and brought up to date from new files alone."""

import threading
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from cachetools import LRUCache

from toque.featurestore.definitions.vector_index import VectorIndex
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.offline.versions import Version, scan
from toque.featurestore.rows import offline_schema
from toque.featurestore.vectors.builds import IndexBuilds, LoadedIndex, Loader
from toque.featurestore.vectors.layers import Layers
from toque.featurestore.vectors.recent_rows import RecentRows
from toque.featurestore.vectors.rows import VectorRows

TAIL_ROWS = 10_000
TAIL_SHARE = 0.1
"""A tail above both is sorted into the base; not into that of an index, which takes it at its next refresh."""
_KEPT = 8  # vector fields that a process keeps in memory


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
        self._kept: LRUCache[tuple[str, ...], FollowedRows] = LRUCache(_KEPT)

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
