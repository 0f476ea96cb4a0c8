"""Training of a version by hand: on all labelled rows but the newest fifth, which it is judged by.

A retrain compares challengers with the champion over the last days; the first version of a model has no champion, and its rows
may lie in one day. So the rows are cut where a fifth of them is later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from functions.evaluation import Gate, GateResult, evaluate_gate
from functions.evaluation.demanded_gate import gate_in_force
from functions.features.entity_rows import EVENT_TIMESTAMP
from functions.features.jobs import build_training_set
from functions.monitoring.cohorts import EPOCH
from functions.retraining.definition import TrainedModel
from functions.runtime.context import context
from functions.training import TrainingDataError
from functions.training.frame import run_training
from functions.training.model import job_of
from registry import ModelPolicy, NotFound, Table, TableSnapshot

HELD_OUT = 0.2
_MICROSECOND = timedelta(microseconds=1)


class TrainedByHand(BaseModel):
    """Version that was trained and judged. rows: learnt from; held_out: judged by; split: where the two are cut."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    rows: int
    held_out: int
    split: datetime
    metrics: dict[str, float]
    gate: GateResult


@dataclass(frozen=True, slots=True)
class _Cut:
    """Times of the labelled rows: the first, where the newest fifth begins, and after the last."""

    first: datetime
    split: datetime
    end: datetime


def train_by_hand(definition: TrainedModel, policy: ModelPolicy) -> TrainedByHand:
    """Train a version on the model's table of entities as it is, judge it by the gate in force, and record both.

    policy: of the model, where it does not exist yet.
    Raises: NotFound if the table was never written; TrainingError if nothing can be learnt; EvaluationError.
    """
    used = context()
    registry = used.registry()
    registry.create_model(definition.name, policy=policy, exist_ok=True)
    entities = Table(used.store, definition.entities)
    if not entities.exists():
        raise NotFound(
            f"the table {definition.entities} of {definition.name} does not exist; write it first, as the project's `load` does"
        )
    snapshot = entities.snapshot()
    cut = _cut(entities, snapshot, definition.label)

    def build(part: str, start: datetime, end: datetime) -> TableSnapshot:
        name = f"training/{definition.name}/{part}"
        return build_training_set(definition.service, snapshot, definition.label, start, end, name=name)

    training, held_out = build("train", cut.first, cut.split), build("gate", cut.split, cut.end)
    service = definition.service
    job = job_of(
        definition,
        training,
        {},
        features={} if service is None else used.features().definitions_digest(service),
        datasets=(snapshot,),
        tags={},
    )
    trained = run_training(registry, job, used.prices)
    version = _number(trained.version)
    governed = registry.get_model(definition.name).policy
    limited = governed.demand(definition.gate.name) is not None
    gate = gate_in_force(governed, Gate(name=definition.gate.name))[0] if limited else definition.gate
    judged = evaluate_gate(definition.name, version, held_out, definition.label, gate)
    return TrainedByHand(
        model=definition.name,
        version=version,
        rows=trained.rows,
        held_out=judged.rows,
        split=cut.split,
        metrics=judged.metrics,
        gate=judged,
    )


def _cut(entities: Table, snapshot: TableSnapshot, label: str) -> _Cut:
    """Find where the newest fifth of the labelled rows begins. Raises: TrainingDataError if no time parts them."""
    rows = entities.read(version=snapshot.version, columns=[EVENT_TIMESTAMP, label])
    known = rows.filter(rows[label].is_valid())[EVENT_TIMESTAMP]
    if not len(known):
        raise TrainingDataError(f"{snapshot}: no row has a {label}; nothing can be learnt")
    times: Any = np.sort(known.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy())
    split = times[int(len(times) * (1 - HELD_OUT))]
    if split == times[0]:
        later = times[times > split]
        if not len(later):
            raise TrainingDataError(
                f"{snapshot}: every row has the time {_at(split)}: none can be held out to judge by; give rows of other times"
            )
        split = later[0]
    return _Cut(_at(times[0]), _at(split), _at(times[-1]) + _MICROSECOND)


def _at(microseconds: Any) -> datetime:
    return EPOCH + int(microseconds) * _MICROSECOND


def _number(version: int | None) -> int:
    if version is None:
        raise TrainingDataError("the training registered no version")
    return version
