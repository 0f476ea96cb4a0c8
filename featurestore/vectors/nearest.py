"""Nearest vectors, exact or approximate.

Exact: a pass in float32 finds candidates, and float64 orders them. Approximate: of inverted lists a search scans
those whose centres are nearest to the query. A list holds codes of 4 bits for a few numbers each, many of which are
compared at once (product quantization, "fast scan"). What they propose is compared exactly afterwards, so only which
rows are found is approximate. faiss (the extra `vectors`) is imported late: it takes a while, and few processes search.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toque.featurestore.definitions.fields import Metric
from toque.featurestore.errors import FeatureStoreError
from toque.featurestore.vectors.rows import Bools, Floats, Ints, VectorRows

LISTS_FILE = "lists.faiss"
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Of the lists, how many a search scans; the least that reaches the recall is chosen."""
OVERSAMPLED = 20
"""Candidates for each neighbour wanted that are compared exactly."""
_TOLERANCE = 1e-5  # of float32 scores; candidates that are so near the last one are compared in float64
_SPARSE = 0.25  # share of rows below which they are gathered first
_CODE_BITS = 4
_CODES = 96  # of a vector, if that leaves no more than `_MOST_CODED` numbers to each
_MOST_CODED = 4
_TRAINED_ON = 64  # rows for each centre, which more improve little
_ROUNDS = 10  # of moving the centres
_LEAST_TRAINED = 2**_CODE_BITS  # the rows that a code of so many bits needs
_ADDED_AT_ONCE = 50_000

Distances = np.ndarray[Any, np.dtype[np.float64]]


class Found(NamedTuple):
    """Rows that were found: their positions, nearest first, and their distances."""

    positions: Ints
    distances: Distances


def nearest(rows: VectorRows, query: Floats, metric: Metric, *, among: Bools, k: int) -> Found:
    """Find the `k` nearest of some rows; of equal distance those with the least key.

    query: (length,). among: (rows,).
    """
    at = np.flatnonzero(among)
    if len(at) > k:
        gathered = len(at) < _SPARSE * len(rows)
        ids = rows.ids[at]
        vectors = rows.vectors[ids] if gathered else rows.vectors
        norms = rows.norms[ids] if gathered else rows.norms
        scores = _scores(vectors, norms, query, metric)
        scores = scores if gathered else scores[ids]
        last = np.partition(scores, k - 1)[k - 1]
        largest = (
            1.0 if metric is Metric.COSINE else float(norms.max(initial=0.0) + np.linalg.norm(query)) ** 2
        )
        at = at[scores <= last + _TOLERANCE * max(largest, 1.0)]
    return ordered(rows, query, metric, at, k=k)


def ordered(rows: VectorRows, query: Floats, metric: Metric, at: Ints, *, k: int) -> Found:
    """Order some rows by distance in float64, then key, and keep `k`."""
    distances = distances_of(rows.vectors[rows.ids[at]], query, metric)
    order = np.argsort(distances, kind="stable")
    if len(order) > k:
        order = order[distances[order] <= distances[order[k - 1]]]  # ties of the last one are settled by key
    if len(np.unique(distances[order])) < len(order):
        keys = rows.keys_at(at[order])
        order = order[sorted(range(len(order)), key=lambda i: (distances[order[i]], keys[i]))]
    return Found(at[order[:k]], distances[order[:k]])


def distances_of(vectors: Floats, query: Floats, metric: Metric) -> Distances:
    """Distances of vectors (rows, length) from a query (length,), in float64."""
    wide, asked = vectors.astype(np.float64), query.astype(np.float64)
    distances: Distances
    if metric is Metric.L2:
        distances = np.sqrt(((wide - asked) ** 2).sum(axis=1))
        return distances
    inner = (wide * asked).sum(axis=1)
    if metric is Metric.DOT:
        distances = -inner
        return distances
    lengths = np.sqrt((wide**2).sum(axis=1)) * np.sqrt((asked**2).sum())
    distances = 1.0 - np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0)
    return distances


def _scores(vectors: Floats, norms: Floats, query: Floats, metric: Metric) -> Floats:
    """Values in float32 that order as the distances do."""
    inner = vectors @ query
    if metric is Metric.DOT:
        scores = -inner
    elif metric is Metric.L2:
        scores = norms**2 - 2 * inner
    else:
        length = np.linalg.norm(query)
        scores = -np.divide(inner, norms * length, out=np.zeros_like(inner), where=norms * length > 0)
    return scores


def merged(parts: Sequence[tuple[VectorRows, Found]], *, k: int) -> list[tuple[VectorRows, int, float]]:
    """Merge what was found in several sets of rows: set, position and distance of the `k` nearest."""
    found = [
        (distance, key, rows, position)
        for rows, (positions, distances) in parts
        for key, position, distance in zip(
            rows.keys_at(positions), positions.tolist(), distances.tolist(), strict=True
        )
    ]
    found.sort(key=lambda each: each[:2])
    return [(rows, position, distance) for distance, _, rows, position in found[:k]]


@dataclass(frozen=True, slots=True)
class InvertedLists:
    """Inverted lists of some of the rows in a file. index: faiss's; rows: (indexed,) row in the file of each entry."""

    index: Any
    rows: Ints
    metric: Metric

    @classmethod
    def build(cls, vectors: Floats, rows: Ints, metric: Metric) -> "InvertedLists":
        """Build the lists of some rows of a file. vectors: (rows in the file, length)."""
        faiss = _faiss()
        length, count = vectors.shape[1], lists_for(len(rows))
        measure = _measure(metric)
        centres = faiss.IndexFlat(length, measure)
        index = faiss.IndexIVFPQFastScan(centres, length, count, codes_for(length), _CODE_BITS, measure)
        # Other vectors than those of length one may lie far apart, which would leave codes too coarse for what lies near.
        index.by_residual = metric is not Metric.COSINE
        index.cp.niter, index.cp.max_points_per_centroid = _ROUNDS, _TRAINED_ON
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        sample = np.random.default_rng(0).permutation(rows)[: _TRAINED_ON * count]
        index.train(_enough(_prepared(vectors[np.sort(sample)], metric)))
        return cls(index, np.empty(0, dtype=np.int64), metric).extended(vectors, rows)

    @property
    def count(self) -> int:
        """Number of lists, scanned or not."""
        return int(self.index.nlist)

    def extended(self, vectors: Floats, rows: Ints) -> "InvertedLists":
        """Add rows of a file; the lists themselves change."""
        for at in range(0, len(rows), _ADDED_AT_ONCE):
            self.index.add(_prepared(vectors[rows[at : at + _ADDED_AT_ONCE]], self.metric))
        return InvertedLists(self.index, np.concatenate([self.rows, rows]), self.metric)

    def save(self, folder: Path) -> None:
        """Write the lists to a folder."""
        _faiss().write_index(self.index, str(folder / LISTS_FILE))
        np.save(folder / "indexed.npy", self.rows)

    @classmethod
    def load(cls, folder: Path, metric: Metric) -> "InvertedLists":
        """Read lists from a folder."""
        return cls(_faiss().read_index(str(folder / LISTS_FILE)), np.load(folder / "indexed.npy"), metric)

    def search(self, query: Floats, *, k: int, allowed: Bools | None, probes: int) -> Ints:
        """Find rows in the file that are probably among the nearest.

        allowed: (indexed,), None for all. probes: lists that are scanned.
        """
        faiss = _faiss()
        parameters = faiss.SearchParametersIVF(nprobe=min(probes, self.count))
        if allowed is not None:
            packed = np.packbits(allowed, bitorder="little")
            parameters.sel = faiss.IDSelectorBitmap(packed)
        _, found = self.index.search(_prepared(query[None], self.metric), k, params=parameters)
        entries = found[0]
        rows: Ints = self.rows[entries[entries >= 0]]
        return rows


def lists_for(rows: int) -> int:
    """Number of lists for so many rows: few, as a search that must scan all of them takes longer with more."""
    return max(1, math.isqrt(rows))


def compared(queries: Floats, vectors: Floats, metric: Metric, *, k: int) -> Ints:
    """Compare each query (queries, length) with all vectors in float32: (queries, k) of the nearest; k: the vectors at most."""
    found: Ints
    _, found = _faiss().knn(
        _prepared(queries, metric), _prepared(vectors, metric), k, metric=_measure(metric)
    )
    return found


def codes_for(length: int) -> int:
    """Number of codes of a vector: as many as `_CODES`, but each of a whole number of its numbers, and of few."""
    sizes = [size for size in range(1, _MOST_CODED + 1) if length % size == 0]
    return length // next((size for size in sizes if length // size <= _CODES), sizes[-1])


def _measure(metric: Metric) -> Any:
    faiss = _faiss()
    return faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT


def _faiss() -> Any:
    """The library, whose own types do not cover what it does when it is used. Raises: FeatureStoreError without it."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise FeatureStoreError(
            "an index of vectors needs faiss; install it where functions and searches run: pip install 'toque[vectors]'"
        ) from error
    return faiss


def _enough(sample: Floats) -> Floats:
    """A sample of as many rows as codes are trained on at least; some more than once, zeros where there is none."""
    if len(sample) >= _LEAST_TRAINED:
        return sample
    if not len(sample):
        return np.zeros((_LEAST_TRAINED, sample.shape[1]), dtype=np.float32)
    repeated: Floats = sample[np.arange(_LEAST_TRAINED) % len(sample)]
    return repeated


def _prepared(vectors: Floats, metric: Metric) -> Floats:
    """Vectors as the lists compare them: of length one for angles."""
    copied = np.ascontiguousarray(vectors, dtype=np.float32)
    if metric is not Metric.COSINE:
        return copied
    lengths = np.sqrt(np.einsum("nd,nd->n", copied, copied))[:, None]
    normal: Floats = np.divide(copied, lengths, out=np.zeros_like(copied), where=lengths > 0)
    return normal
