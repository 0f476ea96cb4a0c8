"""Evaluate a registered version on a table snapshot, and record whether it passed the gate."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from functions.evaluation.baselines import BASELINES
from functions.evaluation.errors import EvaluationError
from functions.evaluation.gate import Check, Gate, judge
from functions.evaluation.metrics import METRICS, Interval, bootstrap, log_loss, row_log_loss
from functions.runtime.context import context
from functions.runtime.declaration import Resources
from functions.runtime.function import function
from functions.training.assembly import first_output, input_columns, table_inputs
from functions.training.dataset import binary_labels
from functions.training.scoring import load
from registry import ModelVersion, Registry, Table, TableSnapshot

_CHAMPION = "champion"


class GateResult(BaseModel):
    """How a version did.

    metrics: of the version; ratios: its log loss over those of the baselines and the champion; intervals: 95 %
    bootstrap intervals of log loss and AUC, and of the loss difference to the champion (negative: better than it);
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
    champion: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured before anything is judged."""

    metrics: dict[str, float]
    ratios: dict[str, float]
    intervals: dict[str, Interval]


@function(resources=Resources(num_cpus=1), timeout_s=1800)
def evaluate_gate(
    model: str,
    version: int,
    dataset: TableSnapshot,
    label: str,
    gate: Gate = Gate(),  # noqa: B008 - frozen
    baseline_set: TableSnapshot | None = None,
) -> GateResult:
    """Measure a version on `dataset`, judge it by `gate`, and record the outcome with the version.

    label: the column of 0 and 1; baseline_set: what the baselines learn from (default: the version's training set).
    An outcome without rows, with predictions that are no numbers or with one class is recorded as not passed.
    Raises: EvaluationError if the version learnt from this very snapshot or has no training set for the baselines;
    NotFound; TrainingDataError if the dataset lacks a column.
    """
    registry = context().registry()
    judged = registry.get_version(model, version)
    _refuse_training_data(judged, dataset)
    champion = registry.find_version(model, _CHAMPION) if gate.max_champion_ratio is not None else None
    table = Table(registry.store, dataset.name).read(version=dataset.version)
    try:
        measured = _measure(registry, judged, champion, table, label, gate, baseline_set)
    except EvaluationError as error:
        result = _unmeasured(judged, gate, table.num_rows, str(error))
    else:
        result = _judged(judged, champion, gate, table.num_rows, measured)
    details = {**result.model_dump(mode="json"), "dataset": str(dataset)}
    registry.record_gate(model, version, gate.name, passed=result.passed, details=details)
    return result


def predict_table(registry: Registry, version: ModelVersion, table: pa.Table) -> npt.NDArray[np.float64]:
    """Probabilities (rows,) of a registered version for the rows of a table.

    Raises: ArtifactRefused, TrainingDataError.
    """
    with tempfile.TemporaryDirectory(prefix="toque-model-") as folder:
        registry.download(version.model, version.version, to=folder)
        scoring = load(folder, signature=version.signature)
    return first_output(scoring.predict(table_inputs(table, scoring.signature)))


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
    y = binary_labels(table, label)
    probability = predict_table(registry, version, table)
    metrics = {name: metric(y, probability) for name, metric in METRICS.items()}
    intervals = {name: bootstrap(METRICS[name], y, probability) for name in ("log_loss", "auc")}
    losses = _baseline_losses(registry, version, table, label, list(gate.max_log_loss_ratio), baseline_set)
    if champion is not None:
        incumbent = predict_table(registry, champion, table)
        losses[_CHAMPION] = log_loss(y, incumbent)
        intervals["log_loss - champion"] = _difference(y, probability, incumbent)
    ratios = {name: metrics["log_loss"] / loss for name, loss in losses.items()}
    return Measured(metrics | {f"{name}_log_loss": loss for name, loss in losses.items()}, ratios, intervals)


def _baseline_losses(
    registry: Registry,
    version: ModelVersion,
    table: pa.Table,
    label: str,
    names: Sequence[Any],
    baseline_set: TableSnapshot | None,
) -> dict[str, float]:
    if not names:
        return {}
    snapshot = baseline_set or next(iter(version.lineage.datasets), None)
    if snapshot is None or version.signature is None:
        raise EvaluationError(
            f"{version.model}@{version.version} has no training set or signature in its record, so the baselines "
            f"{names} cannot learn: pass baseline_set, or a gate without max_log_loss_ratio"
        )
    columns = {spec.datatype == "BYTES": spec.columns or [] for spec in version.signature.inputs}
    numeric, categorical = columns.get(False, []), columns.get(True, [])
    read = [*input_columns(version.signature), label]
    train = Table(registry.store, snapshot.name).read(version=snapshot.version, columns=read)
    y = binary_labels(table, label)
    return {name: log_loss(y, BASELINES[name](train, table, numeric, categorical, label)) for name in names}


def _difference(y: npt.NDArray[Any], new: npt.NDArray[Any], old: npt.NDArray[Any]) -> Interval:
    """Interval of the mean paired difference of log losses."""
    gaps = row_log_loss(y, new) - row_log_loss(y, old)
    return bootstrap(lambda _, gap: float(np.mean(gap)), y, gaps)


def _judged(
    version: ModelVersion, champion: ModelVersion | None, gate: Gate, rows: int, measured: Measured
) -> GateResult:
    checks = judge(
        gate,
        rows=rows,
        metrics=measured.metrics,
        ratios=measured.ratios,
        has_champion=champion is not None,
    )
    return GateResult(
        model=version.model,
        version=version.version,
        gate=gate.name,
        passed=all(check.passed for check in checks),
        rows=rows,
        metrics=measured.metrics,
        ratios=measured.ratios,
        intervals=measured.intervals,
        checks=checks,
        champion=None if champion is None else champion.version,
    )


def _unmeasured(version: ModelVersion, gate: Gate, rows: int, reason: str) -> GateResult:
    return GateResult(
        model=version.model, version=version.version, gate=gate.name, passed=False, rows=rows, reason=reason
    )


def _refuse_training_data(version: ModelVersion, dataset: TableSnapshot) -> None:
    if dataset in version.lineage.datasets:
        raise EvaluationError(
            f"{version.model}@{version.version} learnt from {dataset}: judge it on rows that it has not seen"
        )
