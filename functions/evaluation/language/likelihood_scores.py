"""Scores of versions by likelihoods: of texts, or of the right choice and whether it was chosen."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.language.answer_gate import AnswerGate, Judged, Scores, judge_scores
from toque.functions.evaluation.language.evaluation_set import EvaluationRow, order_of, read_rows
from toque.functions.evaluation.language.likelihood import Likelihood, Likelihoods, read_model
from toque.functions.evaluation.language.scorers import Scorer
from toque.functions.model_formats.matrices import named_column
from toque.functions.runtime.context import context
from toque.registry import ModelVersion

__all__ = ["judged_by_likelihood"]

_TEXT = "text"


@dataclass(frozen=True, slots=True)
class _Scored:
    """Scores of a version by scorer, (rows,) each, and further metrics."""

    scores: dict[str, Scores]
    metrics: dict[str, float]


def judged_by_likelihood(
    compared: Sequence[ModelVersion], table: pa.Table, gate: AnswerGate, *, label: str
) -> tuple[Judged, int]:
    """Judge a version, and the champion if there is one, by the rows of a table; returns what was found, and the number of rows.

    One model is in memory at a time. Raises: EvaluationError if a version is no Hugging Face folder, or a row or scorer does not fit.
    """
    if not table.num_rows:
        raise EvaluationError("the evaluation set has no rows")
    whole = _TEXT in table.column_names
    _check_scorers(gate, whole=whole)
    texts, rows = _texts(table, gate.seed) if whole else [], [] if whole else _rows(table, label, gate.seed)
    found = []
    for version in compared:
        with tempfile.TemporaryDirectory(prefix="toque-evaluation-") as place:
            folder = Path(place) / "model"
            context().registry().download(version.model, version.version, to=folder)
            model = read_model(folder)
            found.append(_of_texts(model, texts, gate) if whole else _of_choices(model, rows, gate))
            del model
    own, *champion = found
    ordered = table.take(order_of(table.num_rows, gate.seed))
    judged = judge_scores(gate, own.scores, champion[0].scores if champion else None, ordered)
    judged.metrics.update(own.metrics)
    for each in champion:
        judged.metrics.update({f"champion_{name}": value for name, value in each.metrics.items()})
    return judged, table.num_rows


def _of_texts(model: Likelihoods, texts: Sequence[str], gate: AnswerGate) -> _Scored:
    each = [model.of_text(text) for text in texts]
    scores = np.array([one.a_token for one in each], np.float64)
    return _Scored({scorer.label: scores for scorer in gate.scorers}, _sum(each).metrics)


def _of_choices(model: Likelihoods, rows: Sequence[EvaluationRow], gate: AnswerGate) -> _Scored:
    right, chosen, plain = [], [], []
    for row in rows:
        each = model.of_choices(row)
        right.append(each[row.choices.index(row.expected)])
        chosen.append(row.choices[int(np.argmax([one.nats / max(1, one.size_bytes) for one in each]))])
        plain.append(row.choices[int(np.argmax([one.nats for one in each]))] == row.expected)
    scores = {}
    for scorer in gate.scorers:
        if scorer.kind == "likelihood":
            scores[scorer.label] = np.array([one.a_token for one in right], np.float64)
        else:
            pairs = zip(chosen, rows, strict=True)
            scores[scorer.label] = np.array([scorer.score(text, row.expected) for text, row in pairs])
    taken = [text == row.expected for text, row in zip(chosen, rows, strict=True)]
    return _Scored(scores, {"accuracy": float(np.mean(plain)), "accuracy_by_byte": float(np.mean(taken))})


def _sum(each: Sequence[Likelihood]) -> Likelihood:
    first, *others = each
    for other in others:
        first = first + other
    return first


def _check_scorers(gate: AnswerGate, *, whole: bool) -> None:
    fit = {"likelihood"} if whole else {"likelihood", "exact"}
    other: list[Scorer] = [each for each in gate.scorers if each.kind not in fit]
    if other:
        what = "whole texts have no answer to score" if whole else "a choice is right or not"
        raise EvaluationError(
            f"scorers of kind {sorted({each.kind for each in other})}: {what}; use {sorted(fit)}"
        )


def _texts(table: pa.Table, seed: int) -> list[str]:
    """Texts of a table, in a random order. Raises: EvaluationError if one is null."""
    column = named_column(table, _TEXT)
    if column.null_count:
        raise EvaluationError(f"column {_TEXT!r} has {column.null_count} nulls; leave such rows out")
    texts = [str(text) for text in column.to_pylist()]
    return [texts[at] for at in order_of(len(texts), seed)]


def _rows(table: pa.Table, label: str, seed: int) -> list[EvaluationRow]:
    rows = read_rows(table, label=label, needs_expected=True, seed=seed)
    if missing := [row.number for row in rows if not row.choices]:
        raise EvaluationError(
            f"rows {missing[:5]} have no choices: likelihoods are of a column {_TEXT!r}, or of `choices` after a prompt"
        )
    return rows
