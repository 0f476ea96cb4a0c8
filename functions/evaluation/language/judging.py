"""Asks a judge for its verdicts on pairs of answers, each in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.language.answering import answers_of, fetched
from toque.functions.evaluation.language.evaluation_set import EvaluationRow
from toque.functions.evaluation.language.judge import (
    AGREEMENT,
    PREFERENCES,
    Judge,
    JudgeAgreement,
    Preference,
    chosen,
)
from toque.registry import Registry

__all__ = ["Pair", "calibrated", "choices_of", "question_of", "read_pairs"]

_VARIABLES: Final = frozenset({"question", "first", "second"})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to a question."""

    question: str
    first: str
    second: str


def read_pairs(table: pa.Table) -> tuple[list[Pair], list[Preference]]:
    """Read pairs of answers, and which people prefer. Raises: EvaluationError, naming the row and column."""
    columns = ("question", "first", "second", "preferred")
    if missing := [name for name in columns if name not in table.column_names]:
        raise EvaluationError(f"the pairs have columns {table.column_names}, and need {missing}")
    pairs, people = [], []
    for number, row in enumerate(table.select(columns).to_pylist()):
        if row["preferred"] not in PREFERENCES:
            raise EvaluationError(
                f"row {number}: preferred={row['preferred']!r:.80} is not one of {list(PREFERENCES)}"
            )
        pairs.append(Pair(*(str(row[name] or "") for name in columns[:3])))
        people.append(row["preferred"])
    return pairs, people


def choices_of(
    registry: Registry,
    judge: Judge,
    pairs: Sequence[Pair],
    folder: Path,
    *,
    threads: int,
    environment: Mapping[str, str],
) -> list[tuple[Preference | None, Preference | None]]:
    """Have a judge choose of each pair, straight and with the answers in each other's place.

    Raises: EvaluationError if its prompt is not a judge's, or a text is longer than it takes; EngineDown.
    """
    version = fetched(registry, registry.get_version(judge.model, judge.version), folder, threads=threads)
    if lacking := sorted(_VARIABLES - version.prompt.variables.keys()):
        raise EvaluationError(
            f"judge {judge.name}: its prompt has no variables {lacking}; a judge's has them"
        )
    rows = [row for number, pair in enumerate(pairs) for row in _both_orders(number, pair)]
    (said,) = answers_of([version], rows, seed=0, environment=environment)
    read = [chosen(each) for each in said]
    return list(zip(read[::2], read[1::2], strict=True))


def calibrated(registry: Registry, judge: Judge) -> JudgeAgreement:
    """Read how a judge agrees with people, as it was measured. Raises: EvaluationError if it was not, or not well enough."""
    record = registry.get_version(judge.model, judge.version).gates.get(AGREEMENT.name)
    if record is None or record.demand != AGREEMENT.digest:
        raise EvaluationError(
            f"judge {judge.name}: nobody knows how it agrees with people; run calibrate_judge on pairs that people labelled"
        )
    found = JudgeAgreement.model_validate(record.details["agreement"])
    found.require(judge)
    return found


def question_of(row: EvaluationRow) -> str:
    """Text of what was asked last in a row."""
    asked = [
        each.get("content") for each in row.messages if isinstance(each, dict) and each.get("role") == "user"
    ]
    return str(asked[-1]) if asked else ""


def _both_orders(number: int, pair: Pair) -> list[EvaluationRow]:
    orders: list[dict[str, Any]] = [
        {"question": pair.question, "first": one, "second": other}
        for one, other in ((pair.first, pair.second), (pair.second, pair.first))
    ]
    return [EvaluationRow(number, [], variables, "") for variables in orders]
