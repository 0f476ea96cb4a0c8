"""Replay of the whole of 2013 without a running platform: rows, labels and models in one process, on a replayed clock.

`python -m examples.flights.year --home FOLDER` replays the year under each plan for renewing the model:
- never: the first model serves to the end.
- weekly: trained anew every seven days on all labelled rows, and served at once without any check.
- drift, policy: the platform's loop (monitor, decide, train challengers, gate, shadow, canary, promote), where drift alone
  or every monitor may trigger a retrain.

A day's flights are answered by the arms that the registry names, with the features that the point-in-time join gives for
their moment; labels are reported when the aircraft has landed. Every step is done once however often it is begun, so a year
that was killed resumes where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from examples.flights.features import CATEGORICAL, NUMERIC, flight_delay
from examples.flights.model import ENTITIES, delay_model
from examples.flights.plans import (
    BEGIN,
    DAY,
    END,
    FIRST,
    MODEL,
    PLANS,
    ManualClock,
    Plan,
    approve_unchecked,
    prepare,
    project_of,
    train,
)
from toque.functions.evaluation.realised_loss import score
from toque.functions.features.jobs import build_training_set
from toque.functions.monitoring import alarms
from toque.functions.prediction_log import LABELS_TABLE, outcomes, predictions_table
from toque.functions.prediction_log.records import LABELS, PREDICTIONS
from toque.functions.retraining.jobs import inspect_model, retrains
from toque.functions.rollout import rollout_status
from toque.functions.runtime.context import Context, use_context
from toque.functions.training import ScoringModel, TabularParams, load
from toque.registry import Registry, Table, TableSnapshot, open_store

WEEK, INSPECTED_EVERY = 7, 2  # days


class Progress(BaseModel):
    """Progress of a year's replay. day: the next one; cpu_s: used to renew the model, by child processes too."""

    model_config = ConfigDict(frozen=True)

    day: int = 0
    trainings: int = 0
    cpu_s: float = 0.0


@dataclass
class Year:
    """Replay of the year under `plan`, in a folder that `prepare` filled. training: settings of every network."""

    folder: Path
    plan: Plan
    training: TabularParams = delay_model.training
    last: datetime = END
    clock: ManualClock = field(default_factory=ManualClock)
    loaded: dict[int, ScoringModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the store, and declare the project of this plan."""
        url = (self.folder / "store").absolute().as_uri()
        self.context = Context(
            open_store(url), url, project=project_of(self.plan, self.training), clock=self.clock, actor="year"
        )
        self.requests = pl.read_parquet(self.folder / "asked.parquet")

    def replay(self) -> Progress:
        """Replay the days that are left; may be killed and called again."""
        with use_context(self.context):
            progress = self._progress()
            while (start := FIRST + progress.day * DAY) < self.last:
                self.clock.now = start
                self._serve(progress.day, start)
                self.clock.now = start + DAY
                self._label(progress.day, start + DAY)
                before = _cpu_s()
                trained = self._renew(progress.day)
                progress = Progress(
                    day=progress.day + 1,
                    trainings=progress.trainings + trained,
                    cpu_s=progress.cpu_s + (_cpu_s() - before if trained else 0.0),
                )
                self.context.store.put("year/lived.json", progress.model_dump_json().encode())
        return progress

    def _progress(self) -> Progress:
        kept = self.context.store.find("year/lived.json")
        return Progress() if kept is None else Progress.model_validate_json(kept)

    def _serve(self, day: int, start: datetime) -> None:
        """Answer a day's flights by the arms, and by the challengers in the shadow."""
        rows = self.requests.filter(pl.col("event_timestamp").is_between(start, start + DAY, closed="left"))
        table = Table(self.context.store, predictions_table(MODEL))
        if not rows.height or _done(table, day):
            return
        traffic = self.context.registry().traffic(MODEL)
        arms = [traffic.assign(str(flight)) for flight in rows["flight_id"].to_list()]
        versions = np.array([arm.version for arm in arms])
        parts = [
            self._answers(
                rows.filter(versions == version),
                version,
                [arm.name for arm in arms if arm.version == version],
                shadow=False,
            )
            for version in dict.fromkeys(versions.tolist())
        ]
        parts += [
            self._answers(rows, version, ["shadow"] * rows.height, shadow=True) for version in traffic.shadows
        ]
        table.append(pa.concat_tables(parts), partition_by=["day"], transactions={"year": day})

    def _answers(self, rows: pl.DataFrame, version: int, arms: list[str], *, shadow: bool) -> pa.Table:
        texts = [list(row) for row in rows.select(CATEGORICAL).iter_rows()]
        numeric = rows.select(pl.col(NUMERIC).cast(pl.Float32)).fill_null(float("nan")).to_numpy()
        inputs = {"numeric": numeric, "categorical": np.array(texts, dtype=object)}
        outputs = self._model(version).predict(inputs)["probability"]
        count, at = (
            rows.height,
            rows["event_timestamp"].to_arrow().cast(PREDICTIONS.field("predicted_at").type),
        )
        columns = {
            "prediction_id": rows["flight_id"].cast(pl.String).to_list(),
            "model": [MODEL] * count,
            "version": [version] * count,
            "arm": arms,
            "shadow": [shadow] * count,
            "unit": rows["flight_id"].cast(pl.String).to_list(),
            "predicted_at": at,
            "latency_ms": [1.0] * count,
            "numeric": list(numeric),
            "categorical": texts,
            "outputs": list(outputs.astype(np.float32)),
            "missing": [None] * count,
            "entities": [None] * count,
            "day": rows["event_timestamp"].dt.strftime("%Y-%m-%d").to_list(),
        }
        return pa.table(columns, schema=PREDICTIONS)

    def _label(self, day: int, now: datetime) -> None:
        """Report the labels of the flights that have landed in the last day."""
        landed = self.requests.filter(
            pl.col("late").is_not_null()
            & (pl.col("event_timestamp") >= FIRST)
            & pl.col("label_known_at").is_between(now - DAY, now, closed="right")
        ).sort("label_known_at", "flight_id")
        table = Table(self.context.store, LABELS_TABLE)
        if not landed.height or _done(table, day):
            return
        columns = {
            "prediction_id": landed["flight_id"].cast(pl.String).to_list(),
            "label": landed["late"].to_list(),
            "observed_at": landed["label_known_at"].to_list(),
            "received_at": landed["label_known_at"].to_list(),
            "day": landed["label_known_at"].dt.strftime("%Y-%m-%d").to_list(),
        }
        table.append(pa.table(columns, schema=LABELS), partition_by=["day"], transactions={"year": day})

    def _renew(self, day: int) -> int:
        """Renew the model by the plan at the end of a day; returns how many networks were trained."""
        if self.plan == "weekly":
            return self._train_anew() if (day + 1) % WEEK == 0 else 0
        if (day + 1) % INSPECTED_EVERY:
            return 0
        inspection = inspect_model(MODEL)
        return sum(len(answer.challengers) for answer in inspection.retraining)

    def _train_anew(self) -> int:
        """Train on all labelled rows, and serve the version at once."""
        entities = TableSnapshot(name=ENTITIES, version=Table(self.context.store, ENTITIES).version())
        made = build_training_set(
            flight_delay.name, entities, "late", BEGIN, self.clock.now - DAY, name=f"training/{MODEL}/weekly"
        )
        registry = self.context.registry()
        registry.set_alias(
            MODEL, "champion", approve_unchecked(registry, train(made, entities, self.training))
        )
        return 1

    def _model(self, version: int) -> ScoringModel:
        if version not in self.loaded:
            self.loaded[version] = _download(self.context.registry(), version)
        return self.loaded[version]


def _download(registry: Registry, version: int) -> ScoringModel:
    with tempfile.TemporaryDirectory() as folder:
        registry.download(MODEL, version, to=Path(folder))
        return load(folder, signature=registry.get_version(MODEL, version).signature)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _done(table: Table, day: int) -> bool:
    """Whether the table has the rows of a day of the year."""
    last = table.transaction("year") if table.exists() else None
    return last is not None and last >= day


def _cpu_s() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


class Outcome(BaseModel):
    """Result of a replayed year. loss: mean log loss of the answers to users; renewals: versions that were promoted."""

    model_config = ConfigDict(frozen=True)

    plan: Plan
    answered: int
    loss: float
    trainings: int
    retrains: int
    renewals: int
    cpu_s: float


def outcome(year: Year, progress: Progress) -> Outcome:
    """Compute the figures of a year that was replayed."""
    store = year.context.store
    with use_context(year.context):
        rows = score(outcomes(store, MODEL, FIRST, year.last), clip=delay_model.rollout.clip)
        started = [entry for entry in retrains(MODEL).journal.entries() if entry.body["event"] == "started"]
    answered = rows.where(~rows.shadow)
    return Outcome(
        plan=year.plan,
        answered=len(answered),
        loss=float(answered.loss.mean()),
        trainings=progress.trainings,
        retrains=len(started) if year.plan in ("drift", "policy") else progress.trainings,
        renewals=len(np.unique(answered.version[answered.version > 1])),
        cpu_s=progress.cpu_s,
    )


def story(year: Year) -> list[tuple[str, ...]]:
    """List alarms, retraining decisions and rollouts of a year in order, without wall-clock times."""
    with use_context(year.context):
        raised = [(alarm.key, alarm.text, str(alarm.raised_at)) for alarm in alarms(MODEL).all()]
        bodies = [entry.body for entry in retrains(MODEL).journal.entries()]
        ended = [
            (str(rollout.challenger), rollout.stage, rollout.rule)
            for rollout in rollout_status(MODEL).outcomes
        ]
    decided = [
        (body["event"], body["at"], body["decision"]["rule"], body["alarm"]["key"])
        if "decision" in body
        else (body["event"], body["at"], body["finished"]["text"])
        for body in bodies
        if body["event"] != "resumed"
    ]
    return [*raised, *decided, *ended]


def main(arguments: list[str] | None = None) -> int:
    """Replay the year under each plan and print its figures; an interrupted year resumes."""
    parser = argparse.ArgumentParser(prog="python -m examples.flights.year")
    parser.add_argument("--home", type=Path, required=True, help="folder for the stores, one a plan")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--one-in", type=int, default=4, help="predict one flight in so many (default 4)")
    chosen = parser.parse_args(arguments)
    base = chosen.home / "prepared"
    if not (base / "asked.parquet").exists():
        shutil.rmtree(base, ignore_errors=True)
        prepare(base, one_in=chosen.one_in)
    _say("| plan | answered | log loss | retrains | networks trained | promoted | CPU s for it |")
    for plan in chosen.plans:
        folder = chosen.home / plan
        if not folder.exists():
            shutil.copytree(base, folder)
        year = Year(folder, plan)
        found = outcome(year, year.replay())
        _say(
            f"| {plan} | {found.answered:,} | {found.loss:.4f} | {found.retrains} | {found.trainings} "
            f"| {found.renewals} | {found.cpu_s:.0f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
