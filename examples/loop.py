"""Weeks of a model's life in one process, on a clock moved by hand, for the examples that need no running platform.

Every day the arms that the registry names answer the day's rows, the labels come half a day later, and the model is inspected as a
schedule would. Nothing here tells the platform what happened: monitors, gate, rollout and retraining decide.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from functions.evaluation import evaluate_gate
from functions.features import build_training_set
from functions.model_formats.load import ScoringModel
from functions.model_formats.versions import load_version
from functions.prediction_log import LABELS_TABLE, predictions_table
from functions.prediction_log.records import LABELS, PREDICTIONS
from functions.project import ModelDefinition
from functions.retraining.jobs import InspectionResult, inspect_model
from functions.runtime.context import Context, context, use_context
from functions.training import train_model
from functions.tuning import Space, tune_model
from registry import Table, open_store

START, DAY = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)
FIRST_DAY, LAST_DAY = 6, 36  # before the first, labelled rows are only collected


@dataclass
class Clock:
    """Clock that the loop moves by hand, day by day."""

    now: datetime = START

    def __call__(self) -> datetime:
        """Time that the clock was set to."""
        return self.now


@dataclass
class Loop:
    """The life of a model without a feature service, whose rows carry its features.

    rows: those of a day, with `row_id`, the features, the label, when it was asked and when the label was known. space: of the
    first sweep. loaded: versions that have answered; inspections: what each day's found and did.
    """

    model: ModelDefinition
    rows: Callable[[int], pa.Table]
    space: Space
    clock: Clock
    loaded: dict[int, ScoringModel] = field(default_factory=dict)
    inspections: list[InspectionResult] = field(default_factory=list)

    def begin(self) -> int:
        """Sweep on the rows of the first days, train, judge, approve and promote; returns the version."""
        for day in range(FIRST_DAY):
            self._collect(self.rows(day))
        entities = Table(context().store, self.model.entities).snapshot()
        split, end = START + (FIRST_DAY - 2) * DAY, START + FIRST_DAY * DAY
        self.clock.now = end + DAY
        model = self.model
        training = build_training_set(
            None, entities, model.label, START, split, name=f"training/{model.name}/first"
        )
        held_out = build_training_set(
            None, entities, model.label, split, end, name=f"training/{model.name}/gate"
        )
        registry = context().registry()
        sweep = tune_model(model.name, training, self.space, search="grid", concurrency=1)
        trained = train_model(model.name, training, parameters=sweep.best_parameters, datasets=[entities])
        assert trained.version is not None  # noqa: S101 - it was asked to register one
        judged = evaluate_gate(model.name, trained.version, held_out, model.label, model.gate)
        if not judged.passed:
            raise SystemExit(f"the first version does not pass its gate: {judged.reason or judged.checks}")
        registry.as_actor("a-colleague").approve(model.name, trained.version, comment="reads well")
        registry.set_alias(model.name, "champion", trained.version)
        return trained.version

    def day(self, number: int) -> InspectionResult:
        """Answer and label the rows of one day, and inspect the model after it."""
        rows = self.rows(number)
        self._answer(rows)
        self._collect(rows)
        self.clock.now = START + (number + 1) * DAY + DAY / 2
        self._label(rows)
        self.inspections.append(inspect_model(self.model.name))
        return self.inspections[-1]

    def _collect(self, rows: pa.Table) -> None:
        Table(context().store, self.model.entities).append(rows)

    def _answer(self, rows: pa.Table) -> None:
        """Answer by the arms in force, and by the shadows, and log it as a replica does."""
        traffic = context().registry().traffic(self.model.name)
        arms = [traffic.assign(unit) for unit in rows["row_id"].to_pylist()]
        parts = [
            self._logged(rows.take(pa.array(places)), version, name, shadow=False)
            for name, version in {(arm.name, arm.version) for arm in arms}
            if (
                places := [
                    place for place, arm in enumerate(arms) if (arm.name, arm.version) == (name, version)
                ]
            )
        ]
        parts += [self._logged(rows, version, "shadow", shadow=True) for version in traffic.shadows]
        table = Table(context().store, predictions_table(self.model.name))
        table.append(pa.concat_tables(parts), partition_by=["day"])

    def _logged(self, rows: pa.Table, version: int, arm: str, *, shadow: bool) -> pa.Table:
        if version not in self.loaded:
            registry = context().registry()
            self.loaded[version] = load_version(registry, registry.get_version(self.model.name, version))
        outputs = self.loaded[version].predict_table(rows)["probability"].astype(np.float32)
        count = rows.num_rows
        columns = {
            "prediction_id": rows["row_id"].to_pylist(),
            "model": [self.model.name] * count,
            "version": [version] * count,
            "arm": [arm] * count,
            "shadow": [shadow] * count,
            "unit": rows["row_id"].to_pylist(),
            "predicted_at": rows["event_timestamp"].to_pylist(),
            "latency_ms": [1.0] * count,
            "numeric": _side_by_side(rows, self.model.numeric),
            "categorical": _side_by_side(rows, self.model.categorical),
            "outputs": outputs.tolist(),
            "missing": [[]] * count,
            "day": [f"{moment:%Y-%m-%d}" for moment in rows["event_timestamp"].to_pylist()],
        }
        absent = {name: [None] * count for name in PREDICTIONS.names if name not in columns}
        return pa.table({**columns, **absent}, schema=PREDICTIONS)

    def _label(self, rows: pa.Table) -> None:
        known = rows["label_known_at"].to_pylist()
        columns = {
            "prediction_id": rows["row_id"].to_pylist(),
            "label": [float(one) for one in rows[self.model.label].to_pylist()],
            "observed_at": known,
            "received_at": known,
            "day": [f"{moment:%Y-%m-%d}" for moment in known],
        }
        absent = {name: [None] * rows.num_rows for name in LABELS.names if name not in columns}
        Table(context().store, LABELS_TABLE).append(
            pa.table({**columns, **absent}, schema=LABELS), partition_by=["day"]
        )


def play(project: str, model: ModelDefinition, rows: Callable[[int], pa.Table], space: Space) -> None:
    """Play five weeks in a store of their own, and tell each day on which something happened. project: module of the model."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="toque-example-") as folder:
        url = f"file://{folder}/store"
        with use_context(
            Context(open_store(url), url, project=project, clock=clock, actor="example")
        ) as used:
            loop = Loop(model, rows, space, clock)
            sys.stdout.write(f"version {loop.begin()} is the champion\n")
            for day in range(FIRST_DAY, LAST_DAY):
                _tell(day, loop.day(day))
            live = used.registry().get_version(model.name, "champion").version
            sys.stdout.write(f"version {live} is the champion after {LAST_DAY} days\n")


def _side_by_side(rows: pa.Table, names: Sequence[str]) -> list[list[object]]:
    """List the features of each row, numbers as the float32 that a model gets."""
    if not names:
        return [[] for _ in range(rows.num_rows)]
    columns = [rows[name].to_numpy(zero_copy_only=False) for name in names]
    if pa.types.is_floating(rows.schema.field(names[0]).type):
        columns = [column.astype(np.float32) for column in columns]
    return [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _tell(day: int, found: InspectionResult) -> None:
    for retrained in found.retraining:
        sys.stdout.write(f"day {day}: {retrained.action}, {retrained.text}\n")
    if found.rollout.action != "hold":
        sys.stdout.write(
            f"day {day}: {found.rollout.action} {found.rollout.challenger}, {found.rollout.text}\n"
        )
    sys.stdout.flush()
