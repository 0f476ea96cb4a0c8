"""Estimates of a model's performance without labels, if its probabilities are right; no proof of health.

They see what changed in the inputs, and are blind to a changed relation between inputs and labels (concept drift). Shares of
classes are right only if what the rows of a class look like stayed (label shift). A `LossModel` knows nothing of regions without
labels. Hold all against realised labels when they land.
Symbols: p is the probability that was served, c the same after calibration, l₁ and l₀ a row's loss if its label is 1 or 0; M the
matrix of how rows of a true class (column) are called (row), q the shares of the true classes, μ those of the called: μ = M q.
Sources: Garg et al., Leveraging unlabeled data to predict out-of-distribution performance, 2022; NannyML's CBPE and direct loss
estimation; Zadrozny and Elkan, Transforming classifier scores into accurate multiclass probability estimates, 2002; Lipton, Wang
and Smola, Detecting and correcting for label shift with black box predictors, 2018 (of two classes: Rogan and Gladen, 1978).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when first used

from toque.functions.stats.moments import Floats, as_floats

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits


BINS = 200
"""Equal cells of a `ScoreSketch` over [0, 1]."""
MOST_CLASSES = 20
"""Classes up to which each has a calibration of its own, and shares are estimated."""
_FEWEST_OF_A_CLASS = 30
_LEAST_SINGULAR = 0.1
_SUM_ATOL = 1e-3  # float32 softmax over a thousand classes
_FOLDS = 2  # of the labelled rows: errors are of predictions for rows that a regressor had not seen
_LEAST_ROWS = 2 * _FOLDS


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated mean over n rows, and the standard error of what will be realised on these very rows if c is right."""

    n: int
    mean: float
    error: float

    def z(self, realised: float) -> float:
        """Return how far a realised mean lies above the estimate, in standard errors."""
        return (
            (realised - self.mean) / self.error
            if self.error > 0
            else math.copysign(math.inf, realised - self.mean)
        )

    def learnt_from(self, labelled: int) -> Estimate:
        """Add the error of a calibration that was learnt from so many labels of rows with the like scores."""
        return Estimate(self.n, self.mean, self.error * math.sqrt(1 + self.n / labelled))


@dataclass(frozen=True, slots=True)
class ScoreSketch:
    """Sketch of labelled scores, which adds up: rows, labels of 1 and sum of scores in equal cells of [0, 1]."""

    rows: tuple[int, ...] = (0,) * BINS
    positives: tuple[float, ...] = (0.0,) * BINS
    scores: tuple[float, ...] = (0.0,) * BINS

    @classmethod
    def of(cls, probability: npt.ArrayLike, label: npt.ArrayLike) -> Self:
        """Count labelled scores (n,) in cells.

        Raises: ValueError if a probability is outside [0, 1] or a label not 0 or 1.
        """
        p, y = _probabilities(probability), np.asarray(label, dtype=np.float64)
        if y.shape != p.shape or not np.isin(y, (0.0, 1.0)).all():
            raise ValueError(f"labels are 0 or 1, one a probability; got shapes {y.shape} and {p.shape}")
        cell = _cell(p)
        rows, positives, scores = (np.bincount(cell, w, BINS) for w in (np.ones_like(p), y, p))
        return cls(tuple(rows.astype(int).tolist()), tuple(positives.tolist()), tuple(scores.tolist()))

    def __add__(self, other: ScoreSketch) -> ScoreSketch:
        def both(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
            return tuple((np.array(a) + np.array(b)).tolist())

        rows = tuple(a + b for a, b in zip(self.rows, other.rows, strict=True))
        return ScoreSketch(rows, both(self.positives, other.positives), both(self.scores, other.scores))

    @property
    def n(self) -> int:
        """Number of labelled rows counted."""
        return sum(self.rows)

    def confusion(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Count labelled rows by label, then by whether they are called 1, as `called` does."""
        edge, ones = self._edge, sum(self.positives)
        hits, rows = sum(self.positives[edge:]), sum(self.rows[edge:])
        false = rows - hits
        return (int(self.n - ones - false), int(false)), (int(ones - hits), int(hits))

    def called(self, probability: npt.ArrayLike) -> tuple[int, int]:
        """Count rows (n,) without labels that are called 0 and 1: by the share of label 1, where calls tell labels apart best."""
        ones = int((_cell(_probabilities(probability)) >= self._edge).sum())
        return np.size(probability) - ones, ones

    @property
    def _edge(self) -> int:
        """First cell whose rows are called 1."""
        return min(max(math.ceil(sum(self.positives) / max(self.n, 1) * BINS), 1), BINS - 1)

    def calibration(self) -> Calibration:
        """Fit the isotonic regression of the label on the score. Raises: ValueError without a row.

        Source: Zadrozny and Elkan, Transforming classifier scores into accurate multiclass probability estimates, 2002.
        """
        rows = np.array(self.rows, dtype=np.float64)
        filled = rows > 0
        if not filled.any():
            raise ValueError("a calibration needs labelled rows, got none; use the probabilities as they are")
        score = np.array(self.scores)[filled] / rows[filled]
        fitted = scipy.optimize.isotonic_regression(
            np.array(self.positives)[filled] / rows[filled], weights=rows[filled]
        ).x
        return Calibration(tuple(score.tolist()), tuple(np.asarray(fitted).tolist()))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Monotone map of scores to probabilities, linear between its knots and flat beyond them."""

    score: tuple[float, ...] = (0.0, 1.0)
    probability: tuple[float, ...] = (0.0, 1.0)

    def __call__(self, score: npt.ArrayLike) -> Floats:
        """Map scores (n,) to probabilities (n,). Raises: ValueError if one is outside [0, 1]."""
        return np.interp(_probabilities(score), self.score, self.probability)


def estimate_losses(
    probability: npt.ArrayLike, calibrated: npt.ArrayLike, *, clip: float = 0.01, threshold: float = 0.5
) -> dict[str, Estimate]:
    """Estimate `log_loss` (nats), `brier` and `accuracy` on rows (n,) without labels.

    The mean of c·l₁ + (1 − c)·l₀, with the standard error √Σ c(1 − c)(l₁ − l₀)² / n of independent labels.
    clip: probabilities are held in [clip, 1 - clip] for the log loss, as where it is realised. threshold: from which a
    row is called 1.
    Raises: ValueError if there is no row, shapes differ, or a probability is outside [0, 1].
    """
    p, c = _pair(probability, calibrated)
    return {
        name: Estimate(
            len(p),
            float((c * one + (1 - c) * zero).mean()),
            float(np.sqrt((c * (1 - c) * (one - zero) ** 2).sum()) / len(p)),
        )
        for name, (one, zero) in _losses(p, clip, threshold).items()
    }


def realise(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, clip: float = 0.01, threshold: float = 0.5
) -> dict[str, float]:
    """Compute the measures of `estimate_losses` from labels (n,) of 0 and 1.

    Raises: ValueError as `estimate_losses`.
    """
    p, y = _pair(probability, label)
    return {
        name: float(np.where(y == 1, one, zero).mean())
        for name, (one, zero) in _losses(p, clip, threshold).items()
    }


def estimate_auc(probability: npt.ArrayLike, calibrated: npt.ArrayLike) -> float:
    """Estimate the area under the ROC curve of rows (n,) without labels: expected concordant pairs over expected pairs.

    Σ cᵢ(1 − cⱼ)·[pᵢ > pⱼ] / Σ cᵢ(1 − cⱼ) over i ≠ j, ties of p counting half.
    Raises: ValueError as `estimate_losses`, and if c makes one class certain for every row.
    """
    p, c = _pair(probability, calibrated)
    score, cell = np.unique(p, return_inverse=True)
    ones, zeros = np.bincount(cell, c, len(score)), np.bincount(cell, 1 - c, len(score))
    itself = float((c * (1 - c)).sum())
    below = np.cumsum(zeros) - zeros
    concordant = float((ones * (below + zeros / 2)).sum()) - itself / 2
    pairs = float(ones.sum() * zeros.sum()) - itself
    if pairs <= 0:
        raise ValueError("AUC needs both classes to be possible; every row is certain to be of one")
    return concordant / pairs


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
    for name, loss in _class_losses(p, clip).items():
        mean = (c * loss).sum(axis=1)
        variance = np.maximum((c * loss**2).sum(axis=1) - mean**2, 0.0)
        found[name] = Estimate(len(p), float(mean.mean()), float(np.sqrt(variance.sum()) / len(p)))
    return found


def realise_classes(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, clip: float = 0.01
) -> dict[str, float]:
    """Compute the measures of `estimate_class_losses` from labels (n,), the numbers of the classes."""
    p, y = _rows(probability), np.asarray(label, dtype=np.int64)
    return {name: float(loss[np.arange(len(y)), y].mean()) for name, loss in _class_losses(p, clip).items()}


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


@dataclass(frozen=True, slots=True)
class LossModel:
    """Model of the expected loss of a row.

    rows: learnt from; spread: of a row's loss around what is expected of it, squared.
    """

    mean: HistGradientBoostingRegressor
    spread: HistGradientBoostingRegressor
    rows: int

    @classmethod
    def fit(cls, features: npt.ArrayLike, loss: npt.ArrayLike) -> Self:
        """Fit to `features` (n, F), NaN where missing, and the losses (n,) of these rows.

        The spread is learnt from each half's losses around what the other half expects of them.
        Raises: ValueError if there are fewer than four rows, shapes differ, or a loss is no number.
        """
        x, y = np.asarray(features, dtype=np.float64), np.asarray(loss, dtype=np.float64)
        if x.ndim != 2 or y.shape != x.shape[:1] or len(y) < _LEAST_ROWS or not np.isfinite(y).all():  # noqa: PLR2004 - rows, columns
            raise ValueError(
                f"need features (n, F) and n >= {_LEAST_ROWS} finite losses, got {x.shape} and {y.shape}"
            )
        half = np.arange(len(y)) % _FOLDS  # rows come by time: both halves see all of it
        squares = np.empty(len(y))
        with _one_thread():
            for fold in range(_FOLDS):
                seen = _boosted(x[half != fold], y[half != fold])
                squares[half == fold] = np.square(y[half == fold] - seen.predict(x[half == fold]))
            return cls(_boosted(x, y), _boosted(x, squares), len(y))

    def estimate(self, features: npt.ArrayLike) -> Estimate:
        """Estimate the mean loss of rows (n, F), and the standard error of what will be realised on them.

        Their own spread, and that of the rows that it was learnt from, both as independent.
        Raises: ValueError without a row.
        """
        x = np.asarray(features, dtype=np.float64)
        if not len(x):
            raise ValueError("there is no row to estimate a loss of")
        with _one_thread():
            mean = float(np.maximum(self.mean.predict(x), 0.0).mean())
            spread = float(np.maximum(self.spread.predict(x), 0.0).mean())
        return Estimate(len(x), mean, float(np.sqrt(spread / len(x) + spread / self.rows)))


def auc_with_error(label: npt.ArrayLike, score: npt.ArrayLike) -> tuple[float, float] | None:
    """Compute how often a positive row ranks above a negative one, ties counting half, and its standard error.

    label: (n,) of 0 and 1; score: (n,). None where there are fewer than two rows of either label.
    Raises: ValueError if the lengths differ, or a value is not finite.
    Source: DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated ROC curves, 1988.
    """
    y, s = as_floats(label, "label"), as_floats(score, "score")
    if len(y) != len(s):
        raise ValueError(f"a label for each score is needed, got {len(y)} and {len(s)}")
    positive, negative = np.sort(s[y == 1]), np.sort(s[y != 1])
    if min(len(positive), len(negative)) < 2:  # noqa: PLR2004 - for a spread
        return None
    above = _share_below(negative, positive)  # of each positive: negatives below it
    below = 1.0 - _share_below(positive, negative)
    variance = above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative)
    return float(above.mean()), float(np.sqrt(variance))


def _cell(p: Floats) -> npt.NDArray[np.int64]:
    return np.minimum((p * BINS).astype(np.int64), BINS - 1)


def _losses(p: Floats, clip: float, threshold: float) -> dict[str, tuple[Floats, Floats]]:
    held = np.clip(p, clip, 1 - clip)
    called = (p >= threshold).astype(np.float64)
    return {
        "log_loss": (-np.log(held), -np.log1p(-held)),
        "brier": (np.square(1 - p), np.square(p)),
        "accuracy": (called, 1 - called),
    }


def _pair(probability: npt.ArrayLike, other: npt.ArrayLike) -> tuple[Floats, Floats]:
    p, c = _probabilities(probability), _probabilities(other)
    if p.shape != c.shape or not len(p):
        raise ValueError(f"need as many of both and at least one row, got {p.shape} and {c.shape}")
    return p, c


def _probabilities(values: npt.ArrayLike) -> Floats:
    p = np.asarray(values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"probabilities are one row of numbers in [0, 1], got shape {p.shape}: {p[:3]}")
    return p


def _class_losses(p: Floats, clip: float) -> dict[str, Floats]:
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


def _one_thread() -> threadpool_limits:
    """Limit OpenMP to one thread for a block: several share steps so small that they spin for each other, and on a busy
    machine took ten times the CPU time.
    """
    from threadpoolctl import threadpool_limits  # late: scikit-learn brings it

    return threadpool_limits(limits=1, user_api="openmp")


def _boosted(x: Floats, y: Floats) -> HistGradientBoostingRegressor:
    from sklearn.ensemble import HistGradientBoostingRegressor  # late: it is large

    return HistGradientBoostingRegressor(
        max_iter=40, max_leaf_nodes=8, min_samples_leaf=20, random_state=0
    ).fit(x, y)


def _share_below(sample: npt.NDArray[np.float64], of: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute for each value of `of` the share of the sorted sample below it, ties counting half."""
    left, right = (np.searchsorted(sample, of, side=side) for side in ("left", "right"))
    result: npt.NDArray[np.float64] = (left + right) / (2.0 * len(sample))
    return result


__all__ = [
    "MOST_CLASSES",
    "Calibration",
    "ClassSketch",
    "Estimate",
    "LossModel",
    "ScoreSketch",
    "auc_with_error",
    "estimate_auc",
    "estimate_class_losses",
    "estimate_losses",
    "estimate_shares",
    "realise",
    "realise_classes",
]
