"""Metrics of predicted numbers, rates, vectors and texts, as pure functions of labels and predictions.

Numbers: both (rows,) and within `LARGEST`. Rates: labels are integers from 0 on, the rate is their mean, not
negative; it is held above `RATE_FLOOR` before its logarithm. Vectors: (rows, size) each and finite.

Texts: (rows,) each; a distance is from 0 for the same to 1. Exact: the same but for spaces at both ends. By edits:
Levenshtein's distance over the length of the longer text. By tokens: 1 − F1 of the words that both have, whatever
their case and order, as reading comprehension is scored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.stats import LARGEST

Floats = npt.NDArray[np.floating]
Texts = npt.NDArray[np.object_]
_Distances = npt.NDArray[np.float64]

RATE_FLOOR = 1e-6
"""Smallest rate that is taken as it is: one event at a rate of nothing costs 26, not infinity."""
MOST_CHARACTERS = 10_000
"""Characters at the start of a text by which edits are counted; 20 ms for two such texts."""
_SHORTEST = 1e-12  # a vector of nothing has no direction: it is as far from any other as an unrelated one
_WORD = re.compile(r"\w+")


def squared_error(label: Floats, value: Floats) -> npt.NDArray[np.float64]:
    """Squared error of each row. Raises: EvaluationError if there are no rows, or a value is not within `LARGEST`."""
    y, v = _checked(label, value)
    errors: npt.NDArray[np.float64] = (v - y) ** 2
    return errors


def mse(label: Floats, value: Floats) -> float:
    """Mean squared error, in the label's unit squared. Raises: EvaluationError as `squared_error`."""
    return float(squared_error(label, value).mean())


def rmse(label: Floats, value: Floats) -> float:
    """Root mean squared error, in the label's unit. Raises: EvaluationError as `squared_error`."""
    return float(np.sqrt(squared_error(label, value).mean()))


def mae(label: Floats, value: Floats) -> float:
    """Mean absolute error, in the label's unit. Raises: EvaluationError as `squared_error`."""
    y, v = _checked(label, value)
    return float(np.mean(np.abs(v - y)))


def r2(label: Floats, value: Floats) -> float:
    """Share of the labels' variance that is explained: 1 is all, 0 what their mean explains.

    Raises: EvaluationError as `squared_error`, and if all labels are equal.
    """
    y, v = _checked(label, value)
    spread = float(np.mean((y - y.mean()) ** 2))
    if spread == 0.0:
        raise EvaluationError(f"r2 needs labels that differ, got {len(y)} rows of {y[0]}")
    return 1.0 - float(np.mean((v - y) ** 2)) / spread


NUMBER_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "rmse": rmse,
    "mae": mae,
    "r2": r2,
    "mse": mse,
}


def _checked(label: Floats, value: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, v = np.asarray(label, dtype=np.float64), np.asarray(value, dtype=np.float64)
    if y.shape != v.shape or y.ndim != 1 or y.size == 0:
        raise EvaluationError(f"need as many labels as answers and at least one, got {y.shape} and {v.shape}")
    bad = ~((np.abs(y) <= LARGEST) & (np.abs(v) <= LARGEST))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"{int(bad.sum())} of {y.size} rows are no numbers, first {y[first]}, {v[first]} in row {first}"
        )
    return y, v


def unit_deviance(label: Floats, rate: Floats) -> npt.NDArray[np.float64]:
    """Poisson deviance of each row without checks: twice the log-likelihood lost against a rate that is the label."""
    held = np.maximum(rate, RATE_FLOOR)
    deviance: npt.NDArray[np.float64] = 2.0 * (special.xlogy(label, label / held) - (label - held))
    return deviance


def poisson_deviance(label: Floats, rate: Floats) -> npt.NDArray[np.float64]:
    """Poisson deviance of each row. Raises: EvaluationError for no rows, labels that are no counts, or rates below 0.

    Source: McCullagh and Nelder, Generalized Linear Models, 1989, section 2.3.
    """
    return unit_deviance(*_checked_rates(label, rate))


def deviance(label: Floats, rate: Floats) -> float:
    """Mean Poisson deviance of all rows. Raises: EvaluationError as `poisson_deviance`."""
    return float(poisson_deviance(label, rate).mean())


def calibration_in_the_large(label: Floats, rate: Floats) -> float:
    """Sum of the rates over the sum of the counts: 1 is calibrated, above it rates are too high.

    Raises: EvaluationError as `poisson_deviance`, and if all counts are 0.
    """
    y, mu = _checked_rates(label, rate)
    if not y.sum():
        raise EvaluationError(f"calibration in the large needs an event, got {len(y)} counts of 0")
    return float(mu.sum() / y.sum())


def dispersion(label: Floats, rate: Floats) -> float:
    """Mean squared Pearson residual: 1 where counts vary as Poisson's do, above it they vary more.

    Raises: EvaluationError as `poisson_deviance`.
    Source: McCullagh and Nelder, Generalized Linear Models, 1989, section 4.5.
    """
    y, mu = _checked_rates(label, rate)
    held = np.maximum(mu, RATE_FLOOR)
    return float(np.mean((y - held) ** 2 / held))


COUNT_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "deviance": deviance,
    "mae": mae,
    "calibration": calibration_in_the_large,
    "dispersion": dispersion,
}


def _checked_rates(label: Floats, rate: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, mu = np.asarray(label, dtype=np.float64), np.asarray(rate, dtype=np.float64)
    if y.shape != mu.shape or y.ndim != 1 or y.size == 0:
        raise EvaluationError(f"need as many counts as rates and at least one, got {y.shape} and {mu.shape}")
    strange = ~((y >= 0) & (y == np.floor(y)) & (y <= LARGEST))
    if strange.any():
        raise EvaluationError(
            f"labels must be integers from 0 on, found {np.unique(y[strange])[:5].tolist()}; at most {LARGEST:g}"
        )
    bad = ~((mu >= 0) & (mu <= LARGEST))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"{int(bad.sum())} of {mu.size} rates are no numbers from 0 on, first {mu[first]} in row {first}: "
            "answer with the mean of the count, as by a Poisson objective"
        )
    return y, mu


def cosine_of(label: Floats, vector: Floats) -> npt.NDArray[np.float64]:
    """Half of 1 − cosine of each pair of rows, without checks: 0 of one direction, one half unrelated, 1 opposite."""
    lengths = np.linalg.norm(label, axis=1) * np.linalg.norm(vector, axis=1)
    cosine = np.where(lengths > _SHORTEST, (label * vector).sum(axis=1) / np.maximum(lengths, _SHORTEST), 0.0)
    distance: npt.NDArray[np.float64] = (1.0 - np.clip(cosine, -1.0, 1.0)) / 2.0
    return distance


def euclidean_of(label: Floats, vector: Floats) -> npt.NDArray[np.float64]:
    """Euclidean distance of each pair of rows, without checks."""
    distance: npt.NDArray[np.float64] = np.linalg.norm(label - vector, axis=1)
    return distance


def cosine_distance(label: Floats, vector: Floats) -> npt.NDArray[np.float64]:
    """Distance of direction of each row, from 0 to 1. Raises: EvaluationError for no rows, or values that are not finite."""
    return cosine_of(*_checked_vectors(label, vector))


def mean_cosine_distance(label: Floats, vector: Floats) -> float:
    """Mean distance of direction, from 0 to 1. Raises: EvaluationError as `cosine_distance`."""
    return float(cosine_distance(label, vector).mean())


def mean_euclidean_distance(label: Floats, vector: Floats) -> float:
    """Mean Euclidean distance, in the label's unit. Raises: EvaluationError as `cosine_distance`."""
    return float(euclidean_of(*_checked_vectors(label, vector)).mean())


VECTOR_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "cosine_distance": mean_cosine_distance,
    "euclidean_distance": mean_euclidean_distance,
}


def _checked_vectors(
    label: Floats, vector: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    y, v = np.asarray(label, dtype=np.float64), np.asarray(vector, dtype=np.float64)
    if y.shape != v.shape or y.ndim != 2 or y.size == 0:  # noqa: PLR2004 - rows and their values
        raise EvaluationError(
            f"need as many label vectors as answers, of one size, got {y.shape} and {v.shape}"
        )
    bad = ~(np.isfinite(y) & np.isfinite(v)).all(axis=1)
    if bad.any():
        raise EvaluationError(f"{int(bad.sum())} of {len(y)} rows hold a value that is no finite number")
    return y, v


def edits(one: str, other: str) -> int:
    """Count the characters to insert, delete or replace to make one text of the other.

    Source: Hyyrö, A bit-vector algorithm for computing Levenshtein and Damerau edit distances, 2003; a column of the matrix
    is two integers, in which each bit says whether a cell is above or below the one before.
    """
    if not one or not other:
        return len(one) + len(other)
    places: dict[str, int] = {}
    for at, letter in enumerate(one):
        places[letter] = places.get(letter, 0) | 1 << at
    every, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, distance = every, 0, len(one)
    for letter in other:
        equal = places.get(letter, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right, left = down | ~(diagonal | up) & every, up & diagonal
        distance += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(diagonal | right)) & every, right & diagonal & every
    return distance


def edit_distance_of(label: str, answer: str) -> float:
    """Edits between two texts over the length of the longer one."""
    one, other = label[:MOST_CHARACTERS], answer[:MOST_CHARACTERS]
    return 0.0 if one == other else edits(one, other) / max(len(one), len(other))


def token_distance_of(label: str, answer: str) -> float:
    """1 − F1 of the words of two texts; texts without words are compared as they are."""
    one, other = (Counter(_WORD.findall(text.casefold())) for text in (label, answer))
    if not one or not other:
        return float(one != other or (not one and label.strip() != answer.strip()))
    return 1.0 - 2.0 * (one & other).total() / (one.total() + other.total())


def mismatch_of(label: str, answer: str) -> float:
    """1 unless two texts are the same but for spaces at both ends."""
    return float(label.strip() != answer.strip())


def edit_distance(label: Texts, answer: Texts) -> _Distances:
    """Distance of each row by edits, from 0 to 1. Raises: EvaluationError for no rows, or what is no text."""
    return by_row(edit_distance_of, *_checked_texts(label, answer))


def by_row(distance: Callable[[str, str], float], label: Sequence[str], answer: Sequence[str]) -> _Distances:
    """Compute a distance of each pair of texts (rows,)."""
    return np.array(
        [distance(one, other) for one, other in zip(label, answer, strict=True)], dtype=np.float64
    )


def mean_edit_distance(label: Texts, answer: Texts) -> float:
    """Mean distance by edits, from 0 to 1. Raises: EvaluationError as `edit_distance`."""
    return float(edit_distance(label, answer).mean())


def mean_token_f1(label: Texts, answer: Texts) -> float:
    """Mean F1 of the words of both texts. Raises: EvaluationError as `edit_distance`."""
    return 1.0 - float(by_row(token_distance_of, *_checked_texts(label, answer)).mean())


def exact_match(label: Texts, answer: Texts) -> float:
    """Share of rows whose answer is the label. Raises: EvaluationError as `edit_distance`."""
    return 1.0 - float(by_row(mismatch_of, *_checked_texts(label, answer)).mean())


TEXT_METRICS: dict[str, Callable[[Texts, Texts], float]] = {
    "edit_distance": mean_edit_distance,
    "token_f1": mean_token_f1,
    "exact_match": exact_match,
}


def _checked_texts(label: Any, answer: Any) -> tuple[list[str], list[str]]:
    y, a = list(label), list(answer)
    if not y or len(y) != len(a):
        raise EvaluationError(f"need as many label texts as answers, got {len(y)} and {len(a)}")
    wrong = sum(
        not (isinstance(one, str) and isinstance(other, str)) for one, other in zip(y, a, strict=True)
    )
    if wrong:
        raise EvaluationError(f"{wrong} of {len(y)} rows have a label or an answer that is no text")
    return y, a
