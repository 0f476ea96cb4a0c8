"""Sums by cluster, from which a mean and its cluster-robust variance follow; they pool by `+`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

Floats = npt.NDArray[np.float64]


class ClusterSums(BaseModel):
    """Sums from which the mean of a value and its cluster-robust variance follow.

    rows, clusters: how many. total: Σ s over clusters, s the cluster's sum of values and n its rows;
    square: Σ s²; cross: Σ s·n; size_square: Σ n².
    """

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    clusters: int = 0
    total: float = 0.0
    square: float = 0.0
    cross: float = 0.0
    size_square: float = 0.0

    @classmethod
    def of(cls, values: Floats, clusters: npt.NDArray[Any] | Sequence[str]) -> Self:
        """Sum `values` (rows,) by the cluster label of each row."""
        if len(values) == 0:
            return cls()
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
        sums = np.bincount(index, weights=values).astype(np.float64)
        sizes = np.bincount(index).astype(np.float64)
        return cls._from(sums, sizes)

    @classmethod
    def one(cls, total: float, rows: int) -> Self:
        """Sum one cluster of `rows` rows whose values sum to `total`."""
        return cls() if rows == 0 else cls._from(np.array([total]), np.array([float(rows)]))

    @classmethod
    def _from(cls, sums: Floats, sizes: Floats) -> Self:
        return cls(
            rows=int(sizes.sum()),
            clusters=len(sums),
            total=float(sums.sum()),
            square=float(sums @ sums),
            cross=float(sums @ sizes),
            size_square=float(sizes @ sizes),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            rows=self.rows + other.rows,
            clusters=self.clusters + other.clusters,
            total=self.total + other.total,
            square=self.square + other.square,
            cross=self.cross + other.cross,
            size_square=self.size_square + other.size_square,
        )

    @property
    def mean(self) -> float:
        """Mean of the summed values. Raises: ValueError without a row."""
        if self.rows == 0:
            raise ValueError("a mean needs at least one row, got none")
        return self.total / self.rows

    def standard_error(self) -> float:
        """Standard error of the mean, robust to dependence within a cluster; infinite with fewer than two clusters.

        Source: Cameron and Miller, A Practitioner's Guide to Cluster-Robust Inference, 2015, with the C/(C−1) factor.
        """
        if self.clusters < 2:  # noqa: PLR2004 — a variance needs two
            return math.inf
        mean = self.mean
        residual = self.square - 2 * mean * self.cross + mean * mean * self.size_square
        correction = self.clusters / (self.clusters - 1)
        return math.sqrt(max(residual, 0.0) * correction) / self.rows
