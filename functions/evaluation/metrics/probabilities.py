"""Metrics of probabilities of two classes, as pure functions of labels and predictions.

label: (rows,) of 0 and 1; probability: (rows,) of label 1. No function returns a number for no rows or for NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from toque.functions.evaluation.errors import EvaluationError

Array = npt.NDArray[np.floating]
Metric = Callable[[Array, Array], float]

CLIP = 1e-7
"""Probabilities are held in [CLIP, 1 - CLIP] before a logarithm: one certain error costs 16 nats, not infinity."""


class Interval(BaseModel):
    """An estimate with its bootstrap percentile interval."""

    model_config = ConfigDict(frozen=True)

    estimate: float
    low: float
    high: float


def row_log_loss(label: Array, probability: Array) -> npt.NDArray[np.float64]:
    """Log loss of each row, in nats. Raises: EvaluationError as `check_predictions`."""
    y, p = check_predictions(label, probability)
    p = np.clip(p, CLIP, 1.0 - CLIP)
    return -(y * np.log(p) + (1.0 - y) * np.log1p(-p))


def log_loss(label: Array, probability: Array) -> float:
    """Mean log loss, in nats. Raises: EvaluationError as `check_predictions`."""
    return float(row_log_loss(label, probability).mean())


def brier(label: Array, probability: Array) -> float:
    """Mean squared error of the probability. Raises: EvaluationError as `check_predictions`."""
    y, p = check_predictions(label, probability)
    return float(np.mean((p - y) ** 2))


def auc(label: Array, probability: Array) -> float:
    """Area under the ROC curve: how often a positive row ranks above a negative one, ties counting half.

    Raises: EvaluationError as `check_predictions`, and if there is one class only.
    Source: Mann & Whitney, 1947, through mid-ranks.
    """
    y, p = check_predictions(label, probability)
    positives = int(y.sum())
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        raise EvaluationError(
            f"AUC needs both classes, got {positives} positive and {negatives} negative rows: widen the range"
        )
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    return float((ranks[y == 1].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def ece(label: Array, probability: Array, *, bins: int = 15) -> float:
    """Expected calibration error over bins of equal mass: mean |observed rate - mean probability|, by rows.

    Raises: EvaluationError as `check_predictions`.
    Source: Nixon et al., Measuring Calibration in Deep Learning, 2019 (adaptive bins).
    """
    y, p = check_predictions(label, probability)
    order = np.argsort(p, kind="stable")
    gaps = (y - p)[order]
    groups = np.array_split(gaps, min(bins, len(gaps)))
    return float(sum(abs(float(group.sum())) for group in groups) / len(gaps))


METRICS: dict[str, Metric] = {"log_loss": log_loss, "auc": auc, "ece": ece, "brier": brier}


def bootstrap(
    metric: Metric,
    label: Array,
    probability: Array,
    *,
    entity: npt.NDArray[np.generic] | None = None,
    rounds: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Compute a metric with its percentile interval over resampled rows, or resampled entities with all their rows.

    entity: (rows,) that a row is about; rows of one entity are correlated, and resampling single rows would give too narrow
    an interval.
    level: coverage of the interval. Resamples in which the metric has no value (one class) are drawn again.
    Raises: EvaluationError as the metric.
    Source: Field and Welsh, Bootstrapping clustered data, 2007.
    """
    estimate = metric(label, probability)
    generator = np.random.default_rng(seed)
    draw = _by_row(len(label)) if entity is None else _by_entity(entity)
    values: list[float] = []
    for _ in range(10 * rounds):
        rows = draw(generator)
        try:
            values.append(metric(label[rows], probability[rows]))
        except EvaluationError:
            continue  # a resample of one class: AUC has no value there
        if len(values) == rounds:
            break
    if not values:
        raise EvaluationError(f"no resample of {len(label)} rows holds both classes: give more rows")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=estimate, low=float(low), high=float(high))


Draw = Callable[[np.random.Generator], npt.NDArray[np.int64]]


def _by_row(rows: int) -> Draw:
    return lambda generator: generator.integers(0, rows, rows)


def _by_entity(entity: npt.NDArray[np.generic]) -> Draw:
    _, code, size = np.unique(entity, return_inverse=True, return_counts=True)
    order = np.argsort(code, kind="stable").astype(np.int64)
    start = np.concatenate(([0], np.cumsum(size)[:-1]))

    def draw(generator: np.random.Generator) -> npt.NDArray[np.int64]:
        chosen = generator.integers(0, len(size), len(size))
        sizes = size[chosen]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows: npt.NDArray[np.int64] = order[np.repeat(start[chosen], sizes) + within]
        return rows

    return draw


def check_predictions(
    label: Array, probability: Array
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Check labels and probabilities, and convert them to float64.

    Raises: EvaluationError if there are no rows, lengths differ, a label is not 0 or 1, or a probability is NaN or
    outside [0, 1].
    """
    y, p = np.asarray(label, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if y.shape != p.shape or y.ndim != 1 or y.size == 0:
        raise EvaluationError(
            f"need as many labels as probabilities and at least one, got {y.shape} and {p.shape}"
        )
    if not np.isin(y, (0.0, 1.0)).all():
        raise EvaluationError(f"labels must be 0 or 1, found {np.unique(y)[:5].tolist()}")
    bad = ~((p >= 0.0) & (p <= 1.0))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"{int(bad.sum())} of {p.size} probabilities are no numbers in [0, 1], first {p[first]} in row {first}"
        )
    return y, p
