"""Estimate of a binary classifier's performance without labels, if its probabilities are right; no proof of health.

It sees what changed in the inputs as far as the model's own confidence shows it, and is blind to a changed relation between
inputs and labels (concept drift): then it is exactly as wrong as the model. Hold it against realised labels when they land.

Symbols: p is the probability that was served, c the same after calibration, l₁ and l₀ a row's loss if its label is 1 or 0.
Source: Garg et al., Leveraging unlabeled data to predict out-of-distribution performance, 2022; NannyML's CBPE.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy  # its parts are loaded when first used

from toque.functions.stats.moments import Floats

__all__ = ["Calibration", "Estimate", "ScoreSketch", "estimate_auc", "estimate_losses", "realise"]

BINS = 200
"""Equal cells of a `ScoreSketch` over [0, 1]."""


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

    def learnt_from(self, labelled: int) -> "Estimate":
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

    def __add__(self, other: "ScoreSketch") -> "ScoreSketch":
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

    def calibration(self) -> "Calibration":
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
