"""Evaluation sets of language models: tables of requests, and of what is expected as the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from functions.evaluation.errors import EvaluationError

__all__ = ["EvaluationRow", "read_rows"]


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """A request of an evaluation set. number: of the row in its table; expected: as the answer, "" where nothing is."""

    number: int
    messages: list[Any]
    variables: dict[str, Any]
    expected: str


def read_rows(table: pa.Table, *, label: str, needs_expected: bool, seed: int) -> list[EvaluationRow]:
    """Read the rows of an evaluation set, in a random order.

    table: with a column `messages`, a conversation in JSON, or `prompt`, the text of one message; `variables`, an object in JSON,
    if prompts have any; and `label`, what is expected. Raises: EvaluationError, naming the row and column.
    """
    asked = "messages" if "messages" in table.column_names else "prompt"
    needed = [asked, *([label] if needs_expected else [])]
    if missing := [name for name in needed if name not in table.column_names]:
        raise EvaluationError(
            f"the evaluation set has columns {table.column_names}, and needs {missing}: `messages` or `prompt`, and the label"
        )
    rows = [
        _row(number, each, asked, label if needs_expected else None)
        for number, each in enumerate(table.to_pylist())
    ]
    return [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))]


def _row(number: int, row: dict[str, Any], asked: str, label: str | None) -> EvaluationRow:
    if row[asked] is None or (label is not None and row[label] is None):
        raise EvaluationError(
            f"row {number}: {asked if row[asked] is None else label} is null; leave such rows out"
        )
    if asked == "messages":
        messages = _parsed(number, row, "messages", list)
    else:
        messages = [{"role": "user", "content": str(row["prompt"])}]
    variables = {} if row.get("variables") is None else _parsed(number, row, "variables", dict)
    return EvaluationRow(number, messages, variables, "" if label is None else str(row[label]))


def _parsed(number: int, row: dict[str, Any], column: str, kind: type[Any]) -> Any:
    try:
        found = json.loads(row[column])
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"row {number}: {column}={row[column]!r:.80} is not JSON: {error}") from error
    if not isinstance(found, kind):
        raise EvaluationError(f"row {number}: {column}={row[column]!r:.80}: expected a JSON {kind.__name__}")
    return found
