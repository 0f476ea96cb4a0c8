"""Challengers of a retrain: one training per window of the past, each judged on the newest rows, which no training saw."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from pydantic import AliasChoices, BaseModel, Field

from toque.featurestore import InvalidRows
from toque.functions.evaluation import Gate, GateResult, evaluate_gate, gate_in_force
from toque.functions.evaluation.meanings import MEANINGS
from toque.functions.features.jobs import build_training_set
from toque.functions.retraining.definition import TrainedModel
from toque.functions.retraining.policy import RetrainingPolicy, Running
from toque.functions.retraining.windows import TrainingWindow, newest_span
from toque.functions.runtime.context import context
from toque.functions.runtime.run import cluster
from toque.functions.training import TrainingDataError
from toque.functions.training.model import PARAMETERS_TAG, train_declared
from toque.registry import ModelPolicy, ModelVersion, Table, TableSnapshot
from toque.registry.store import check_table_name

BEGINNING = datetime(1970, 1, 2, tzinfo=UTC)  # earlier than any row
_logger = logging.getLogger(__name__)


class Challenger(BaseModel, frozen=True, ser_json_inf_nan="strings"):
    """Candidate version that a retrain trained.

    passed: the gate; loss: on the held-out rows, the log loss or a number's root mean squared error. problem: why it did not
    pass.
    """

    window: str
    version: int | None = None
    passed: bool = False
    # Journals of earlier releases call it log_loss.
    loss: float | None = Field(default=None, validation_alias=AliasChoices("loss", "log_loss"))
    problem: str = ""


def train_challengers(
    definition: TrainedModel, policy: RetrainingPolicy, running: Running
) -> tuple[Challenger, ...]:
    """Train a challenger on each window and judge it by the gate; one that fails, or has no row, does not stop the others.

    What a killed attempt of this retrain has trained and judged is reused: nothing is done twice.
    Raises: TrainingDataError if no row is labelled, or all have one time.
    """
    gate, made = _gate(definition, policy), _registered_before(definition, running)
    left = [window for window in policy.windows if window.name not in made]
    judged = {name: _judged_before(definition, name, version, gate) for name, version in made.items()}
    if left or None in judged.values():
        jobs, gate_set, empty = _training_jobs(
            definition, policy.model_copy(update={"windows": tuple(left)}), running
        )
        trained = train_declared.map(
            [job.arguments for job in jobs],
            return_errors=True,
            # Without a cluster they train in threads of this process, which libraries such as torch.export and MLflow patch whole.
            in_flight=None if cluster.running() else 1,
        )
        outcomes: dict[str, int | Exception | None] = {
            **empty,
            **{
                job.window.name: one if isinstance(one, Exception) else one.version
                for job, one in zip(jobs, trained, strict=True)
            },
        }
        outcomes |= {name: version.version for name, version in made.items() if judged[name] is None}
        judged |= {
            name: _judge(definition, gate, name, outcome, gate_set) for name, outcome in outcomes.items()
        }
    found = (judged[window.name] for window in policy.windows)
    return tuple(one for one in found if one is not None)


def _registered_before(definition: TrainedModel, running: Running) -> dict[str, ModelVersion]:
    """Find the versions that this retrain has registered already, the first of each window."""
    made: dict[str, ModelVersion] = {}
    for version in context().registry().list_versions(definition.name):
        if version.tags.get("retrain") == str(running.number) and version.lineage.parent == running.champion:
            made.setdefault(version.tags.get("window", ""), version)
    return made


def _judged_before(
    definition: TrainedModel, window: str, version: ModelVersion, gate: Gate
) -> Challenger | None:
    """Read the gate's result of a version that was judged already by the limits in force, or return None."""
    outcome, demand = version.gates.get(gate.name), _policy_of(definition).demand(gate.name)
    if outcome is None or (demand is not None and outcome.demand != demand.digest):
        return None
    return _challenger(definition, window, version.version, GateResult.model_validate(outcome.details))


def _gate(definition: TrainedModel, policy: RetrainingPolicy) -> Gate:
    """Return the gate that the model's registry policy sets, or else its definition's, compared with the champion too."""
    governed = _policy_of(definition)
    if governed.demand(definition.gate.name) is not None:
        return gate_in_force(governed, Gate(name=definition.gate.name))[0]
    if definition.gate.max_champion_ratio is not None:
        return definition.gate
    return definition.gate.model_copy(update={"max_champion_ratio": policy.max_champion_ratio})


def _policy_of(definition: TrainedModel) -> ModelPolicy:
    return context().registry().get_model(definition.name).policy


def best_of(challengers: Sequence[Challenger]) -> Challenger | None:
    """Choose the challenger with the lowest loss of those that passed, or None."""
    passed = [
        (one.loss, place) for place, one in enumerate(challengers) if one.passed and one.loss is not None
    ]
    return challengers[min(passed)[1]] if passed else None


@dataclass(frozen=True, slots=True)
class _TrainingJob:
    window: TrainingWindow
    arguments: dict[str, Any]


def _training_jobs(
    definition: TrainedModel, policy: RetrainingPolicy, running: Running
) -> tuple[list[_TrainingJob], TableSnapshot, dict[str, Exception]]:
    """Build the training sets and the held-out set, as of the moment the retrain began, and say which windows have no row.

    What is newest counts from the newest labelled row: a table of the past is retrained on like one of today.
    """
    used = context()
    service, entities = definition.service, Table(used.store, definition.entities)
    snapshot = TableSnapshot(name=definition.entities, version=entities.version())
    cut = newest_span(
        snapshot,
        definition.label,
        policy.holdout,
        entities=entities,
        known_by=running.at,
        delay=policy.label_delay,
    )
    split = cut.split

    def build(name: str, start: datetime, end: datetime, of: TableSnapshot = snapshot) -> TableSnapshot:
        return build_training_set(
            service=service,
            entities=of,
            label=definition.label,
            start=start,
            end=end,
            known_by=running.at,
            name=f"training/{definition.name}/{running.number:06d}-{name}",
        )

    common = {
        "definition": definition,
        "parameters": _champions_parameters(definition, running),
        "features": {} if service is None else used.features().definitions_digest(service),
        "datasets": [snapshot],
        "parent": running.champion,
    }
    jobs: list[_TrainingJob] = []
    empty: dict[str, Exception] = {}
    for window in policy.windows:
        start = BEGINNING if window.days is None else split - timedelta(days=window.days)
        tags = {"window": window.name, "retrain": str(running.number)}
        try:
            made = build(window.name, start, split, _chosen(snapshot, window, split, f"{running.number:06d}"))
        except InvalidRows as error:
            empty[window.name] = error
            continue
        jobs.append(_TrainingJob(window, {**common, "training_set": made, "tags": tags}))
    return jobs, build("holdout", split, cut.end), empty


def _champions_parameters(definition: TrainedModel, running: Running) -> dict[str, Any]:
    """Read the parameters that the champion was trained with beside those of the definition, as a sweep had found them."""
    champion = (
        context().registry().find_version(definition.name, running.champion) if running.champion else None
    )
    found: dict[str, Any] = (
        json.loads(champion.tags.get(PARAMETERS_TAG, "{}")) if champion is not None else {}
    )
    try:
        definition.learner.with_parameters(found)
    except TrainingDataError as error:
        _logger.warning("%s: the champion's parameters %s are left out: %s", definition.name, found, error)
        return {}
    return found


def _chosen(entities: TableSnapshot, window: TrainingWindow, end: datetime, retrain: str) -> TableSnapshot:
    """Write the entities that a window chooses to a table of their own; return all where it chooses all."""
    if not window.chooses:
        return entities
    store = context().store
    rows = Table(store, entities.name).read(version=entities.version)
    at = rows["event_timestamp"].cast(pa.timestamp("us", "UTC")).to_numpy()
    kept = rows.filter(pa.array(window.chosen(at, end)))
    name = check_table_name(f"{entities.name}-{retrain}-{window.name}", what="entities")
    return Table(store, name).overwrite(
        kept, metadata={"chosen_from": str(entities), "window": window.model_dump_json()}
    )


def _judge(
    definition: TrainedModel,
    gate: Gate,
    window: str,
    outcome: int | Exception | None,
    gate_set: TableSnapshot,
) -> Challenger:
    """Judge a trained version by the gate.

    outcome: its number, None if none was registered, or why training failed.
    """
    if isinstance(outcome, Exception):
        _logger.warning("%s: training on %s failed: %s", definition.name, window, outcome)
        return Challenger(window=window, problem=f"training failed: {outcome}")
    if outcome is None:
        return Challenger(window=window, problem="the training registered no version")
    result = evaluate_gate(definition.name, outcome, gate_set, definition.label, gate)
    return _challenger(definition, window, outcome, result)


def _challenger(definition: TrainedModel, window: str, version: int, result: GateResult) -> Challenger:
    return Challenger(
        window=window,
        version=version,
        passed=result.passed,
        loss=result.metrics.get(MEANINGS[definition.outcome].main_metric),
        problem="" if result.passed else _why(result),
    )


def _why(result: GateResult) -> str:
    if result.reason:
        return result.reason
    return ", ".join(
        f"{check.name} {check.value:.4g}, {check.rule} {check.limit:.4g}"
        for check in result.checks
        if not check.passed
    )
