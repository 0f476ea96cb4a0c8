"""Searches of a view's vectors, over the offline table's rows and those pushed online since; refreshes of its index.

A refresh reads the rows that came since the last build, adds them to the lists, and measures these against exact
search.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.dtypes import Vector
from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.definitions.fields import Metric, VectorIndex
from toque.featurestore.definitions.views import FeatureView, digest
from toque.featurestore.errors import FeatureStoreError, InvalidDefinition
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.offline.versions import File, Version
from toque.featurestore.online.redis_store import OnlineStore
from toque.featurestore.vectors.builds import (
    VECTORS,
    IndexBuild,
    IndexBuilds,
    LoadedIndex,
    Loader,
    write_index,
)
from toque.featurestore.vectors.following import FOLLOWERS, paths_of
from toque.featurestore.vectors.nearest import (
    OVERSAMPLED,
    SHARES,
    InvertedLists,
    compared,
    distances_of,
    lists_for,
    ordered,
)
from toque.featurestore.vectors.rows import ROWS_AT_ONCE, Bools, Ints, VectorRows
from toque.featurestore.vectors.searching import (
    Ask,
    Embed,
    Neighbours,
    Searched,
    Where,
    checked_k,
    conditions_of,
    index_of,
)
from toque.registry.times import epoch_us

SAMPLED = 200  # rows by which lists are measured
_MEASURED_NEIGHBOURS = 10  # of each
_DEAD_SHARE = 0.3
"""Share of the indexed rows that are no longer visible above which the lists are built anew."""
_FEW_LISTS = 0.5
"""Share of the lists that so many rows should have below which they are built anew."""


class Source(Protocol):
    """What a search needs of a feature store."""

    offline: OfflineStore

    @property
    def place(self) -> str:
        """Store and project, for what a process keeps of them."""
        ...

    @property
    def has_online(self) -> bool:
        """Whether there is an online store."""
        ...

    @property
    def online(self) -> OnlineStore:
        """Online store of the features."""
        ...

    def now(self) -> datetime:
        """Current time of the store's clock."""
        ...

    def builds(self, view: str, field: str) -> IndexBuilds:
        """Builds of the index of a vector field."""
        ...

    def layouts(self, view: str) -> list[RowLayout]:
        """Layouts of all versions of a view."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """How a search is made.

    field: by default the view's only vector; where: conditions on other columns; at: time as of which, by default now, with
    the rows that were just pushed; exact: compare every row, even where there is an index; embed: makes the vector of a text; max_age_s: how long ago the offline table may have been
    looked at.
    """

    field: str | None = None
    k: int = 10
    where: Where | None = None
    at: datetime | None = None
    exact: bool = False
    embed: Embed | None = None
    max_age_s: float = 1.0


def search(source: Source, view: FeatureView, ask: Ask, options: Options) -> Neighbours:
    """Find the rows of a view that are nearest to what is asked.

    Raises: InvalidRows, InvalidDefinition, UnknownDefinition, OnlineStoreUnavailable.
    """
    index = index_of(view, options.field)
    k, conditions = checked_k(options.k), conditions_of(view, options.where or {})
    rows = FOLLOWERS.of(source.place, view, index.field)
    builds = source.builds(view.stored_as, index.field)
    now = rows.read(source.offline, builds, view, index, max_age_s=options.max_age_s)
    layers = now.layers
    if options.at is None and source.has_online:
        layouts = source.layouts(view.name)
        layers = rows.recent.extend(
            layers, now.version, source.online, view, layouts, max_age_s=options.max_age_s
        )
    loaded = None if options.exact else now.loaded
    searched = Searched(view, index, layers, now.version, loaded)
    at = source.now() if options.at is None else options.at
    return searched.search(ask, k=k, where=conditions, at=at, embed=options.embed)


def refresh(source: Source, view: FeatureView, field: str | None) -> IndexBuild | None:
    """Bring the index of a view up to date; returns the build, or None if no row came since the last.

    Raises: InvalidDefinition if the view declares no index; RecallTooLow.
    """
    index = index_of(view, field)
    if index not in view.indexes:
        raise InvalidDefinition(
            f"feature view {view.name!r} declares no index over {index.field!r}; give it indexes=[VectorIndex({index.field!r})]"
        )
    builds = source.builds(view.stored_as, index.field)
    made = Refresh(source.offline, builds, view, index, source.now()).run(
        Loader().newest(builds, view, index)
    )
    FOLLOWERS.expire(source.place, view.stored_as)
    return made


def of_vectors(view: FeatureView) -> bool:
    """Whether a view has a vector, so that rows pushed online are noted for searches."""
    return any(isinstance(f.dtype, Vector) for f in view.schema)


class RecallTooLow(FeatureStoreError, ValueError):  # noqa: N818  # the name says what happened, as in errors
    """An index finds too few of the nearest; it was not stored, and searches go on as before."""


class Measured(NamedTuple):
    """What lists were measured to find: probes, 0 if none are enough; `recall` of the ten nearest of `sampled` stored vectors."""

    probes: int
    recall: float
    sampled: int


@dataclass(frozen=True, slots=True)
class Refresh:
    """Refresh of the index of one field. now: what counts as visible."""

    offline: OfflineStore
    builds: IndexBuilds
    view: FeatureView
    index: VectorIndex
    now: datetime

    def run(self, loaded: LoadedIndex | None) -> IndexBuild | None:
        """Store a build with the rows that came since `loaded`; returns it, or None if nothing came.

        Raises: RecallTooLow.
        """
        version = self.offline.version(self.view)
        if version is None:
            return None
        added = None if loaded is None else self._added(loaded.build, version)
        if loaded is not None and added == []:
            return None
        folder = Path(tempfile.mkdtemp(prefix="toque-index-"))
        try:
            before, files = (None, list(version.files)) if added is None else (loaded, added)
            rows = self._rows(before, version, files, folder / VECTORS)
            lists, found = self._lists(before, rows)
            return self._stored(folder, rows, lists, found, version)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _added(self, build: IndexBuild, version: Version) -> list[File] | None:
        return self.offline.added_since(self.view, frozenset(build.paths), build.table_version, version)

    def _rows(
        self, before: LoadedIndex | None, version: Version, files: list[File], path: Path
    ) -> VectorRows:
        """Rows of the index before, then those of the files, with the vectors of all in a new file."""
        return VectorRows.in_file(
            self.view,
            self.index.field,
            path,
            self._read(version, files),
            count=sum(each.fragment.count_rows() for each in files),
            before=None if before is None else before.rows,
        )

    def _lists(self, before: LoadedIndex | None, rows: VectorRows) -> tuple[InvertedLists, Measured]:
        """Lists of the rows that are visible now or will be: those before with what is new, or others where these no longer fit."""
        living, at_us = self._living(rows), epoch_us(self.now)
        if before is not None and not _outgrown(before.lists, living):
            lists = before.lists.extended(rows.vectors, living[living >= len(before.rows)])
            found = measured(rows, lists, self.index.least_recall, at_us=at_us)
            if found.probes:
                return lists, found
        lists = InvertedLists.build(rows.vectors, living, self.index.metric)
        return lists, measured(rows, lists, self.index.least_recall, at_us=at_us)

    def _read(self, version: Version, files: Sequence[File]) -> Iterator[pa.Table]:
        batches = self.offline.batches(self.view, version, files, start=None, end=None, rows=ROWS_AT_ONCE)
        return (rows for rows, _ in batches)

    def _living(self, rows: VectorRows) -> Ints:
        """Rows in the order in which they were added that have a vector and are, or will be, visible."""
        found: Ints = np.sort(
            rows.ids[rows.present & (rows.until > max(epoch_us(self.now), 0)) & (rows.since < rows.until)]
        )
        return found

    def _stored(
        self, folder: Path, rows: VectorRows, lists: InvertedLists, found: Measured, version: Version
    ) -> IndexBuild | None:
        if not found.probes:
            raise RecallTooLow(
                f"feature view {self.view.name!r}: an index over {self.index.field!r} finds {found.recall:.3f} of the ten nearest, less "
                f"than {self.index.least_recall}; lower least_recall, or search without an index"
            )
        write_index(folder, rows, lists)
        return self.builds.add(
            folder,
            {
                "metric": self.index.metric,
                "semantics": digest(self.view.semantics()),
                "table_version": version.number,
                "paths": sorted(paths_of(version)),
                "rows": len(rows),
                "indexed": len(lists.rows),
                "built_at": self.now,
                **found._asdict(),
            },
        )


def _outgrown(lists: InvertedLists, living: Ints) -> bool:
    """Whether too many of the indexed rows are gone, or too many came, for lists that were made for those before."""
    gone = not len(lists.rows) or np.isin(lists.rows, living).mean() < 1 - _DEAD_SHARE
    return bool(gone or lists.count < _FEW_LISTS * lists_for(len(living)))


def measured(rows: VectorRows, lists: InvertedLists, least_recall: float, *, at_us: int) -> Measured:
    """Measure lists on a sample of their own vectors, and find the fewest probes that are enough."""
    visible = rows.visible(at_us) & rows.present
    candidates = np.flatnonzero(visible & (rows.norms[rows.ids] > 0))
    sample = np.random.default_rng(1).permutation(candidates)[:SAMPLED]
    if len(candidates) <= _MEASURED_NEIGHBOURS:
        return Measured(1, 1.0, len(sample))
    farthest = _farthest(rows, lists.metric, visible, sample)
    reserve, recall = least_recall + (1 - least_recall) / 2, 0.0
    for share in SHARES:  # the least that leaves half of the allowed misses in reserve, else the most
        probes = math.ceil(share * lists.count)
        recall = _recall(rows, lists, visible, sample, farthest, probes)
        if recall >= reserve:
            return Measured(probes, recall, len(sample))
    return Measured(probes if recall >= least_recall else 0, recall, len(sample))


def _farthest(rows: VectorRows, metric: Metric, visible: Bools, sample: Ints) -> list[float]:
    """Distance of the last of the nearest others of each sampled row; all rows are compared, part by part."""
    ids, own = np.sort(rows.ids[visible]), rows.ids[sample]
    parts = [ids[at : at + ROWS_AT_ONCE] for at in range(0, len(ids), ROWS_AT_ONCE)]
    queries = rows.vectors[own]
    near = [
        part[compared(queries, rows.vectors[part], metric, k=min(2 * _MEASURED_NEIGHBOURS, len(part)))]
        for part in parts
    ]
    farthest = []
    for itself, query, candidates in zip(own, queries, np.concatenate(near, axis=1), strict=True):
        others = candidates[candidates != itself]
        distances = distances_of(rows.vectors[others], query, metric)
        farthest.append(float(np.partition(distances, _MEASURED_NEIGHBOURS - 1)[_MEASURED_NEIGHBOURS - 1]))
    return farthest


def _recall(
    rows: VectorRows,
    lists: InvertedLists,
    visible: Bools,
    sample: Ints,
    farthest: Sequence[float],
    probes: int,
) -> float:
    """Share of the nearest that the lists find. farthest: distance of the last of the nearest of each sampled row."""
    places = rows.places()
    allowed = visible[places[lists.rows]]
    hits = 0
    for position, last in zip(sample.tolist(), farthest, strict=True):
        query = np.array(rows.vectors[rows.ids[position]])
        at = places[lists.search(query, k=OVERSAMPLED * _MEASURED_NEIGHBOURS, allowed=allowed, probes=probes)]
        kept = ordered(rows, query, lists.metric, at[at != position], k=_MEASURED_NEIGHBOURS)
        hits += int((kept.distances <= last).sum())
    return hits / (_MEASURED_NEIGHBOURS * len(sample))
