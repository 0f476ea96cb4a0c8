"""Refresh of an index: rows that came since the last build are read, added to its graph, and measured against exact search."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from featurestore.definitions.times import to_microseconds
from featurestore.definitions.vector_index import VectorIndex
from featurestore.definitions.views import FeatureView, digest
from featurestore.errors import FeatureStoreError
from featurestore.offline.tables import File, OfflineStore, Version
from featurestore.vectors.builds import VECTORS, IndexBuild, IndexBuilds, LoadedIndex, write_index
from featurestore.vectors.following import paths_of
from featurestore.vectors.graph import BREADTHS, OVERSAMPLED, Graph
from featurestore.vectors.nearest import nearest, ordered
from featurestore.vectors.rows import ROWS_AT_ONCE, VectorRows
from featurestore.vectors.visibility import Bools, Ints

SAMPLED = 200
_NEIGHBOURS = 10
_DEAD_SHARE = 0.3
"""Share of a graph's nodes that are no longer visible above which it is built anew."""


class RecallTooLow(FeatureStoreError, ValueError):  # noqa: N818  # the name says what happened, as in errors
    """An index finds too few of the nearest; it was not stored, and searches go on as before."""


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
            rows, graph = self._rows(loaded, version, added, folder / VECTORS)
            return self._stored(folder, rows, graph, version)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _added(self, build: IndexBuild, version: Version) -> list[File] | None:
        return self.offline.added_since(self.view, frozenset(build.paths), build.table_version, version)

    def _rows(
        self, loaded: LoadedIndex | None, version: Version, added: list[File] | None, path: Path
    ) -> tuple[VectorRows, Graph]:
        """All rows, with their vectors in a new file, and a graph over those that are visible now or will be."""
        if added is None:
            loaded, added = None, list(version.files)
        count = sum(each.fragment.count_rows() for each in added)
        rows = VectorRows.in_file(
            self.view,
            self.index.field,
            path,
            self._read(version, added),
            count=count,
            before=None if loaded is None else loaded.rows,
        )
        living = self._living(rows)
        if loaded is None or not np.isin(loaded.graph.rows, living).mean() >= 1 - _DEAD_SHARE:
            return rows, Graph.build(rows.vectors, living, self.index.metric)
        return rows, loaded.graph.extended(rows.vectors, living[living >= len(loaded.rows)])

    def _read(self, version: Version, files: Sequence[File]) -> Iterator[pa.Table]:
        batches = self.offline.batches(self.view, version, files, start=None, end=None, rows=ROWS_AT_ONCE)
        return (rows for rows, _ in batches)

    def _living(self, rows: VectorRows) -> Ints:
        """Rows in the order in which they were added that have a vector and are, or will be, visible."""
        found: Ints = np.sort(
            rows.ids[
                rows.present & (rows.until > max(to_microseconds(self.now), 0)) & (rows.since < rows.until)
            ]
        )
        return found

    def _stored(self, folder: Path, rows: VectorRows, graph: Graph, version: Version) -> IndexBuild | None:
        breadth, recall, sampled = measured(
            rows, graph, self.index.least_recall, at_us=to_microseconds(self.now)
        )
        if breadth == 0:
            raise RecallTooLow(
                f"feature view {self.view.name!r}: an index over {self.index.field!r} finds {recall:.3f} of the ten nearest, less "
                f"than {self.index.least_recall}; lower least_recall, or search without an index"
            )
        write_index(folder, rows, graph)
        return self.builds.add(
            folder,
            {
                "metric": self.index.metric,
                "semantics": digest(self.view.semantics()),
                "table_version": version.number,
                "paths": sorted(paths_of(version)),
                "rows": len(rows),
                "nodes": len(graph.rows),
                "built_at": self.now,
                "breadth": breadth,
                "recall": recall,
                "sampled": sampled,
            },
        )


def measured(rows: VectorRows, graph: Graph, least_recall: float, *, at_us: int) -> tuple[int, float, int]:
    """Measure a graph on a sample of its own vectors: the least breadth that is good enough, its recall, and how many were asked.

    A breadth of 0 tells that none is.
    """
    visible = rows.visible(at_us) & rows.present
    candidates = np.flatnonzero(visible & (rows.norms[rows.ids] > 0))
    sample = np.random.default_rng(1).permutation(candidates)[:SAMPLED]
    if len(candidates) <= _NEIGHBOURS:
        return BREADTHS[0], 1.0, len(sample)
    farthest = []
    for position in sample.tolist():
        others = visible.copy()
        others[position] = False
        query = np.array(rows.vectors[rows.ids[position]])
        found = nearest(rows, query, graph.metric, among=others, k=_NEIGHBOURS)
        farthest.append(float(found.distances[-1]))
    reserve, recall = least_recall + (1 - least_recall) / 2, 0.0
    for breadth in (
        BREADTHS
    ):  # the least that leaves half of the allowed misses in reserve, else the widest that is good enough
        recall = _recall(rows, graph, visible, sample, farthest, breadth)
        if recall >= reserve:
            return breadth, recall, len(sample)
    return (BREADTHS[-1] if recall >= least_recall else 0), recall, len(sample)


def _recall(
    rows: VectorRows, graph: Graph, visible: Bools, sample: Ints, farthest: Sequence[float], breadth: int
) -> float:
    """Share of the nearest that the graph finds. farthest: distance of the last of the nearest of each sampled row."""
    places = rows.places()
    allowed = visible[places[graph.rows]]
    hits = 0
    for position, last in zip(sample.tolist(), farthest, strict=True):
        query = np.array(rows.vectors[rows.ids[position]])
        at = places[graph.search(query, k=OVERSAMPLED * _NEIGHBOURS, allowed=allowed, breadth=breadth)]
        kept = ordered(rows, query, graph.metric, at[at != position], k=_NEIGHBOURS)
        hits += int((kept.distances <= last).sum())
    return hits / (_NEIGHBOURS * len(sample))
