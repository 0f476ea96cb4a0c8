"""Sums by cluster, from which a mean and its cluster-robust variance follow; they pool by `+`.

Sums are taken with `math.fsum`, so that they have the same bits on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

Floats = npt.NDArray[np.float64]
LARGEST = 1e100
"""Greatest size of a value that is summed: the squares of sums over a billion of them are float64 still."""
_MOST_ALIKE = 0.95  # autocorrelation above which a series of clusters is taken as one with this
_LIMIT = 1.2816  # standard errors of the upper 90 % limit


class Pooled(BaseModel):
    """Figures of some rows; those of other rows are added to them by `+`, field by field."""

    model_config = ConfigDict(frozen=True)

    def __add__(self, other: Self) -> Self:
        return self.pooled(other)

    def pooled(self, other: Self, **otherwise: Any) -> Self:
        """Add the figures of other rows. otherwise: fields that are not sums, as they come out."""
        summed = (name for name in type(self).model_fields if name not in otherwise)
        return type(self)(
            **{name: getattr(self, name) + getattr(other, name) for name in summed}, **otherwise
        )


class ClusterSums(Pooled):
    """Sums from which the mean of a value and its cluster-robust variance follow.

    rows, clusters: how many. total: Σ s over clusters, s the cluster's sum of values and n its rows;
    square: Σ s²; cross: Σ s·n; size_square: Σ n².
    """

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
        return cls.of_sums(sums, sizes)

    @classmethod
    def one(cls, total: float, rows: int) -> Self:
        """Sum one cluster of `rows` rows whose values sum to `total`."""
        return cls() if rows == 0 else cls.of_sums(np.array([total]), np.array([float(rows)]))

    @classmethod
    def of_sums(cls, sums: Floats, sizes: Floats) -> Self:
        """Sum clusters of which the sum of values and the rows are known, (clusters,) each."""
        return cls(
            rows=int(sizes.sum()),
            clusters=len(sums),
            total=exact_sum(sums),
            square=exact_sum(sums * sums),
            cross=exact_sum(sums * sizes),
            size_square=exact_sum(sizes * sizes),
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
        correction = self.clusters / (self.clusters - 1)
        return math.sqrt(self._residual() * correction) / self.rows

    @property
    def effective(self) -> float:
        """Number of clusters of equal size that would weigh as much: fewer than there are where sizes differ; 0 without a row.

        Source: Kish, Survey Sampling, 1965.
        """
        return self.rows**2 / self.size_square if self.rows else 0.0

    def _residual(self) -> float:
        """Sum over clusters of the squared deviation from the mean."""
        mean = self.mean
        return max(self.square - 2 * mean * self.cross + mean * mean * self.size_square, 0.0)


class SeriesSums(ClusterSums):
    """Sums of clusters that follow each other in time, such as days, and may resemble their neighbours.

    span: clusters from the first with rows on, those without rows included; 0 in sums of before this was counted.
    next_square, next_cross, next_size: Σ s·s', Σ (s·n' + s'·n) and Σ n·n' over neighbours, those without rows left out.
    first, last: sum and rows of the first and the last cluster.
    """

    span: int = 0
    next_square: float = 0.0
    next_cross: float = 0.0
    next_size: float = 0.0
    first: tuple[float, int] = (0.0, 0)
    last: tuple[float, int] = (0.0, 0)

    @classmethod
    def one(cls, total: float, rows: int) -> Self:
        """Sum one cluster; without rows it is one of the span only."""
        end = (total, rows)
        return super().one(total, rows).model_copy(update={"span": 1, "first": end, "last": end})

    def __add__(self, other: Self) -> Self:
        if not self.rows:  # nothing has begun yet
            return other
        (s, n), (t, m) = self.last, other.first
        return self.pooled(
            other,
            next_square=self.next_square + other.next_square + s * t * (m > 0),
            next_cross=self.next_cross + other.next_cross + (s * m + t * n) * (m > 0),
            next_size=self.next_size + other.next_size + n * m,
            first=self.first,
            last=other.last if m else self.last,
        )

    def long_run(self) -> tuple[float, float]:
        """Standard error of the mean where neighbours may be alike, and the degrees of freedom that it has.

        The variance is that of clusters which follow a first-order autoregression; their correlation is taken at its upper
        90 % limit, as days are alike until shown otherwise.
        Source: Kendall, Note on bias in the estimation of autocorrelation, 1954; Bayley and Hammersley, The effective number
        of independent observations in an autocorrelated time series, 1946.
        """
        error, residual = self.standard_error(), self._residual() if self.clusters else 0.0
        if not 0 < error < math.inf:
            return error, max(self.clusters - 1.0, 1.0)
        mean = self.mean
        products = self.next_square - mean * self.next_cross + mean * mean * self.next_size
        longer = float(variance_ratio(products / residual, self.clusters))
        return error * math.sqrt(longer), max((self.clusters - 1) / longer, 1.0)


def variance_ratio(correlation: npt.ArrayLike, clusters: npt.ArrayLike) -> Floats:
    """Variance of the mean of a series over that of independent clusters, from the estimated correlation of neighbours.

    Source: as `SeriesSums.long_run`.
    """
    estimate, count = np.asarray(correlation, dtype=np.float64), np.asarray(clusters, dtype=np.float64)
    unbiased = estimate + (1 + 3 * np.maximum(estimate, 0.0)) / count
    limit = np.clip(unbiased + _LIMIT / np.sqrt(count), 0.0, _MOST_ALIKE)
    ratio: Floats = (1 + limit) / (1 - limit)
    return ratio


def exact_sum(values: Floats) -> float:
    """Sum of `values`, rounded once: the same on every processor, and in any order; infinity or NaN where one is in it."""
    try:
        return math.fsum(values.tolist())
    except (OverflowError, ValueError):  # too large for a float, or infinities of both signs
        with np.errstate(over="ignore", invalid="ignore"):
            return float(values.sum())
