"""Evaluation of a registered version on a table snapshot, recorded with whether it passed the gate.

Beyond metrics a gate checks slices, fairness, robustness, behaviour, latency and size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.arguments import Label, Model, Version
from toque.functions.evaluation.checks import (
    Check,
    Direction,
    FairnessRule,
    Invariance,
    Judged,
    Predict,
    at_most,
    judge_behaviour,
    judge_fairness,
    judge_robustness,
    judge_slices,
)
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.gate import (
    POPULARITY,
    Gate,
    gate_in_force,
    judge,
    refuse_training_data,
    require_demanded_data,
)
from toque.functions.evaluation.metrics.probabilities import (
    Interval,
    ReliabilityPoint,
    bootstrap,
    reliability,
)
from toque.functions.evaluation.outcome_kinds import BINARY, OutcomeKind, outcome_kind
from toque.functions.model_formats.load import load_version
from toque.functions.model_formats.table_inputs import input_columns, own_columns
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.function import function
from toque.registry import ModelVersion, Registry, Table, TableSnapshot
from toque.registry.models import Signature

Floats = npt.NDArray[np.float64]

_CHAMPION = "champion"
_TIMED_ROWS = 50  # scored one by one; the median is reported
_BEHAVIOUR_ROWS = 2_000


class GateResult(BaseModel):
    """Result of a version's evaluation by a gate.

    rows: that were judged, of a ranking its requests; metrics: of the version; ratios: its loss, as the outcome has it, over those of the baselines and the champion; intervals: 95 % bootstrap intervals of the main metrics, and of the loss difference to the champion
    (negative: better than it), by entity where the gate names its column; reliability: points of a calibration plot;
    reason: why nothing could be measured, else empty.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    model: str
    version: int
    gate: str
    passed: bool
    rows: int
    metrics: dict[str, float] = {}
    ratios: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    checks: list[Check] = []
    reliability: list[ReliabilityPoint] = []
    champion: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of a version, before any limit is applied."""

    kind: OutcomeKind
    units: int
    metrics: dict[str, float]
    ratios: dict[str, float]
    intervals: dict[str, Interval]
    reliability: list[ReliabilityPoint]
    extra: list[Check]


@function(http=True, resources=Resources(num_cpus=1), timeout_s=1800)
def evaluate_gate(
    model: Model,
    version: Version,
    dataset: Annotated[
        TableSnapshot,
        Field(
            description=(
                "Table of labelled rows, at one version of it, that the judged version has not learnt from."
            )
        ),
    ],
    label: Label,
    gate: Annotated[
        Gate | None,
        Field(
            description=(
                "Limits to judge by, the defaults unless given; "
                "where the model's policy sets them for its name, no others."
            )
        ),
    ] = None,
    baseline_set: Annotated[
        TableSnapshot | None,
        Field(description="Table that the baselines learn from; the version's training set unless given."),
    ] = None,
) -> GateResult:
    """Measure a version on `dataset`, judge it by `gate`, and record the outcome with the version.

    An outcome without rows, with NaN predictions or with one class is recorded as not passed.
    Raises: EvaluationError if the version learnt from this very snapshot or has no training set for the baselines, or limits
    or data are not those of the policy; NotFound; TrainingDataError if the dataset lacks a column; Refused if the policy
    changed meanwhile.
    """
    registry = context().registry()
    judged = registry.get_version(model, version)
    policy = registry.get_model(model).policy
    gate, demand = gate_in_force(policy, gate or Gate())
    if demand in policy.gates:
        require_demanded_data(
            registry, judged, demand, dataset=dataset, label=label, baseline_set=baseline_set
        )
    refuse_training_data(judged, dataset)
    champion = registry.find_version(model, _CHAMPION) if gate.needs_champion else None
    table = Table(registry.store, dataset.name).read(version=dataset.version)
    try:
        measured = _measure(registry, judged, champion, table, label, gate, baseline_set)
    except EvaluationError as error:
        result = _unmeasured(judged, gate, table.num_rows, str(error))
    else:
        result = _judged(judged, champion, gate, measured)
    details = {**result.model_dump(mode="json"), "dataset": str(dataset)}
    registry.record_gate(
        model, version, gate.name, passed=result.passed, details=details, demand=demand.digest
    )
    return result


def predict_table(registry: Registry, version: ModelVersion, table: pa.Table) -> npt.NDArray[np.float64]:
    """Compute probabilities (rows,) of a registered version for the rows of a table.

    Raises: ArtifactRefused, TrainingDataError.
    """
    return _opened(registry, version, BINARY)(table)


def _opened(registry: Registry, version: ModelVersion, kind: OutcomeKind) -> Predict:
    """Load a version once, to score any number of tables."""
    scoring = load_version(registry, version)
    return lambda table: kind.by_unit(table, kind.answers(scoring.predict_table(table)))


def _measure(
    registry: Registry,
    version: ModelVersion,
    champion: ModelVersion | None,
    table: pa.Table,
    label: str,
    gate: Gate,
    baseline_set: TableSnapshot | None,
) -> Measured:
    if table.num_rows == 0:
        raise EvaluationError("the evaluation data has no rows")
    kind = outcome_kind(version)
    _require_measurable(gate, kind)
    y = kind.by_unit(table, kind.label(table, label))
    entity = _entities(kind.unit_rows(table), gate.entity)
    references = _baselines(registry, version, kind, table, label, gate, baseline_set)
    if champion is not None:
        references[_CHAMPION] = _champions_answers(registry, champion, kind, table)
    predict = _opened(registry, version, kind)
    answers = predict(table)
    metrics = {name: metric(y, answers) for name, metric in kind.metrics.items()}
    found = EvaluatedVersion(version, kind, table, y, answers, predict, references, entity)
    extra = extra_checks(gate, found)
    intervals = {
        name: bootstrap(kind.metrics[name], y, answers, entity=entity) for name in kind.with_interval
    }
    losses = {name: kind.row_loss(y, others) for name, others in references.items()}
    own, named = kind.row_loss(y, answers), kind.loss.replace(" ", "_")
    if not kind.with_interval:  # a metric too slow to compute anew for each resample
        intervals[named] = _mean(own, y, entity)
    if champion is not None:
        intervals[f"{named} - champion"] = _mean(own - losses[_CHAMPION], y, entity)
    return Measured(
        kind=kind,
        units=len(y),
        metrics=metrics
        | kind.details(y, answers)
        | {f"{name}_{named}": float(loss.mean()) for name, loss in losses.items()},
        ratios={name: _ratio(float(own.mean()), float(loss.mean())) for name, loss in losses.items()},
        intervals=intervals,
        reliability=reliability(y, answers) if kind is BINARY else [],
        extra=extra,
    )


def _ratio(loss: float, other: float) -> float:
    """A loss over another one, which is 0 where every answer was right: then only another 0 is as good."""
    if other == 0.0:
        return 1.0 if loss == 0.0 else math.inf
    return loss / other


def _champions_answers(
    registry: Registry, champion: ModelVersion, kind: OutcomeKind, table: pa.Table
) -> npt.NDArray[Any]:
    """Answers of the champion, if its outcome is of the same kind. Raises: EvaluationError if not."""
    others = outcome_kind(champion)
    if (others.name, others.classes) != (kind.name, kind.classes):
        raise EvaluationError(
            f"champion {champion.version} answers for {others.name} {list(others.classes)}, the version for {kind.name} "
            f"{list(kind.classes)}: they cannot be compared; leave max_champion_ratio and slices against the champion out"
        )
    return _opened(registry, champion, kind)(table)


def _require_measurable(gate: Gate, kind: OutcomeKind) -> None:
    """Check that answers of this kind can show all that the gate demands. Raises: EvaluationError if not."""
    unmeasurable = gate.unmeasurable(kind.name)
    if unmeasurable:
        raise EvaluationError(
            f"the gate demands {list(unmeasurable)}, which answers for {kind.name} cannot show: leave them out, or set them to None"
        )


def _entities(table: pa.Table, column: str | None) -> npt.NDArray[Any] | None:
    if column is None:
        return None
    if column not in table.column_names:
        raise EvaluationError(f"the evaluation data has no column {column!r}, which gate.entity names")
    return np.asarray(table[column].cast(pa.string()).to_numpy(zero_copy_only=False), dtype=np.str_)


def _baselines(
    registry: Registry,
    version: ModelVersion,
    kind: OutcomeKind,
    table: pa.Table,
    label: str,
    gate: Gate,
    baseline_set: TableSnapshot | None,
) -> dict[str, npt.NDArray[Any]]:
    """Compute the answers of each baseline that the gate names."""
    names = list(gate.max_log_loss_ratio)
    if not names:
        return {}
    snapshot = baseline_set or next(iter(version.lineage.datasets), None)
    if snapshot is None or version.signature is None:
        raise EvaluationError(
            f"{version.model}@{version.version} has no training set or signature in its record, so the baselines "
            f"{names} cannot learn: pass baseline_set, or a gate without max_log_loss_ratio"
        )
    numeric, categorical = (
        _columns_of(version.signature, texts=False),
        _columns_of(version.signature, texts=True),
    )
    item = [gate.item] if gate.item is not None else []
    read = list(dict.fromkeys([*input_columns(version.signature), label, *item]))
    train = Table(registry.store, snapshot.name).read(version=snapshot.version, columns=read)
    found = {}
    for name in names:
        columns = ([], item) if name == POPULARITY else (numeric, categorical)
        answers = kind.baselines[name](train, table, *columns, label)
        found[kind.linear if name == "logistic" else name] = kind.by_unit(table, answers)
    return found


def _columns_of(signature: Signature, *, texts: bool) -> list[str]:
    """Columns of a table that the inputs of texts, or those of numbers, read."""
    return [
        name for spec in signature.inputs if (spec.datatype == "BYTES") is texts for name in own_columns(spec)
    ]


def _mean(gaps: npt.NDArray[Any], y: npt.NDArray[Any], entity: npt.NDArray[Any] | None) -> Interval:
    """Bootstrap the mean of paired differences, with its interval."""
    return bootstrap(lambda _, gap: float(np.mean(gap)), y, gaps, entity=entity)


def _judged(
    version: ModelVersion, champion: ModelVersion | None, gate: Gate, measured: Measured
) -> GateResult:
    checks = judge(
        gate,
        rows=measured.units,
        metrics=measured.metrics,
        ratios=measured.ratios,
        has_champion=champion is not None,
        ece_high=measured.intervals["ece"].high if "ece" in measured.intervals else math.nan,
        loss=measured.kind.loss,
        linear=measured.kind.linear,
        calibrated="ece" in measured.kind.metrics,
    )
    checks += measured.extra
    return GateResult(
        model=version.model,
        version=version.version,
        gate=gate.name,
        passed=all(check.passed for check in checks),
        rows=measured.units,
        metrics=measured.metrics,
        ratios=measured.ratios,
        intervals=measured.intervals,
        checks=checks,
        reliability=measured.reliability,
        champion=None if champion is None else champion.version,
    )


def _unmeasured(version: ModelVersion, gate: Gate, rows: int, reason: str) -> GateResult:
    return GateResult(
        model=version.model, version=version.version, gate=gate.name, passed=False, rows=rows, reason=reason
    )


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
    kind = found.kind

    def excess(label: Floats) -> Floats:
        return kind.row_loss(label, found.answers) - kind.row_loss(label, reference)

    labels = range(len(kind.classes) or 2) if kind.name in {"binary", "multiclass"} else ()
    possible = max((float(np.abs(excess(np.full_like(found.label, one))).max()) for one in labels), default=0)
    rows = kind.unit_rows(found.table)
    return _made("slices", lambda: [judge_slices(rule, rows, excess(found.label), found.entity, possible)[0]])


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
