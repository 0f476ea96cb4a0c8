"""The functions that judge a version of a language model, and record the verdict with it.

They judge by answers, or by likelihoods: of texts, or of the right choice and whether it was chosen.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from pydantic import Field

from toque.functions.arguments import Model, Version
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.gate import (
    gate_in_force,
    refuse_training_data,
    require_demanded_data,
)
from toque.functions.evaluation.language.answer_gate import (
    AnswerGate,
    Judged,
    Scores,
    judge_answers,
    judge_scores,
)
from toque.functions.evaluation.language.answering import (
    Pair,
    answers_of,
    calibrated,
    choices_of,
    fetched,
    question_of,
    read_pairs,
)
from toque.functions.evaluation.language.evaluation_set import EvaluationRow, order_of, read_rows
from toque.functions.evaluation.language.judge import AGREEMENT, Judge, JudgeAgreement, agreement, verdict
from toque.functions.evaluation.language.likelihood import Likelihoods, read_model
from toque.functions.evaluation.language.scorers import Scorer, check_classifier, scores_of
from toque.functions.evaluation.offline_gate import GateResult
from toque.functions.generative.engines import scratch_folder
from toque.functions.model_formats.matrices import named_column
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.function import function
from toque.registry import ModelVersion, Table, TableSnapshot

Measure = Callable[[Sequence[ModelVersion], pa.Table, AnswerGate], tuple[Judged, int]]
"""Judges a version, and the champion if there is one, by the rows of a table; returns what was found, and of how many rows."""
_Threads = Annotated[
    int, Field(ge=1, le=1_024, description="Threads of the engine that each model answers by.")
]
_CHAMPION = "champion"
_TEXT_COLUMN = "text"


@function(http=True, resources=Resources(num_cpus=1), timeout_s=7_200)
def evaluate_answers(
    model: Model,
    version: Version,
    dataset: Annotated[
        TableSnapshot,
        Field(description="Evaluation set: a table at one version, with a column `messages` or `prompt`."),
    ],
    gate: Annotated[
        AnswerGate | None,
        Field(
            description=(
                "Limits to judge by, the defaults unless given; "
                "where the model's policy sets them for its name, no others."
            )
        ),
    ] = None,
    label: Annotated[
        str, Field(description="Column of what is expected, read if a scorer compares with it.")
    ] = "expected",
    threads: _Threads = 1,
) -> GateResult:
    """Have a version of a language model and the champion answer the same rows, judge the answers, and record the outcome.

    Without a champion, or by the champion itself, nothing is compared. Rows that a prompt cannot take are recorded as not passed.
    Raises: EvaluationError if the version learnt from this very snapshot, or limits or data are not those of the policy;
    NotFound; EngineDown; Refused if the policy changed meanwhile.
    """
    measure = partial(_by_answers, label=label, threads=threads)
    return _evaluated(model, version, dataset, gate or AnswerGate(), label, measure)


@function(http=True, resources=Resources(num_cpus=1), timeout_s=7_200)
def evaluate_likelihoods(
    model: Model,
    version: Version,
    dataset: Annotated[
        TableSnapshot,
        Field(
            description=(
                "Table at one version, with a column `text`; "
                "or with `prompt` or `messages`, and `choices`, a list of texts."
            )
        ),
    ],
    gate: Annotated[
        AnswerGate | None,
        Field(
            description=(
                "Limits to judge by, with scorers `likelihood`, and of choices `exact` too; "
                "likelihood alone unless given."
            )
        ),
    ] = None,
    label: Annotated[
        str, Field(description="Column of the right one of the choices; not read of whole texts.")
    ] = "expected",
) -> GateResult:
    """Judge a version of a language model, a Hugging Face folder, by how likely it takes texts or choices, and record the outcome.

    Of texts the perplexity is measured; of choices the answer is the one with the greatest likelihood a byte, and the scorer
    `exact` gives the share that was chosen rightly. Where the model's policy sets the limits of the gate of that name, no
    others may be given.
    Raises: as `evaluate_answers` does, but EngineDown.
    """
    if gate is None:  # its scorers are no wish of the caller's, which a policy with others would refuse
        gate = AnswerGate.model_construct({"name"}, name="likelihood", scorers=(Scorer(kind="likelihood"),))
    return _evaluated(model, version, dataset, gate, label, partial(_by_likelihoods, label=label))


def _evaluated(
    model: str, version: int, dataset: TableSnapshot, gate: AnswerGate, label: str, measure: Measure
) -> GateResult:
    registry = context().registry()
    judged = registry.get_version(model, version)
    policy = registry.get_model(model).policy
    gate, demand = gate_in_force(policy, gate)
    if demand in policy.gates:
        require_demanded_data(registry, judged, demand, dataset=dataset, label=label, baseline_set=None)
    refuse_training_data(judged, dataset)
    champion = registry.find_version(model, _CHAMPION)
    if champion is not None and champion.version == version:
        champion = None
    table = Table(registry.store, dataset.name).read(version=dataset.version)
    compared = [judged, *([champion] if champion is not None else [])]
    try:
        gate.check_slices(table)  # before engines start, which take long
        found, rows = measure(compared, table, gate)
        result = GateResult(
            model=model,
            version=version,
            gate=gate.name,
            passed=all(check.passed for check in found.checks),
            rows=rows,
            metrics=found.metrics,
            intervals=found.intervals,
            checks=found.checks,
            champion=None if champion is None else champion.version,
        )
    except EvaluationError as error:
        result = GateResult(
            model=model, version=version, gate=gate.name, passed=False, rows=table.num_rows, reason=str(error)
        )
    details = {**result.model_dump(mode="json"), "dataset": str(dataset)}
    registry.record_gate(
        model, version, gate.name, passed=result.passed, details=details, demand=demand.digest
    )
    return result


def _by_answers(
    compared: Sequence[ModelVersion], table: pa.Table, gate: AnswerGate, *, label: str, threads: int
) -> tuple[Judged, int]:
    """Have the versions answer, and judge.

    Raises: EvaluationError if there are no rows, a prompt cannot take one, or the judge does not agree with people well enough.
    """
    registry = context().registry()
    rows = read_rows(table, label=label, needs_expected=gate.needs_expected, seed=gate.seed)
    if not rows:
        raise EvaluationError("the evaluation set has no rows")
    if gate.judge is not None:
        calibrated(registry, gate.judge)
    for scorer in gate.scorers:
        if scorer.kind == "classifier":
            check_classifier(registry, scorer)
    preferences = None
    with scratch_folder() as place:
        versions = [fetched(registry, each, place / str(each.version), threads=threads) for each in compared]
        answers = answers_of(versions, rows, seed=gate.seed, environment=os.environ)
        champions = answers[1] if len(answers) > 1 else None
        if gate.judge is not None and champions is not None:
            preferences = _preferences(gate.judge, place / "judge", threads, rows, answers[0], champions)
    expected = [row.expected for row in rows]
    score = partial(scores_of, registry)
    ordered = table.take([row.number for row in rows])
    return judge_answers(gate, answers[0], champions, expected, preferences, score, ordered), len(rows)


def _by_likelihoods(
    compared: Sequence[ModelVersion], table: pa.Table, gate: AnswerGate, *, label: str
) -> tuple[Judged, int]:
    """Judge the versions by likelihoods. Raises: EvaluationError as `judged_by_likelihood`, and for a judge, who has no answers to compare."""
    if gate.judge is not None:
        raise EvaluationError(
            f"judge={gate.judge.name!r}: likelihoods give no answers to compare; leave it out"
        )
    return judged_by_likelihood(compared, table, gate, label=label)


def _preferences(
    judge: Judge,
    place: Path,
    threads: int,
    rows: Sequence[EvaluationRow],
    answers: Sequence[str],
    champions: Sequence[str],
) -> list[float]:
    """Have the judge compare both answers to each row: 1 for the first, -1 for the champion's; equal ones are a tie unasked."""
    found = [0.0] * len(rows)
    differ = [at for at, (one, other) in enumerate(zip(answers, champions, strict=True)) if one != other]
    if differ:
        pairs = [Pair(question_of(rows[at]), answers[at], champions[at]) for at in differ]
        choices = choices_of(
            context().registry(), judge, pairs, place, threads=threads, environment=os.environ
        )
        for at, both in zip(differ, choices, strict=True):
            found[at] = {"first": 1.0, "second": -1.0, "tie": 0.0}[verdict(*both)]
    return found


@function(http=True, resources=Resources(num_cpus=1), timeout_s=7_200)
def calibrate_judge(
    judge: Annotated[
        Judge, Field(description="Version that judges, and how well it must agree with people.")
    ],
    dataset: Annotated[
        TableSnapshot,
        Field(
            description=(
                "Table at one version, with columns `question`, `first`, `second`, and `preferred`: "
                "first, second or tie."
            )
        ),
    ],
    threads: _Threads = 1,
) -> JudgeAgreement:
    """Hold a judge against pairs of answers of which people said which is better, and record how well it agrees.

    The judge is asked in both orders. The result stands with the judge's version as its gate `agreement`, passed if it is as
    the judge demands; gates with this judge read it there.
    Raises: NotFound; EvaluationError if the version's prompt is not a judge's, or learnt from this very snapshot; EngineDown.
    """
    registry = context().registry()
    version = registry.get_version(judge.model, judge.version)
    refuse_training_data(version, dataset)
    pairs, people = read_pairs(Table(registry.store, dataset.name).read(version=dataset.version))
    with scratch_folder() as place:
        choices = choices_of(registry, judge, pairs, place, threads=threads, environment=os.environ)
    found = agreement(choices, people)
    try:
        found.require(judge)
        reason = ""
    except EvaluationError as error:
        reason = str(error)
    details = {
        "agreement": found.model_dump(mode="json"),
        "judge": judge.model_dump(mode="json"),
        "dataset": str(dataset),
        "reason": reason,
    }
    registry.record_gate(
        judge.model,
        judge.version,
        AGREEMENT.name,
        passed=not reason,
        details=details,
        demand=AGREEMENT.digest,
    )
    return found


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
    whole = _TEXT_COLUMN in table.column_names
    _check_scorers(gate, whole=whole)
    texts, rows = _texts(table, gate.seed) if whole else [], [] if whole else _rows(table, label, gate.seed)
    found = []
    for version in compared:
        with tempfile.TemporaryDirectory(prefix="toque-evaluation-") as place:
            folder = Path(place) / "model"
            context().registry().download(version.model, version.version, to=folder)
            model = read_model(folder)
            if whole:
                likelihoods = [model.of_text(text) for text in texts]
                scores = np.array([one.a_token for one in likelihoods], np.float64)
                all_texts = reduce(add, likelihoods).metrics
                found.append(_Scored({scorer.label: scores for scorer in gate.scorers}, all_texts))
            else:
                found.append(_of_choices(model, rows, gate))
            del model
    own, *champion = found
    ordered = table.take(order_of(table.num_rows, gate.seed))
    judged = judge_scores(gate, own.scores, champion[0].scores if champion else None, ordered)
    judged.metrics.update(own.metrics)
    for each in champion:
        judged.metrics.update({f"champion_{name}": value for name, value in each.metrics.items()})
    return judged, table.num_rows


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
    column = named_column(table, _TEXT_COLUMN)
    if column.null_count:
        raise EvaluationError(f"column {_TEXT_COLUMN!r} has {column.null_count} nulls; leave such rows out")
    texts = [str(text) for text in column.to_pylist()]
    return [texts[at] for at in order_of(len(texts), seed)]


def _rows(table: pa.Table, label: str, seed: int) -> list[EvaluationRow]:
    rows = read_rows(table, label=label, needs_expected=True, seed=seed)
    if missing := [row.number for row in rows if not row.choices]:
        raise EvaluationError(
            f"rows {missing[:5]} have no choices: likelihoods are of a column {_TEXT_COLUMN!r}, or of `choices` after a prompt"
        )
    return rows


__all__ = ["calibrate_judge", "evaluate_answers", "evaluate_likelihoods", "judged_by_likelihood"]
