"""Evaluation sets of language models: tables of requests, and of what is expected as the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from toque.functions.evaluation.errors import EvaluationError

__all__ = ["EvaluationRow", "asked_column", "order_of", "read_row", "read_rows"]

_FEWEST_CHOICES = 2


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """A request of an evaluation set. number: of the row in its table; expected: as the answer, "" where nothing is.

    prompt: the text of the one message, None of a conversation; choices: texts of which one is to be chosen.
    """

    number: int
    messages: list[Any]
    variables: dict[str, Any]
    expected: str
    prompt: str | None = None
    choices: tuple[str, ...] = ()


def read_rows(table: pa.Table, *, label: str, needs_expected: bool, seed: int) -> list[EvaluationRow]:
    """Read the rows of an evaluation set, in a random order.

    table: with a column `messages`, a conversation in JSON, or `prompt`, the text of one message; `variables`, an object in JSON,
    if prompts have any; `choices`, a list of texts, if there are; and `label`, what is expected, of choices one of them.
    Raises: EvaluationError, naming the row and column.
    """
    asked = asked_column(table.column_names)
    needed = [asked, *([label] if needs_expected else [])]
    if missing := [name for name in needed if name not in table.column_names]:
        raise EvaluationError(
            f"the evaluation set has columns {table.column_names}, and needs {missing}: `messages` or `prompt`, and the label"
        )
    rows = [
        read_row(number, each, label if needs_expected else None)
        for number, each in enumerate(table.to_pylist())
    ]
    return [rows[at] for at in order_of(len(rows), seed)]


def order_of(rows: int, seed: int) -> list[int]:
    """Random order of the rows of an evaluation set: the number in the table of each row that is asked."""
    return [int(at) for at in np.random.default_rng(seed).permutation(rows)]


def asked_column(names: Sequence[str]) -> str:
    """Name of the column that has what is asked: `messages` if there is one, else `prompt`."""
    return "messages" if "messages" in names else "prompt"


def read_row(number: int, row: dict[str, Any], label: str | None = None) -> EvaluationRow:
    """Read a row of a table of requests. label: column of what is expected. Raises: EvaluationError, naming the column."""
    asked = asked_column([*row])
    if row[asked] is None or (label is not None and row[label] is None):
        raise EvaluationError(
            f"row {number}: {asked if row[asked] is None else label} is null; leave such rows out"
        )
    prompt = None if asked == "messages" else str(row["prompt"])
    messages = (
        _parsed(number, row, "messages", list) if prompt is None else [{"role": "user", "content": prompt}]
    )
    variables = {} if row.get("variables") is None else _parsed(number, row, "variables", dict)
    expected = "" if label is None else str(row[label])
    return EvaluationRow(number, messages, variables, expected, prompt, _choices(number, row, expected))


def _choices(number: int, row: dict[str, Any], expected: str) -> tuple[str, ...]:
    """Choices of a row, of which the expected text is one. Raises: EvaluationError."""
    given = row.get("choices")
    if given is None:
        return ()
    if not isinstance(given, list) or len(given) < _FEWEST_CHOICES or expected not in given:
        raise EvaluationError(
            f"row {number}: choices={given!r:.80}: expected a list of {_FEWEST_CHOICES} texts or more, with {expected!r:.80} "
            "among them"
        )
    return tuple(map(str, given))


def _parsed(number: int, row: dict[str, Any], column: str, kind: type[Any]) -> Any:
    try:
        found = json.loads(row[column])
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"row {number}: {column}={row[column]!r:.80} is not JSON: {error}") from error
    if not isinstance(found, kind):
        raise EvaluationError(f"row {number}: {column}={row[column]!r:.80}: expected a JSON {kind.__name__}")
    return found
