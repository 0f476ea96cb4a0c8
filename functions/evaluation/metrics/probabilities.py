"""Metrics of probabilities of two classes, several classes, and several yes-or-no answers, as pure functions.

Two: label (rows,) of 0 and 1, probability (rows,) of label 1. Several: label (rows,) class indices, probability
(rows, classes), each row of sum 1. Yes or no: label (rows, labels) of 0 and 1, probability (rows, labels), each of
its own label. No function returns a number for no rows or for NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import special

from toque.functions.evaluation.errors import EvaluationError

Floats = npt.NDArray[np.floating]
ClassIndices = npt.NDArray[np.integer]
Metric = Callable[[Floats, Floats], float]
Draw = Callable[[np.random.Generator], npt.NDArray[np.int64]]

CLIP = 1e-7
"""Probabilities are held in [CLIP, 1 - CLIP] before a logarithm: one certain error costs 16 nats, not infinity."""
_THRESHOLD = 0.5  # from which on an answer is yes
_SUM_ATOL = 1e-3  # float32 softmax over a thousand classes


class Interval(BaseModel):
    """An estimate with its bootstrap percentile interval."""

    model_config = ConfigDict(frozen=True)

    estimate: float
    low: float
    high: float


def row_log_loss(label: Floats, probability: Floats) -> npt.NDArray[np.float64]:
    """Log loss of each row, in nats. Raises: EvaluationError as `check_predictions`."""
    y, p = check_predictions(label, probability)
    p = np.clip(p, CLIP, 1.0 - CLIP)
    return -(y * np.log(p) + (1.0 - y) * np.log1p(-p))


def log_loss(label: Floats, probability: Floats) -> float:
    """Mean log loss, in nats. Raises: EvaluationError as `check_predictions`."""
    return float(row_log_loss(label, probability).mean())


def brier(label: Floats, probability: Floats) -> float:
    """Mean squared error of the probability. Raises: EvaluationError as `check_predictions`."""
    y, p = check_predictions(label, probability)
    return float(np.mean((p - y) ** 2))


def auc(label: Floats, probability: Floats) -> float:
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


def ece(label: Floats, probability: Floats, *, bins: int = 15) -> float:
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
    label: Floats,
    probability: Floats,
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
    draw: Draw = (
        (lambda drawn: drawn.integers(0, len(label), len(label))) if entity is None else _by_entity(entity)
    )
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
    label: Floats, probability: Floats
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


def class_row_log_loss(label: ClassIndices, probability: Floats) -> npt.NDArray[np.float64]:
    """Log loss of each row, in nats. Raises: EvaluationError for no rows, or labels or probabilities out of range."""
    y, p = _checked(label, probability)
    losses: npt.NDArray[np.float64] = -np.log(np.clip(p[np.arange(len(y)), y], CLIP, 1.0))
    return losses


def class_log_loss(label: ClassIndices, probability: Floats) -> float:
    """Mean log loss, in nats. Raises: EvaluationError as `class_row_log_loss`."""
    return float(class_row_log_loss(label, probability).mean())


def accuracy(label: ClassIndices, probability: Floats) -> float:
    """Share of rows whose likeliest class is the true one. Raises: EvaluationError as `class_row_log_loss`."""
    y, p = _checked(label, probability)
    return float((p.argmax(axis=1) == y).mean())


def top_ece(label: ClassIndices, probability: Floats) -> float:
    """Calibration error of the likeliest class (see `ece`). Raises: EvaluationError as `class_row_log_loss`.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    y, p = _checked(label, probability)
    return ece((p.argmax(axis=1) == y).astype(np.float64), np.clip(p.max(axis=1), 0.0, 1.0))


def class_brier(label: ClassIndices, probability: Floats) -> float:
    """Mean squared distance to the true class, from 0 to 2. Raises: EvaluationError as `class_row_log_loss`."""
    y, p = _checked(label, probability)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean())


CLASS_METRICS: dict[str, Callable[[ClassIndices, Floats], float]] = {
    "log_loss": class_log_loss,
    "accuracy": accuracy,
    "ece": top_ece,
    "brier": class_brier,
}


def _checked(
    label: ClassIndices, probability: Floats
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    y, p = np.asarray(label), np.asarray(probability, dtype=np.float64)
    if p.ndim != 2 or y.shape != p.shape[:1] or y.size == 0:  # noqa: PLR2004 - rows and classes
        raise EvaluationError(
            f"need a label and a row of probabilities for each row and at least one, got {y.shape} and {p.shape}"
        )
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[1]:
        raise EvaluationError(
            f"labels must be class indices 0 to {p.shape[1] - 1}, found {np.unique(y)[:5].tolist()}"
        )
    bad = ~((p >= 0.0).all(axis=1) & (np.abs(p.sum(axis=1) - 1.0) <= _SUM_ATOL))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"{int(bad.sum())} of {len(p)} rows are no probabilities, first row {first}: {p[first]}"
        )
    return y.astype(np.int64), p


def label_row_log_loss(label: Floats, probability: Floats) -> npt.NDArray[np.float64]:
    """Mean log loss over the labels of each row, in nats. Raises: EvaluationError for no rows, or values out of range."""
    y, p = _checked_labels(label, probability)
    p = np.clip(p, CLIP, 1.0 - CLIP)
    losses: npt.NDArray[np.float64] = -(y * np.log(p) + (1.0 - y) * np.log1p(-p)).mean(axis=1)
    return losses


def label_log_loss(label: Floats, probability: Floats) -> float:
    """Mean log loss over rows and labels, in nats. Raises: EvaluationError as `label_row_log_loss`."""
    return float(label_row_log_loss(label, probability).mean())


def macro_f1(label: Floats, probability: Floats) -> float:
    """Mean of the labels' F1 at a threshold of one half; a label that nobody has and nothing names counts 1.

    Raises: EvaluationError as `label_row_log_loss`.
    """
    hits, wrong = _hits_and_errors(*_checked_labels(label, probability))
    return float(np.mean(_f1(hits, wrong)))


def micro_f1(label: Floats, probability: Floats) -> float:
    """F1 of all labels of all rows taken together, at a threshold of one half. Raises: EvaluationError as `label_row_log_loss`."""
    hits, wrong = _hits_and_errors(*_checked_labels(label, probability))
    return float(_f1(hits.sum(), wrong.sum()))


def mean_ece(label: Floats, probability: Floats) -> float:
    """Mean of the labels' calibration errors (see `ece`). Raises: EvaluationError as `label_row_log_loss`."""
    y, p = _checked_labels(label, probability)
    return float(np.mean([ece(y[:, place], p[:, place]) for place in range(y.shape[1])]))


LABEL_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "log_loss": label_log_loss,
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
    "ece": mean_ece,
}


def by_label(label: Floats, probability: Floats, names: Sequence[str]) -> dict[str, float]:
    """Measure each label by itself: "log_loss of rain", "f1 of rain", "ece of rain", and "auc of rain" where rows of both kinds are.

    Raises: EvaluationError as `label_row_log_loss`.
    """
    y, p = _checked_labels(label, probability)
    hits, wrong = _hits_and_errors(y, p)
    f1 = _f1(hits, wrong)
    found: dict[str, float] = {}
    for place, name in enumerate(names):
        own, answers = y[:, place], p[:, place]
        found[f"log_loss of {name}"] = label_log_loss(own[:, None], answers[:, None])
        found[f"f1 of {name}"] = float(f1[place])
        found[f"ece of {name}"] = ece(own, answers)
        if 0 < own.sum() < len(own):
            found[f"auc of {name}"] = auc(own, answers)
    return found


def _hits_and_errors(y: Floats, p: Floats) -> tuple[Floats, Floats]:
    """Count by label the rows that rightly have it, and those that wrongly have it or lack it, (labels,) each."""
    said, true = p >= _THRESHOLD, y > 0
    return (said & true).sum(axis=0).astype(np.float64), (said != true).sum(axis=0).astype(np.float64)


def _f1(hits: Floats, wrong: Floats) -> Floats:
    both = 2.0 * hits + wrong
    f1: Floats = np.where(both > 0, 2.0 * hits / np.maximum(both, 1.0), 1.0)
    return f1


def _checked_labels(
    label: Floats, probability: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, p = np.asarray(label, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if y.shape != p.shape or y.ndim != 2 or y.size == 0:  # noqa: PLR2004 - rows and labels
        raise EvaluationError(
            f"need a row of labels and one of probabilities for each row and at least one, got {y.shape} and {p.shape}"
        )
    if not np.isin(y, (0.0, 1.0)).all():
        raise EvaluationError(f"labels must be 0 or 1, found {np.unique(y)[:5].tolist()}")
    bad = ~((p >= 0.0) & (p <= 1.0))
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        raise EvaluationError(
            f"{int(bad.sum())} of {p.size} probabilities are no numbers in [0, 1], first {p[row, column]} in row {row}"
        )
    return y, p


class ReliabilityPoint(BaseModel):
    """Point of a reliability plot: rows of similar answers, their mean, the share of label 1 and its interval."""

    model_config = ConfigDict(frozen=True)

    rows: int
    answered: float
    observed: float
    low: float
    high: float


def reliability(
    label: Floats, probability: Floats, *, bins: int = 10, level: float = 0.95
) -> list[ReliabilityPoint]:
    """Compute points of equal mass, in order of the answer; a diagonal through their intervals is good calibration.

    level: coverage of each interval, rows taken as independent.
    Raises: EvaluationError as `check_predictions`.
    Source: Clopper and Pearson, The use of confidence or fiducial limits, 1934, for the intervals.
    """
    y, p = check_predictions(label, probability)
    order = np.argsort(p, kind="stable")
    return [_point(y[rows], p[rows], (1 - level) / 2) for rows in np.array_split(order, min(bins, len(p)))]


def _point(y: Floats, p: Floats, tail: float) -> ReliabilityPoint:
    n, hits = len(y), float(y.sum())
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return ReliabilityPoint(rows=n, answered=float(p.mean()), observed=float(y.mean()), low=low, high=high)
