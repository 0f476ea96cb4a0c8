"""Nearest vectors by exact comparison: a pass in float32 finds candidates, and float64 orders them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from toque.featurestore.definitions.vector_index import Metric
from toque.featurestore.vectors.rows import Floats, VectorRows
from toque.featurestore.vectors.visibility import Bools, Ints

_TOLERANCE = 1e-5  # of float32 scores; candidates that are so near the last one are compared in float64
_SPARSE = 0.25  # share of rows below which they are gathered first

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
