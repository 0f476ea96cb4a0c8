"""Losses of logged answers by name, row by row: of labels that are numbers, lists or texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toque.functions.evaluation.meanings import Loss
from toque.functions.evaluation.metrics.counts import unit_deviance
from toque.functions.evaluation.metrics.texts import by_row, edit_distance_of, mismatch_of, token_distance_of
from toque.functions.evaluation.metrics.vectors import cosine_of, euclidean_of

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
_of_any_size = np.errstate(over="ignore", invalid="ignore")
"""Labels may be as large as a float64: a loss that is none is held at the cap, or NaN."""


@dataclass(frozen=True, slots=True)
class NumberLabels:
    """Answers and labels of judged rows. flat: values of all rows; start, width: place and number of a row's values in it."""

    flat: Floats
    start: Places
    width: Places
    label: Floats
    clip: float
    cap: float


@dataclass(frozen=True, slots=True)
class ListLabels:
    """Answers and truth of rows that have a list of one size each. places: (rows,); answers, truth: (rows, size)."""

    places: Places
    answers: Floats
    truth: Floats


@dataclass(frozen=True, slots=True)
class TextLabels:
    """Answers and truth of rows that have a text each. places: (rows,); answers, truth: as many."""

    places: Places
    answers: Sequence[str]
    truth: Sequence[str]


def _label_log_loss(rows: ListLabels, clip: float, _: float) -> Floats:
    """Mean log loss over the labels of each row, at most −log(clip); NaN where the truth is not 0 and 1."""
    p = np.clip(rows.answers, clip, 1 - clip)
    loss = -(rows.truth * np.log(p) + (1 - rows.truth) * np.log1p(-p)).mean(axis=1)
    result: Floats = np.where(np.isin(rows.truth, (0.0, 1.0)).all(axis=1), loss, np.nan)
    return result


@_of_any_size
def _cosine_distance(rows: ListLabels, _: float, __: float) -> Floats:
    return cosine_of(rows.truth, rows.answers)


@_of_any_size
def _euclidean_distance(rows: ListLabels, _: float, cap: float) -> Floats:
    return np.minimum(euclidean_of(rows.truth, rows.answers), cap)


@_of_any_size
def _log_loss(rows: NumberLabels) -> Floats:
    """Cross entropy of each row, in nats; NaN where the label is neither a probability nor a class."""
    flat, start, width, label, clip = rows.flat, rows.start, rows.width, rows.label, rows.clip
    many = width > 1
    is_class = many & (label == np.floor(label)) & (label >= 0) & (label < width)
    is_probability = ~many & (label >= 0) & (label <= 1)
    index = start + np.where(is_class, label, 0).astype(np.int64)
    p = np.clip(flat[index], clip, 1 - clip)
    binary = -(label * np.log(p) + (1 - label) * np.log1p(-p))
    result: Floats = np.where(is_class, -np.log(p), np.where(is_probability, binary, np.nan))
    return result


def entropy(probability: Floats, clip: float) -> Floats:
    """Entropy of a binary outcome, in nats."""
    p = np.clip(probability, clip, 1 - clip)
    result: Floats = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return result


@_of_any_size
def _squared_error(rows: NumberLabels) -> Floats:
    error = np.minimum((rows.flat[rows.start] - rows.label) ** 2, rows.cap)
    result: Floats = np.where(rows.width == 1, error, np.nan)
    return result


@_of_any_size
def _poisson_deviance(rows: NumberLabels) -> Floats:
    """Deviance of each row; NaN where the label is no count. A rate below 0 counts as one of nothing."""
    is_count = (rows.width == 1) & (rows.label >= 0) & (rows.label == np.floor(rows.label))
    label = np.where(is_count, rows.label, 0.0)
    result: Floats = np.where(
        is_count, np.minimum(unit_deviance(label, rows.flat[rows.start]), rows.cap), np.nan
    )
    return result


def _text_loss(distance: Callable[[str, str], float]) -> Callable[[TextLabels], Floats]:
    return lambda rows: by_row(distance, rows.truth, rows.answers)


NUMBER_LOSSES: dict[Loss, Callable[[NumberLabels], Floats]] = {
    "log_loss": _log_loss,
    "squared_error": _squared_error,
    "poisson_deviance": _poisson_deviance,
    "ndcg_loss": _squared_error,
}
LIST_LOSSES: dict[Loss, Callable[[ListLabels, float, float], Floats]] = {
    "log_loss": _label_log_loss,
    "cosine_distance": _cosine_distance,
    "euclidean_distance": _euclidean_distance,
}
TEXT_LOSSES: dict[Loss, Callable[[TextLabels], Floats]] = {
    "edit_distance": _text_loss(edit_distance_of),
    "token_distance": _text_loss(token_distance_of),
    "mismatch": _text_loss(mismatch_of),
}
OF_A_MEAN: frozenset[Loss] = frozenset({"log_loss", "poisson_deviance"})
"""Losses of answers that are the mean of their label."""
