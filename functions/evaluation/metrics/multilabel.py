"""Metrics of several yes-or-no answers a row, as pure functions of labels and predictions.

label: (rows, labels) of 0 and 1; probability: (rows, labels), each of its own label. No function returns a number for no rows or
for NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.metrics.probabilities import CLIP, auc, ece

Floats = npt.NDArray[np.floating]
_THRESHOLD = 0.5


def label_row_log_loss(label: Floats, probability: Floats) -> npt.NDArray[np.float64]:
    """Mean log loss over the labels of each row, in nats. Raises: EvaluationError for no rows, or values out of range."""
    y, p = _checked(label, probability)
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
    hits, wrong = _hits_and_errors(*_checked(label, probability))
    return float(np.mean(_f1(hits, wrong)))


def micro_f1(label: Floats, probability: Floats) -> float:
    """F1 of all labels of all rows taken together, at a threshold of one half. Raises: EvaluationError as `label_row_log_loss`."""
    hits, wrong = _hits_and_errors(*_checked(label, probability))
    return float(_f1(hits.sum(), wrong.sum()))


def mean_ece(label: Floats, probability: Floats) -> float:
    """Mean of the labels' calibration errors (see `ece`). Raises: EvaluationError as `label_row_log_loss`."""
    y, p = _checked(label, probability)
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
    y, p = _checked(label, probability)
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


def _checked(label: Floats, probability: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
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
