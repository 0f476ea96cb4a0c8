"""Estimates for a classifier without labels: of its loss over several classes, and of how often each class occurs.

The loss is right if labels still follow the scores as they did (covariate shift). The shares of the classes are right if only
these shares changed, not what the rows of a class look like (label shift). Either is blind to another kind of change.

Symbols: p are the probabilities that were served, c the same after calibration, M the matrix of how rows of a true class (column)
are called (row), q the shares of the true classes, μ those of the called ones: μ = M q.
Sources: Zadrozny and Elkan, Transforming classifier scores into accurate multiclass probability estimates, 2002; Lipton, Wang and
Smola, Detecting and correcting for label shift with black box predictors, 2018 (of two classes: Rogan and Gladen, 1978).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from toque.functions.stats.estimate import Estimate, ScoreSketch
from toque.functions.stats.moments import Floats

__all__ = ["MOST_CLASSES", "ClassSketch", "estimate_class_losses", "estimate_shares", "realise_classes"]

MOST_CLASSES = 20
"""Classes up to which each has a calibration of its own, and shares are estimated."""
_FEWEST_OF_A_CLASS = 30
_LEAST_SINGULAR = 0.1
_SUM_ATOL = 1e-3  # float32 softmax over a thousand classes


@dataclass(frozen=True, slots=True)
class ClassSketch:
    """Sketch of labelled class probabilities, which adds up.

    by_class: scores of each class against the rest; of more than `MOST_CLASSES`, those of all classes in one.
    confusion: labelled rows by true class, then by the likeliest one; empty for more than `MOST_CLASSES`.
    """

    by_class: tuple[ScoreSketch, ...]
    confusion: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, probability: npt.ArrayLike, label: npt.ArrayLike) -> Self:
        """Count labelled probabilities (n, classes), with the true class of each row (n,).

        Raises: ValueError if a row holds no probabilities, or a label is no class.
        """
        p, y = _rows(probability), np.asarray(label)
        count = p.shape[1]
        if y.shape != p.shape[:1] or not np.isin(y, np.arange(count)).all():
            raise ValueError(
                f"labels are classes from 0 to {count - 1}, one a row; got shape {y.shape}: {y[:3]}"
            )
        true = np.eye(count)[y.astype(np.int64)]
        if count > MOST_CLASSES:
            return cls((ScoreSketch.of(p.ravel(), true.ravel()),), ())
        called = np.eye(count)[p.argmax(axis=1)]
        return cls(
            tuple(ScoreSketch.of(p[:, place], true[:, place]) for place in range(count)),
            tuple(map(tuple, (true.T @ called).astype(int).tolist())),
        )

    def __add__(self, other: ClassSketch) -> ClassSketch:
        rows = zip(self.confusion, other.confusion, strict=True)
        return ClassSketch(
            tuple(a + b for a, b in zip(self.by_class, other.by_class, strict=True)),
            tuple(tuple(a + b for a, b in zip(one, two, strict=True)) for one, two in rows),
        )

    def calibrate(self, probability: npt.ArrayLike) -> Floats:
        """Map probabilities (n, classes) to calibrated ones: an isotonic regression for each class, then a sum of 1."""
        p = _rows(probability)
        maps = [sketch.calibration() for sketch in self.by_class]
        c = np.column_stack([maps[place % len(maps)](p[:, place]) for place in range(p.shape[1])])
        total = c.sum(axis=1, keepdims=True)
        return np.where(total > 0, c / np.where(total > 0, total, 1.0), p)


def estimate_class_losses(
    probability: npt.ArrayLike, calibrated: npt.ArrayLike, *, clip: float = 0.01
) -> dict[str, Estimate]:
    """Estimate `log_loss` (nats), `brier` (from 0 to 2) and `accuracy` on rows (n, classes) without labels.

    The mean of Σ cₖ·lₖ over the rows, where lₖ is a row's loss if its class is k, with the standard error of independent labels.
    clip: as of `estimate_losses`. Raises: ValueError if there is no row, or one holds no probabilities.
    """
    p, c = _rows(probability), _rows(calibrated)
    if p.shape != c.shape or not len(p):
        raise ValueError(f"need as many of both and at least one row, got {p.shape} and {c.shape}")
    found = {}
    for name, loss in _losses(p, clip).items():
        mean = (c * loss).sum(axis=1)
        variance = np.maximum((c * loss**2).sum(axis=1) - mean**2, 0.0)
        found[name] = Estimate(len(p), float(mean.mean()), float(np.sqrt(variance.sum()) / len(p)))
    return found


def realise_classes(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, clip: float = 0.01
) -> dict[str, float]:
    """Compute the measures of `estimate_class_losses` from labels (n,), the numbers of the classes."""
    p, y = _rows(probability), np.asarray(label, dtype=np.int64)
    return {name: float(loss[np.arange(len(y)), y].mean()) for name, loss in _losses(p, clip).items()}


def estimate_shares(confusion: npt.ArrayLike, called: npt.ArrayLike) -> tuple[Estimate, ...]:
    """Estimate the share of each true class among rows of which only the called class is known.

    confusion: labelled rows by true class, then by the called one; called: (classes,) rows without labels by the called class.
    Black-box shift estimation: q = M⁻¹ μ, held within [0, 1]. The standard errors, by the delta method, are those of what will be
    realised on these very rows: of how they are called, and of M.
    Raises: ValueError without rows, with fewer than 30 labelled rows of a class, or if calls do not tell the classes apart.
    """
    counts, seen = np.asarray(confusion, dtype=np.float64), np.asarray(called, dtype=np.float64)
    of_class, n = counts.sum(axis=1), seen.sum()
    if not n or of_class.min() < _FEWEST_OF_A_CLASS:
        raise ValueError(
            f"shares need rows, and {_FEWEST_OF_A_CLASS} labelled rows of each class; got {int(n)} rows and {of_class.astype(int).tolist()}"
        )
    m = ((counts + 1 / len(seen)) / (of_class[:, None] + 1)).T  # [called, true]
    if (least := float(np.linalg.svd(m, compute_uv=False)[-1])) < _LEAST_SINGULAR:
        raise ValueError(
            f"the answers do not tell the classes apart (smallest singular value {least:.3f} of their confusion matrix, at least {_LEAST_SINGULAR} is needed)"
        )
    back = np.linalg.inv(m)
    q = np.clip(back @ (seen / n), 0.0, None)
    q /= q.sum()
    spread = np.zeros_like(m)
    for y, labelled in enumerate(of_class):
        multinomial = np.diag(m[:, y]) - np.outer(m[:, y], m[:, y])
        spread += (q[y] / n + q[y] ** 2 / labelled) * multinomial
    error = np.sqrt(np.maximum(np.diag(back @ spread @ back.T), 0.0))
    return tuple(Estimate(int(n), float(share), float(se)) for share, se in zip(q, error, strict=True))


def _losses(p: Floats, clip: float) -> dict[str, Floats]:
    """Losses (n, classes) of each row for each class that its label may be."""
    held = np.clip(p, clip, 1 - clip)
    called = np.eye(p.shape[1])[p.argmax(axis=1)]
    return {
        "log_loss": -np.log(held),
        "brier": np.square(p).sum(axis=1, keepdims=True) - 2 * p + 1,
        "accuracy": called,
    }


def _rows(values: npt.ArrayLike) -> Floats:
    p = np.asarray(values, dtype=np.float64)
    shaped = p.ndim == 2 and p.shape[1] > 1  # noqa: PLR2004 - rows and classes
    if not shaped or not ((p >= 0) & (p <= 1)).all() or (np.abs(p.sum(axis=1) - 1) > _SUM_ATOL).any():
        raise ValueError(
            f"class probabilities are rows of numbers in [0, 1] whose sum is 1, got shape {p.shape}"
        )
    return p
