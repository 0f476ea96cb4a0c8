"""Weeks of a model's life in one process, on a clock moved by hand, for the examples that need no running platform.

Every day the arms that the registry names answer the day's rows, the labels come half a day later, and the model is inspected as a
schedule would. Nothing here tells the platform what happened: monitors, gate, rollout and retraining decide.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain

import pyarrow as pa

from toque.functions.evaluation import evaluate_gate
from toque.functions.features import build_training_set
from toque.functions.model_formats.load import ScoringModel, load_version
from toque.functions.model_formats.table_inputs import text_inputs
from toque.functions.prediction_log import LABELS_TABLE, Label, encode_labels, predictions_table
from toque.functions.prediction_log.writing.columns import label_columns, prediction_columns
from toque.functions.project import ModelDefinition
from toque.functions.retraining.jobs import InspectionResult, inspect_model
from toque.functions.runtime.context import Context, context, use_context
from toque.functions.training import train_model
from toque.functions.tuning import Space, tune_model
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.registry import Table, open_store

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
        arms = [traffic.assign(unit) for unit in self._units(rows)]
        records = [
            self._logged(rows.take(pa.array(places)), version, name, shadow=False)
            for name, version in {(arm.name, arm.version) for arm in arms}
            if (
                places := [
                    place for place, arm in enumerate(arms) if (arm.name, arm.version) == (name, version)
                ]
            )
        ]
        records += [self._logged(rows, version, "shadow", shadow=True) for version in traffic.shadows]
        logged = prediction_columns(chain.from_iterable(records))[self.model.name]
        table = Table(context().store, predictions_table(self.model.name))
        table.append(logged, partition_by=["day"], merge_schema=True)

    def _units(self, rows: pa.Table) -> list[str]:
        """Name the unit of each row: its request where a request has several items, else the row."""
        units: list[str] = rows[self.model.group or "row_id"].to_pylist()
        return units

    def _logged(self, rows: pa.Table, version: int, arm: str, *, shadow: bool) -> _Records:
        """Answer each row as a request of its own, and record it as a replica does."""
        if version not in self.loaded:
            registry = context().registry()
            self.loaded[version] = load_version(registry, registry.get_version(self.model.name, version))
        scoring = self.loaded[version]
        inputs = text_inputs(rows, scoring.signature)
        outputs = scoring.predict_table(rows)
        records = _Records()
        recorder = Recorder(self.model.name, records)
        times = rows["event_timestamp"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist()
        for row, (name, unit, at_us) in enumerate(
            zip(rows["row_id"].to_pylist(), self._units(rows), times, strict=True)
        ):
            recorder.record(
                id=name,
                version=version,
                arm=arm,
                shadow=shadow,
                unit=unit,
                at_us=at_us,
                latency_ms=1.0,
                rows=1,
                inputs={each: values[row : row + 1] for each, values in inputs.items()},
                outputs={each: values[row : row + 1] for each, values in outputs.items()},
            )
        return records

    def _label(self, rows: pa.Table) -> None:
        labels = [
            Label(name, value if isinstance(value, str | list) else float(value), known, known)
            for name, value, known in zip(
                *(rows[name].to_pylist() for name in ("row_id", self.model.label, "label_known_at")),
                strict=True,
            )
        ]
        Table(context().store, LABELS_TABLE).append(
            label_columns([encode_labels(labels)]), partition_by=["day"], merge_schema=True
        )


class _Records(list[bytes]):
    """Log that keeps the records in memory."""

    def append(self, payload: bytes) -> int:  # type: ignore[override]  # a log returns the record's number
        """Keep one record in memory, and return its number."""
        super().append(payload)
        return len(self)

    def extend(self, payloads: Iterable[bytes]) -> int:  # type: ignore[override]  # as above
        """Keep several records in memory, and return how many there are."""
        super().extend(payloads)
        return len(self)


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


def _tell(day: int, found: InspectionResult) -> None:
    for retrained in found.retraining:
        sys.stdout.write(f"day {day}: {retrained.action}, {retrained.text}\n")
    if found.rollout.action != "hold":
        sys.stdout.write(
            f"day {day}: {found.rollout.action} {found.rollout.challenger}, {found.rollout.text}\n"
        )
    sys.stdout.flush()
