"""Gate as the model's policy demands it: its limits stand before the caller's, and its data before the caller's choice."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.gate import Gate
from toque.functions.evaluation.language.answer_gate import AnswerGate
from toque.registry import (
    GateData,
    GateDemand,
    ModelPolicy,
    ModelVersion,
    NotFound,
    Registry,
    Table,
    TableSnapshot,
)

AnyGate = TypeVar("AnyGate", Gate, AnswerGate)


class RowsOrigin(BaseModel):
    """Origin of a built table, as its metadata say it: the entity rows, the label, and the event times [start, end)."""

    model_config = ConfigDict(frozen=True)

    entities: TableSnapshot
    label: str
    start: datetime
    end: datetime


def check_policy_gates(policy: ModelPolicy) -> None:
    """Check that the limits of each gate in a policy are those of a `Gate`, or of an `AnswerGate` if they name scorers.

    Raises: EvaluationError.
    """
    for name in policy.gate_names:
        demand = policy.demand(name)
        if demand is not None and "scorers" in demand.limits:
            gate_in_force(policy, AnswerGate(name=name))
        else:
            gate_in_force(policy, Gate(name=name))


def gate_in_force(policy: ModelPolicy, given: AnyGate) -> tuple[AnyGate, GateDemand]:
    """Choose the gate to judge by, with the demand whose digest its result carries.

    given: the caller's gate; with a name alone it is that of the policy if this sets limits for the name.
    Raises: EvaluationError if the caller asks for other limits than the policy's, or those do not fit a gate of this kind.
    """
    kind = type(given)
    demand = policy.demand(given.name)
    if demand is None:
        return given, given.demand()
    try:
        gate = kind.model_validate({**demand.limits, "name": demand.name})
    except ValidationError as error:
        raise EvaluationError(
            f"gate {demand.name!r} of the model's policy: {error}; have an admin mend its limits"
        ) from error
    if given.model_fields_set <= {"name"} or given == gate:
        return gate, demand
    other = sorted(field for field in kind.model_fields if getattr(given, field) != getattr(gate, field))
    raise EvaluationError(
        f"gate {demand.name!r}: the model's policy sets its limits, and {other} differ; leave them out, "
        "or have an admin change the policy"
    )


def require_demanded_data(
    registry: Registry,
    version: ModelVersion,
    demand: GateDemand,
    *,
    dataset: TableSnapshot,
    label: str,
    baseline_set: TableSnapshot | None,
) -> None:
    """Check that a gate of the policy is judged on the rows that the policy names.

    Raises: EvaluationError, naming what differs.
    """
    where = f"{version.model}@{version.version}, gate {demand.name!r}"
    if baseline_set is not None:
        raise EvaluationError(
            f"{where}: baseline_set={baseline_set}, but the policy sets this gate, so its baselines learn from the "
            "version's training set; leave it out"
        )
    data = demand.data
    if data is None:
        return
    if not data.allows(dataset.name):
        raise EvaluationError(
            f"{where}: dataset={dataset}, but the policy demands {data.table!r}; evaluate on that"
        )
    if data.label is not None and label != data.label:
        raise EvaluationError(f"{where}: label={label!r}, but the policy demands {data.label!r}; pass that")
    if data.entities is not None or data.min_days is not None:
        _require_origin(registry, version, data, dataset, where)


def refuse_training_data(version: ModelVersion, dataset: TableSnapshot) -> None:
    """Refuse to judge a version on the very rows that it learnt from. Raises: EvaluationError."""
    if dataset in version.lineage.datasets:
        raise EvaluationError(
            f"{version.model}@{version.version} learnt from {dataset}: judge it on rows that it has not seen"
        )


def _require_origin(
    registry: Registry, version: ModelVersion, data: GateData, dataset: TableSnapshot, where: str
) -> None:
    """Check what the rows were built from, how long they span, and that the version's training rows end before them."""
    rows = _origin(registry, dataset, where)
    span = rows.end - rows.start
    if data.min_days is not None and span < timedelta(days=data.min_days):
        raise EvaluationError(
            f"{where}: {dataset} spans {span}, but the policy demands {data.min_days:g} days"
        )
    if data.entities is None:
        return
    if rows.entities.name != data.entities:
        raise EvaluationError(
            f"{where}: {dataset} was built from {rows.entities.name!r}, but the policy demands {data.entities!r}"
        )
    trained = next(iter(version.lineage.datasets), None)
    if trained is None:
        raise EvaluationError(
            f"{where}: the version names no training set, so nobody knows that {dataset} is unseen"
        )
    learnt = _origin(registry, trained, where)
    if learnt.end > rows.start:
        raise EvaluationError(
            f"{where}: the version learnt from rows until {learnt.end}, and {dataset} begins at {rows.start}; "
            "evaluate on later rows"
        )


def _origin(registry: Registry, snapshot: TableSnapshot, where: str) -> RowsOrigin:
    try:
        found: Any = Table(registry.store, snapshot.name).metadata(snapshot.version).get("training_set")
    except NotFound as error:
        raise EvaluationError(f"{where}: {error}") from error
    if found is None:
        raise EvaluationError(
            f"{where}: {snapshot} has no record of what it was built from; make it with build_training_set"
        )
    return RowsOrigin.model_validate_json(found)
