"""Approximate search over many vectors: a graph of neighbours (HNSW) over vectors of 8 bits a number.

What the graph proposes is compared exactly afterwards, so only which rows are found is approximate. faiss is imported late: it
takes a while, and few processes search.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.definitions.vector_index import Metric
from featurestore.vectors.rows import Floats
from featurestore.vectors.visibility import Bools, Ints

LINKS = 16
BUILD_BREADTH = 100
BREADTHS = (32, 64, 128, 256, 512)
"""How many candidates a search keeps, of which the least that reaches the recall is chosen."""
OVERSAMPLED = 4
"""Candidates for each neighbour wanted that are compared exactly."""
_TRAINED_ON = 100_000
_ADDED_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class Graph:
    """Graph over some of the rows in a file. index: faiss's; rows: (nodes,) row in the file of each node."""

    index: Any
    rows: Ints
    metric: Metric

    @classmethod
    def build(cls, vectors: Floats, rows: Ints, metric: Metric) -> "Graph":
        """Build a graph over some rows of a file. vectors: (rows in the file, length)."""
        faiss = _faiss()
        measure = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, LINKS, measure)
        index.hnsw.efConstruction = BUILD_BREADTH
        sample = np.random.default_rng(0).permutation(rows)[:_TRAINED_ON]
        index.train(_prepared(vectors[np.sort(sample)], metric))
        return cls(index, np.empty(0, dtype=np.int64), metric).extended(vectors, rows)

    def extended(self, vectors: Floats, rows: Ints) -> "Graph":
        """Add rows of a file; the graph itself changes."""
        for at in range(0, len(rows), _ADDED_AT_ONCE):
            self.index.add(_prepared(vectors[rows[at : at + _ADDED_AT_ONCE]], self.metric))
        return Graph(self.index, np.concatenate([self.rows, rows]), self.metric)

    def save(self, folder: Path) -> None:
        """Write the graph to a folder."""
        faiss = _faiss()
        faiss.write_index(self.index, str(folder / "graph.faiss"))
        np.save(folder / "nodes.npy", self.rows)

    @classmethod
    def load(cls, folder: Path, metric: Metric) -> "Graph":
        """Read a graph from a folder."""
        faiss = _faiss()
        return cls(faiss.read_index(str(folder / "graph.faiss")), np.load(folder / "nodes.npy"), metric)

    def search(self, query: Floats, *, k: int, allowed: Bools | None, breadth: int) -> Ints:
        """Find rows in the file that are probably among the nearest.

        allowed: (nodes,), None for all. breadth: candidates that are kept while searching.
        """
        faiss = _faiss()
        parameters = faiss.SearchParametersHNSW(efSearch=max(breadth, k))
        if allowed is not None:
            packed = np.packbits(allowed, bitorder="little")
            parameters.sel = faiss.IDSelectorBitmap(packed)
        _, nodes = self.index.search(_prepared(query[None], self.metric), k, params=parameters)
        found = nodes[0]
        rows: Ints = self.rows[found[found >= 0]]
        return rows


def _faiss() -> Any:
    """The library, whose own types do not cover what it does when it is used."""
    import faiss

    return faiss


def _prepared(vectors: Floats, metric: Metric) -> Floats:
    """Vectors as the graph compares them: of length one for angles."""
    copied = np.ascontiguousarray(vectors, dtype=np.float32)
    if metric is not Metric.COSINE:
        return copied
    lengths = np.sqrt(np.einsum("nd,nd->n", copied, copied))[:, None]
    normal: Floats = np.divide(copied, lengths, out=np.zeros_like(copied), where=lengths > 0)
    return normal
