"""Distances of answered texts from label texts, from 0 for the same to 1, as pure functions of both, (rows,) each.

Exact: the same but for spaces at both ends. By edits: Levenshtein's distance over the length of the longer text. By tokens:
1 − F1 of the words that both have, whatever their case and order, as reading comprehension is scored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toque.functions.evaluation.errors import EvaluationError

Texts = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]
MOST_CHARACTERS = 10_000
"""Characters at the start of a text by which edits are counted; 20 ms for two such texts."""
_WORD = re.compile(r"\w+")


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


def edit_distance(label: Texts, answer: Texts) -> Floats:
    """Distance of each row by edits, from 0 to 1. Raises: EvaluationError for no rows, or what is no text."""
    return by_row(edit_distance_of, *_checked(label, answer))


def by_row(distance: Callable[[str, str], float], label: Sequence[str], answer: Sequence[str]) -> Floats:
    """Compute a distance of each pair of texts (rows,)."""
    return np.array(
        [distance(one, other) for one, other in zip(label, answer, strict=True)], dtype=np.float64
    )


def mean_edit_distance(label: Texts, answer: Texts) -> float:
    """Mean distance by edits, from 0 to 1. Raises: EvaluationError as `edit_distance`."""
    return float(edit_distance(label, answer).mean())


def mean_token_f1(label: Texts, answer: Texts) -> float:
    """Mean F1 of the words of both texts. Raises: EvaluationError as `edit_distance`."""
    return 1.0 - float(by_row(token_distance_of, *_checked(label, answer)).mean())


def exact_match(label: Texts, answer: Texts) -> float:
    """Share of rows whose answer is the label. Raises: EvaluationError as `edit_distance`."""
    return 1.0 - float(by_row(mismatch_of, *_checked(label, answer)).mean())


TEXT_METRICS: dict[str, Callable[[Texts, Texts], float]] = {
    "edit_distance": mean_edit_distance,
    "token_f1": mean_token_f1,
    "exact_match": exact_match,
}


def _checked(label: Any, answer: Any) -> tuple[list[str], list[str]]:
    y, a = list(label), list(answer)
    if not y or len(y) != len(a):
        raise EvaluationError(f"need as many label texts as answers, got {len(y)} and {len(a)}")
    wrong = sum(
        not (isinstance(one, str) and isinstance(other, str)) for one, other in zip(y, a, strict=True)
    )
    if wrong:
        raise EvaluationError(f"{wrong} of {len(y)} rows have a label or an answer that is no text")
    return y, a
