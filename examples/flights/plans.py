"""Plans for renewing the model through the replayed year, and the tables that each year starts from."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from examples.flights import data
from examples.flights import features as flight_features
from examples.flights.features import CATEGORICAL, FEATURES, NUMERIC, flight_delay
from examples.flights.model import ENTITIES, delay_model
from examples.flights.prep import fill_view
from toque.functions.evaluation import evaluate_gate
from toque.functions.features.jobs import build_training_set
from toque.functions.retraining.policy import TrainingWindow
from toque.functions.runtime.context import Context, use_context
from toque.functions.training import TabularParams, Trained, train_tabular
from toque.registry import Registry, Table, TableSnapshot, open_store

Plan = Literal["never", "weekly", "drift", "policy"]
PLANS: tuple[Plan, ...] = ("never", "weekly", "drift", "policy")
MODEL, DAY = delay_model.name, timedelta(days=1)
BEGIN, GATED, FIRST, END = (
    datetime(*day, tzinfo=UTC) for day in ((2013, 1, 1), (2013, 3, 25), (2013, 4, 1), (2014, 1, 1))
)
BUDGET = 7  # retrains of the year
MARGIN = 0.01  # of log loss, a fiftieth of it: a challenger proven to lose no more is promoted, having seen more flights
COOLDOWN = timedelta(days=28)  # between retrains: else seven are spent by September
# four months of summer win a week of September and lose the winter, so challengers learn from all months
WINDOWS = (TrainingWindow(name="all"),)
_LOST_AFTER = timedelta(milliseconds=1)  # one process: a retrain that has not ended was killed


@dataclass
class ManualClock:
    """Clock that the replay moves by hand."""

    now: datetime = FIRST

    def __call__(self) -> datetime:
        """Time that the clock was set to."""
        return self.now


def prepare(folder: Path, *, one_in: int = 4, training: TabularParams = delay_model.training) -> None:
    """Fill the tables of 2013, select one flight in `one_in` to predict, and train the first champion.

    Raises: SystemExit if that model does not pass its gate.
    """
    url = (folder / "store").absolute().as_uri()
    used = Context(
        open_store(url), url, project=project_of("never", training), clock=ManualClock(), actor="year"
    )
    with use_context(used):
        _fill(used)
        every = flight_features.entity_table(data.flights())
        chosen = every.take(pa.array(np.arange(0, every.num_rows, one_in)))
        entities = Table(used.store, ENTITIES).overwrite(chosen)
        first = build_training_set(
            flight_delay.name, entities, "late", BEGIN, GATED, name=f"training/{MODEL}/first"
        )
        gate_set = build_training_set(
            flight_delay.name, entities, "late", GATED, FIRST - DAY, name=f"training/{MODEL}/gate"
        )
        registry = used.registry()
        # The weekly plan approves what no gate has seen, so here the gate is named without its limits.
        by_name = delay_model.governance.model_copy(update={"gates": (delay_model.gate.name,)})
        registry.create_model(MODEL, policy=by_name)
        trained = train(first, entities, training)
        gate = evaluate_gate(MODEL, trained.version or 0, gate_set, "late", delay_model.gate)
        if not gate.passed:
            raise SystemExit(f"the first model does not pass its gate: {gate.reason or gate.checks}")
        registry.as_actor("ada").approve(MODEL, gate.version)
        registry.set_alias(MODEL, "champion", gate.version)
        rows = used.features().get_historical_features(chosen, features=flight_delay.name).to_arrow()
    pl.DataFrame(rows).sort("event_timestamp", "flight_id").write_parquet(folder / "asked.parquet")


def _fill(used: Context) -> None:
    """Fill the offline tables as `prep` does."""
    features = used.features()
    features.apply(FEATURES)
    for view in flight_features.STORED:
        fill_view(features, view)


def train(made: TableSnapshot, entities: TableSnapshot, training: TabularParams) -> Trained:
    """Train a new version on the training set `made`."""
    return train_tabular(
        MODEL, made, "late", list(NUMERIC), list(CATEGORICAL), params=training, datasets=[entities], feature_service=flight_delay.name
    )  # fmt: skip


def approve_unchecked(registry: Registry, trained: Trained) -> int:
    """Record a passed gate and an approval without any check, as the weekly plan does."""
    assert trained.version is not None  # noqa: S101 - it was asked to register one
    registry.record_gate(MODEL, trained.version, "offline", passed=True, details={"why": "weekly, unseen"})
    registry.as_actor("calendar").approve(MODEL, trained.version)
    return trained.version


def project_of(plan: Plan, training: TabularParams) -> str:
    """Declare the project of a plan; returns the name of its module."""
    policy = delay_model.retraining
    assert policy is not None  # noqa: S101 - the example has one
    triggers = ("drift",) if plan == "drift" else policy.triggers
    policy = policy.model_copy(
        update={
            "triggers": triggers,
            "lost_after": _LOST_AFTER,
            "budget": BUDGET,
            "cooldown": COOLDOWN,
            "windows": WINDOWS,
        }
    )
    changed: dict[str, object] = {
        "retraining": policy if plan in ("drift", "policy") else None,
        "rollout": delay_model.rollout.model_copy(update={"min_effect": -MARGIN}),
        "training": training,
    }
    module = ModuleType(f"flights_year_{plan}")
    module.__dict__["FEATURES"] = FEATURES
    module.__dict__["MODELS"] = [delay_model.model_copy(update=changed)]
    sys.modules[module.__name__] = module
    return module.__name__
