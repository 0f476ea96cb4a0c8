"""Checks of a gate beyond its metrics: slices, fairness, robustness, behaviour, latency and size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.evaluation.checks.behaviour import Direction, Invariance, judge_behaviour
from toque.functions.evaluation.checks.check import Check, at_most
from toque.functions.evaluation.checks.fairness import FairnessRule, Judged, judge_fairness
from toque.functions.evaluation.checks.robustness import Predict, judge_robustness
from toque.functions.evaluation.checks.slices import judge_slices
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.gate import Gate
from toque.functions.evaluation.outcome_kinds import OutcomeKind
from toque.functions.model_formats.table_inputs import input_columns
from toque.registry import ModelVersion

Floats = npt.NDArray[np.float64]
_TIMED_ROWS = 50  # scored one by one; the median is reported
_BEHAVIOUR_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class EvaluatedVersion:
    """Version with its answers on the evaluation rows. references: answers of "champion" and of the baselines.

    label, answers, references, entity: of the units that are judged, as `OutcomeKind.by_unit` arranges them.
    """

    version: ModelVersion
    kind: OutcomeKind
    table: pa.Table
    label: Floats
    answers: Floats
    predict: Predict
    references: Mapping[str, Floats]
    entity: npt.NDArray[np.generic] | None


def extra_checks(gate: Gate, found: EvaluatedVersion) -> list[Check]:
    """Make all checks of the gate; one that cannot be made (a column is absent, answers are NaN) fails and says why."""
    checks = _sliced(gate, found)
    for fairness in gate.fairness:
        checks += _made(
            f"fairness over {fairness.column}",
            partial(_fair, fairness, found),
        )
    if gate.robustness is not None:
        checks += _made("robustness", lambda: _robust(gate, found))
    for behaviour in gate.behaviours:
        checks += _made(
            f"{behaviour.kind} of {behaviour.column}",
            partial(_behaved, behaviour, found),
        )
    return [*checks, *_costs(gate, found)]


def _sliced(gate: Gate, found: EvaluatedVersion) -> list[Check]:
    rule = gate.slices
    if rule is None:
        return []
    against = found.kind.linear if rule.against == "logistic" else rule.against
    reference = found.references.get(against)
    if reference is None and rule.against == "champion":
        return []  # the first version of a model has no champion to be worse than
    if reference is None:
        text = f"gate has no {rule.against} in max_log_loss_ratio to compare slices with; add it"
        return [at_most(f"slices against {rule.against}", float("nan"), rule.alpha, text)]
    row_loss = found.kind.row_loss
    excess = row_loss(found.label, found.answers) - row_loss(found.label, reference)
    return _made(
        "slices", lambda: [judge_slices(rule, found.kind.unit_rows(found.table), excess, found.entity)[0]]
    )


def _fair(rule: FairnessRule, found: EvaluatedVersion) -> list[Check]:
    kind, needs_loss = found.kind, rule.measure == "loss"
    loss = kind.row_loss(found.label, found.answers) if needs_loss else None
    rows = Judged(kind.unit_rows(found.table), found.label, found.answers, loss, found.entity)
    return judge_fairness(rule, rows)


def _behaved(rule: Invariance | Direction, found: EvaluatedVersion) -> list[Check]:
    return [judge_behaviour(rule, found.table.slice(0, _BEHAVIOUR_ROWS), found.predict)]


def _robust(gate: Gate, found: EvaluatedVersion) -> list[Check]:
    signature = found.version.signature
    if gate.robustness is None or signature is None:
        raise EvaluationError(f"{found.version.model}@{found.version.version} has no signature to disturb")
    return judge_robustness(
        gate.robustness,
        found.table,
        found.label,
        found.predict,
        input_columns(signature),
        found.kind.mean_loss,
        found.kind.take,
    )


def _costs(gate: Gate, found: EvaluatedVersion) -> list[Check]:
    checks = []
    if gate.max_latency_ms is not None:
        checks.append(at_most("latency of one row, ms", _latency_ms(found), gate.max_latency_ms))
    if gate.max_size_bytes is not None:
        size = sum(blob.size for blob in found.version.files.values())
        checks.append(at_most("size, bytes", float(size) if size else float("nan"), gate.max_size_bytes))
    return checks


def _latency_ms(found: EvaluatedVersion) -> float:
    """Median time to score one row, after the first one."""
    rows = [found.table.slice(index % found.table.num_rows, 1) for index in range(_TIMED_ROWS + 1)]
    times = []
    for row in rows:
        start = time.perf_counter()
        found.predict(row)
        times.append(1_000 * (time.perf_counter() - start))
    return float(np.median(times[1:]))


def _made(name: str, make: Callable[[], list[Check]]) -> list[Check]:
    try:
        return make()
    except KeyError as error:
        return [at_most(name, float("nan"), 0.0, f"the evaluation data lacks the column {error}")]
    except EvaluationError as error:
        return [at_most(name, float("nan"), 0.0, str(error))]
