"""Training of a version by hand: on all labelled rows but the newest fifth, which it is judged by.

A retrain compares challengers with the champion over the last days; the first version of a model has no champion, and its rows
may lie in one day. So the rows are cut where a fifth of them is later.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from toque.functions.evaluation import Gate, GateResult, evaluate_gate
from toque.functions.evaluation.gate import gate_in_force
from toque.functions.features.jobs import build_training_set
from toque.functions.retraining.definition import TrainedModel
from toque.functions.retraining.windows import newest_fifth
from toque.functions.runtime.context import context
from toque.functions.training import TrainingDataError
from toque.functions.training.frame import run_training
from toque.functions.training.model import job_of
from toque.registry import ModelPolicy, NotFound, Table, TableSnapshot


class TrainedByHand(BaseModel, frozen=True):
    """Version that was trained and judged. rows: learnt from; held_out: judged by; split: where the two are cut."""

    model: str
    version: int
    rows: int
    held_out: int
    split: datetime
    metrics: dict[str, float]
    gate: GateResult


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
    cut = newest_fifth(snapshot, definition.label, entities=entities)

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
    version = trained.version
    if version is None:
        raise TrainingDataError("the training registered no version")
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
