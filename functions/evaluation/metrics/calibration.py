"""Points of a reliability plot, each with its uncertainty: do answers of .3 come true three times in ten?"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import special

from toque.functions.evaluation.metrics.probabilities import Array, check_predictions


class ReliabilityPoint(BaseModel):
    """Point of a reliability plot: rows of similar answers, their mean, the share of label 1 and its interval."""

    model_config = ConfigDict(frozen=True)

    rows: int
    answered: float
    observed: float
    low: float
    high: float


def reliability(
    label: Array, probability: Array, *, bins: int = 10, level: float = 0.95
) -> list[ReliabilityPoint]:
    """Compute points of equal mass, in order of the answer; a diagonal through their intervals is good calibration.

    level: coverage of each interval, rows taken as independent.
    Raises: EvaluationError as `check_predictions`.
    Source: Clopper and Pearson, The use of confidence or fiducial limits, 1934, for the intervals.
    """
    y, p = check_predictions(label, probability)
    order = np.argsort(p, kind="stable")
    return [_point(y[rows], p[rows], (1 - level) / 2) for rows in np.array_split(order, min(bins, len(p)))]


def _point(y: Array, p: Array, tail: float) -> ReliabilityPoint:
    n, hits = len(y), float(y.sum())
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return ReliabilityPoint(rows=n, answered=float(p.mean()), observed=float(y.mean()), low=low, high=high)
