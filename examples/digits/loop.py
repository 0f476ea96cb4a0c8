"""Five weeks of the digit reader in one process, on a clock moved by hand: `python -m examples.digits.loop`.

Every day the arms that the registry names answer the day's images, the labels come half a day later, and the model is inspected as
a schedule would. Nothing here tells the platform what happened: monitors, gate, rollout and retraining decide.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa

from examples.digits.data import DAY, START, images
from examples.digits.model import ENTITIES, PIXELS, digit_model
from functions.evaluation import evaluate_gate
from functions.features import build_training_set
from functions.model_formats.load import ScoringModel
from functions.model_formats.versions import load_version
from functions.prediction_log import LABELS_TABLE, predictions_table
from functions.prediction_log.records import LABELS, PREDICTIONS
from functions.retraining.jobs import InspectionResult, inspect_model
from functions.runtime.context import Context, context, use_context
from functions.training import train_model
from functions.tuning import Range, Space, tune_model
from registry import Table, open_store

MODEL = digit_model.name
FIRST_DAY, LAST_DAY = 6, 36  # before the first, labelled images are only collected


@dataclass
class Clock:
    """Clock that the loop moves by hand, day by day."""

    now: datetime = START

    def __call__(self) -> datetime:
        """Time that the clock was set to."""
        return self.now


@dataclass
class Loop:
    """The life of the model. loaded: versions that have answered; inspections: what each day's found and did."""

    clock: Clock
    loaded: dict[int, ScoringModel] = field(default_factory=dict)
    inspections: list[InspectionResult] = field(default_factory=list)

    def begin(self) -> int:
        """Sweep on the images of the first days, train, judge, approve and promote; returns the version."""
        for day in range(FIRST_DAY):
            self._collect(images(day))
        entities = Table(context().store, ENTITIES).snapshot()
        split, end = START + (FIRST_DAY - 2) * DAY, START + FIRST_DAY * DAY
        self.clock.now = end + DAY
        training = build_training_set(None, entities, "digit", START, split, name="training/digit/first")
        held_out = build_training_set(None, entities, "digit", split, end, name="training/digit/gate")
        registry = context().registry()
        space: Space = {"c": Range(low=0.001, high=0.1, log=True, steps=3)}
        sweep = tune_model(MODEL, training, space, search="grid", concurrency=1)
        trained = train_model(MODEL, training, parameters=sweep.best_parameters, datasets=[entities])
        assert trained.version is not None  # noqa: S101 - it was asked to register one
        judged = evaluate_gate(MODEL, trained.version, held_out, "digit", digit_model.gate)
        if not judged.passed:
            raise SystemExit(f"the first version does not pass its gate: {judged.reason or judged.checks}")
        registry.as_actor("a-colleague").approve(MODEL, trained.version, comment="reads well")
        registry.set_alias(MODEL, "champion", trained.version)
        return trained.version

    def day(self, number: int) -> InspectionResult:
        """Answer and label the images of one day, and inspect the model after it."""
        rows = images(number)
        self._answer(rows)
        self._collect(rows)
        self.clock.now = START + (number + 1) * DAY + DAY / 2
        self._label(rows)
        self.inspections.append(inspect_model(MODEL))
        return self.inspections[-1]

    def _collect(self, rows: pa.Table) -> None:
        Table(context().store, ENTITIES).append(rows)

    def _answer(self, rows: pa.Table) -> None:
        """Answer by the arms in force, and by the shadows, and log it as a replica does."""
        traffic = context().registry().traffic(MODEL)
        arms = [traffic.assign(unit) for unit in rows["image_id"].to_pylist()]
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
        table = Table(context().store, predictions_table(MODEL))
        table.append(pa.concat_tables(parts), partition_by=["day"])

    def _logged(self, rows: pa.Table, version: int, arm: str, *, shadow: bool) -> pa.Table:
        if version not in self.loaded:
            registry = context().registry()
            self.loaded[version] = load_version(registry, registry.get_version(MODEL, version))
        outputs = self.loaded[version].predict_table(rows)["probability"]
        count = rows.num_rows
        columns = {
            "prediction_id": rows["image_id"].to_pylist(),
            "model": [MODEL] * count,
            "version": [version] * count,
            "arm": [arm] * count,
            "shadow": [shadow] * count,
            "unit": rows["image_id"].to_pylist(),
            "predicted_at": rows["event_timestamp"].to_pylist(),
            "latency_ms": [1.0] * count,
            "numeric": np.stack([rows[name].to_numpy() for name in PIXELS], axis=1)
            .astype(np.float32)
            .tolist(),
            "categorical": [[]] * count,
            "outputs": outputs.astype(np.float32).tolist(),
            "missing": [[]] * count,
            "day": [f"{moment:%Y-%m-%d}" for moment in rows["event_timestamp"].to_pylist()],
        }
        absent = {name: [None] * count for name in PREDICTIONS.names if name not in columns}
        return pa.table({**columns, **absent}, schema=PREDICTIONS)

    def _label(self, rows: pa.Table) -> None:
        known = rows["label_known_at"].to_pylist()
        columns = {
            "prediction_id": rows["image_id"].to_pylist(),
            "label": [float(digit) for digit in rows["digit"].to_pylist()],
            "observed_at": known,
            "received_at": known,
            "day": [f"{moment:%Y-%m-%d}" for moment in known],
        }
        absent = {name: [None] * rows.num_rows for name in LABELS.names if name not in columns}
        Table(context().store, LABELS_TABLE).append(
            pa.table({**columns, **absent}, schema=LABELS), partition_by=["day"]
        )


def main() -> None:
    """Play the five weeks in a store of their own, and tell each day on which something happened."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="toque-digits-") as folder:
        url = f"file://{folder}/store"
        used = Context(open_store(url), url, project="examples.digits", clock=clock, actor="digits")
        with use_context(used):
            loop = Loop(clock)
            sys.stdout.write(f"version {loop.begin()} is the champion\n")
            for day in range(FIRST_DAY, LAST_DAY):
                _tell(day, loop.day(day))
            live = used.registry().get_version(MODEL, "champion").version
            sys.stdout.write(f"version {live} is the champion after {LAST_DAY} days\n")


def _tell(day: int, found: InspectionResult) -> None:
    for retrained in found.retraining:
        sys.stdout.write(f"day {day}: {retrained.action}, {retrained.text}\n")
    if found.rollout.action != "hold":
        sys.stdout.write(
            f"day {day}: {found.rollout.action} {found.rollout.challenger}, {found.rollout.text}\n"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
