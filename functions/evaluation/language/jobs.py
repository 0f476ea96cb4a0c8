"""The function that judges a version of a language model by its answers, and records the verdict with it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from functions.evaluation.demanded_gate import (
    gate_in_force,
    refuse_training_data,
    require_demanded_data,
)
from functions.evaluation.errors import EvaluationError
from functions.evaluation.language.answer_gate import AnswerGate, judge_answers
from functions.evaluation.language.answering import answers_of, fetched
from functions.evaluation.language.evaluation_set import EvaluationRow, read_rows
from functions.evaluation.offline_gate import GateResult
from functions.runtime.context import context
from functions.runtime.declaration import Resources
from functions.runtime.function import function
from registry import ModelVersion, Registry, Table, TableSnapshot

__all__ = ["evaluate_answers"]

_CHAMPION = "champion"


@function(http=True, resources=Resources(num_cpus=1), timeout_s=7_200)
def evaluate_answers(
    model: str,
    version: int,
    dataset: TableSnapshot,
    gate: AnswerGate | None = None,
    label: str = "expected",
    threads: int = 1,
) -> GateResult:
    """Have a version of a language model and the champion answer the same rows, judge the answers, and record the outcome.

    dataset: an evaluation set, with a column `messages` or `prompt`; label: its column of what is expected. gate: where the
    model's policy sets the limits of the gate of that name, those, and no others may be given. threads: of the engine.
    Without a champion, or by the champion itself, nothing is compared. Rows that a prompt cannot take are recorded as not passed.
    Raises: EvaluationError if the version learnt from this very snapshot, or limits or data are not those of the policy;
    NotFound; EngineDown; Refused if the policy changed meanwhile.
    """
    registry = context().registry()
    judged = registry.get_version(model, version)
    policy = registry.get_model(model).policy
    gate, demand = gate_in_force(policy, gate or AnswerGate())
    if demand in policy.gates:
        require_demanded_data(registry, judged, demand, dataset=dataset, label=label, baseline_set=None)
    refuse_training_data(judged, dataset)
    champion = registry.find_version(model, _CHAMPION)
    if champion is not None and champion.version == version:
        champion = None
    table = Table(registry.store, dataset.name).read(version=dataset.version)
    try:
        rows = read_rows(table, label=label, needs_expected=gate.needs_expected, seed=gate.seed)
        result = _measured(registry, judged, champion, rows, gate, threads)
    except EvaluationError as error:
        result = GateResult(
            model=model, version=version, gate=gate.name, passed=False, rows=table.num_rows, reason=str(error)
        )
    details = {**result.model_dump(mode="json"), "dataset": str(dataset)}
    registry.record_gate(
        model, version, gate.name, passed=result.passed, details=details, demand=demand.digest
    )
    return result


def _measured(
    registry: Registry,
    version: ModelVersion,
    champion: ModelVersion | None,
    rows: list[EvaluationRow],
    gate: AnswerGate,
    threads: int,
) -> GateResult:
    """Ask both versions, and judge. Raises: EvaluationError if there are no rows, or a prompt cannot take one."""
    if not rows:
        raise EvaluationError("the evaluation set has no rows")
    compared = [version, *([champion] if champion is not None else [])]
    with tempfile.TemporaryDirectory(prefix="toque-evaluation-") as place:
        versions = [
            fetched(registry, each, Path(place) / str(each.version), threads=threads) for each in compared
        ]
        answers = answers_of(versions, rows, seed=gate.seed, environment=os.environ)
    found = judge_answers(
        gate, answers[0], answers[1] if champion is not None else None, [row.expected for row in rows]
    )
    return GateResult(
        model=version.model,
        version=version.version,
        gate=gate.name,
        passed=all(check.passed for check in found.checks),
        rows=len(rows),
        metrics=found.metrics,
        intervals=found.intervals,
        checks=found.checks,
        champion=None if champion is None else champion.version,
    )
