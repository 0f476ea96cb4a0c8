"""Cost of a request as a straight line in its rows, with a step for splitting traffic over replicas, fitted to points.

cost = base + row · rows + split · (1 - 1/replicas): what a request takes anyway, what each row adds, and what is lost because requests
that one replica would have answered together meet different replicas. Errors are relative, so each point weighs by its own cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import nnls

from load.capacity_model.points import Point

__all__ = ["CostModel", "Interval", "fit_cost"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """Value with the bounds that a new measurement of it lies within."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """Multiply value and bounds by a positive factor."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class CostModel:
    """Cost of a request in core-seconds. base, row, split: as above; used: which of the three the points could tell.

    spread: relative standard deviation of a measurement; covariance: (used, used) of the relative design; freedom: degrees of
    freedom of the spread.
    """

    base: float
    row: float
    split: float
    used: tuple[int, ...]
    spread: float
    covariance: Floats
    freedom: int

    def cost_s(self, rows: int, replicas: int, *, confidence: float = 0.95) -> Interval:
        """Predict the cost of a request in a configuration that may not have been measured."""
        terms = _terms(rows, replicas)
        value = float(terms @ np.array([self.base, self.row, self.split]))
        relative = terms[list(self.used)] / value
        error = self.spread * math.sqrt(1.0 + float(relative @ self.covariance @ relative))
        reach = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * error
        return Interval(value, value * math.exp(-reach), value * math.exp(reach))


def fit_cost(points: Sequence[Point], *, utilisation: float) -> CostModel:
    """Fit the line to points. utilisation: of a replica at its knee, for points that are knees.

    Raises: ValueError if the points are too few, or do not differ in their rows.
    """
    costs = np.array([point.busy_s(utilisation) for point in points])
    if len({point.rows for point in points}) < 2:
        raise ValueError("every point has the same number of rows; measure at least two numbers of rows")
    used = [0, 1, 2] if len({point.replicas for point in points}) > 1 else [0, 1]
    if len(points) <= len(used):
        raise ValueError(
            f"{len(points)} points cannot give {len(used)} costs and their error; measure {len(used) + 1} or more"
        )
    design = np.array([_terms(point.rows, point.replicas)[used] for point in points]) / costs[:, None]
    found, _ = nnls(design, np.ones(len(points)))
    residuals = design @ found - 1.0
    freedom = len(points) - len(used)
    whole = np.zeros(3)
    whole[used] = found
    base, row, split = whole.tolist()
    return CostModel(
        base,
        row,
        split,
        used=tuple(used),
        spread=float(np.sqrt(residuals @ residuals / freedom)),
        covariance=np.linalg.pinv(design.T @ design),
        freedom=freedom,
    )


def _terms(rows: int, replicas: int) -> Floats:
    return np.array([1.0, float(rows), 1.0 - 1.0 / replicas])
