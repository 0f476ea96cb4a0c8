"""Fixtures of the monitoring benchmarks: models of fifty features, a training set, and a growing log."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from toque.functions.monitoring import DriftMonitor, PerformanceMonitor, QualityMonitor
from toque.functions.prediction_log import LABELS_TABLE, predictions_table
from toque.functions.prediction_log.records import LABELS, PREDICTIONS
from toque.functions.project import ModelDefinition
from toque.functions.runtime import Context
from toque.registry import Lineage, Signature, Table, TableSnapshot, TensorSpec, open_store

HOUR = timedelta(hours=1)
START = datetime(2026, 3, 2, tzinfo=UTC)
NUMERIC, CATEGORICAL = 40, 10
NAMES = [f"n{place}" for place in range(NUMERIC)], [f"c{place}" for place in range(CATEGORICAL)]
TRAINING_ROWS, TRAINING_HOURS = 5_000, 14 * 24
WORDS = np.array([f"w{place}" for place in range(20)])

DRIFT = DriftMonitor(cohort=HOUR, window=24, delay=timedelta(0), lookback=timedelta(hours=24))
QUALITY = QualityMonitor(cohort=HOUR, delay=timedelta(0), lookback=timedelta(hours=24))
PERFORMANCE = PerformanceMonitor(cohort=HOUR, label_delay=HOUR, lookback=timedelta(hours=24))


@dataclass
class MonitoredStore:
    """Store at `root` with a clock that is moved by hand."""

    root: Path
    now: datetime = START
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def __post_init__(self) -> None:
        """Open the store, creating it if needed."""
        store = open_store((self.root / "store").absolute().as_uri())
        self.context = Context(store, store.url, clock=lambda: self.now, actor="inspector", project=PROJECT)

    def training_set(self) -> TableSnapshot:
        """Write a training set of two weeks."""
        rows = feature_rows(self.rng, TRAINING_ROWS)
        hours = np.sort(self.rng.integers(0, TRAINING_HOURS, TRAINING_ROWS))
        at = pa.array([START - HOUR * (TRAINING_HOURS - int(one)) for one in hours], _TIME)
        return Table(self.context.store, "training/all").overwrite(rows.append_column("event_timestamp", at))

    def register(self, model: str, snapshot: TableSnapshot) -> None:
        """Register a champion of `model` with the training set `snapshot`."""
        path = self.root / "model.txt"
        path.write_text(model)
        registry = self.context.registry()
        registry.create_model(model, exist_ok=True)
        made = registry.create_version(
            model, path, signature=SIGNATURE, metrics={"log_loss": 0.65}, lineage=Lineage(datasets=[snapshot])
        )
        registry.set_alias(model, "champion", made.version)

    def serve(self, model: str, start: datetime, *, hours: int, rows_an_hour: int) -> pa.Table:
        """Log so many hours of answers to `model` from `start` on; returns their labels, which `label` logs."""
        count = hours * rows_an_hour
        features = feature_rows(self.rng, count)
        numeric = np.stack([features[name].to_numpy() for name in NAMES[0]], axis=1).astype(np.float32)
        words = np.stack([features[name].to_numpy() for name in NAMES[1]], axis=1)
        at = int(start.timestamp()) * 1_000_000 + (np.arange(count) * (3_600_000_000 / rows_an_hour)).astype(
            np.int64
        )
        p = 1 / (1 + np.exp(-numeric[:, 0].astype(np.float64)))
        ids = pa.array([f"{model}-{one}" for one in at.tolist()])
        times = pa.array(at).cast(_TIME)
        day = pa.array(np.datetime_as_string(at.astype("datetime64[us]"), unit="D"))
        answers = _answers(model, ids, times, day, numeric, words, p)
        Table(self.context.store, predictions_table(model)).append(answers, partition_by=["day"])
        label = pa.array((self.rng.random(count) < p).astype(np.float64))
        return pa.table([ids, label, times, times, day], schema=LABELS)

    def label(self, labels: pa.Table) -> None:
        """Log labels of one or many models."""
        Table(self.context.store, LABELS_TABLE).append(labels, partition_by=["day"])


PROJECT = "monitored_models"


def declare(models: Sequence[str]) -> None:
    """Declare a project of these models, each with the three monitors every hour, and the default policy of retraining."""
    module = ModuleType(PROJECT)
    module.__dict__["FEATURES"] = ()
    module.__dict__["MODELS"] = [
        ModelDefinition(
            name=model,
            service="none",
            entities="none",
            label="label",
            numeric=tuple(NAMES[0]),
            categorical=tuple(NAMES[1]),
            monitors=(QUALITY, PERFORMANCE, DRIFT),
            inspect="0 * * * *",
        )
        for model in models
    ]
    sys.modules[PROJECT] = module


SIGNATURE = Signature(
    inputs=[
        TensorSpec(name="numeric", datatype="FP32", shape=[-1, NUMERIC], columns=NAMES[0]),
        TensorSpec(name="categorical", datatype="BYTES", shape=[-1, CATEGORICAL], columns=NAMES[1]),
    ],
    outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
)
_TIME = pa.timestamp("us", "UTC")


def feature_rows(rng: np.random.Generator, rows: int) -> pa.Table:
    """Make rows of independent features."""
    numbers: dict[str, object] = {name: rng.standard_normal(rows) for name in NAMES[0]}
    words = {name: WORDS[rng.integers(0, len(WORDS), rows)] for name in NAMES[1]}
    return pa.table(numbers | words)


def _answers(
    model: str,
    ids: pa.Array,
    times: pa.Array,
    day: pa.Array,
    numeric: npt.NDArray[np.float32],
    words: npt.NDArray[np.str_],
    p: npt.NDArray[np.float64],
) -> pa.Table:
    same = {"model": model, "version": 1, "arm": "champion", "shadow": False, "latency_ms": 4.0}
    columns = {name: pa.repeat(value, len(ids)) for name, value in same.items()} | {
        "prediction_id": ids,
        "unit": ids,
        "predicted_at": times,
        "numeric": _lists(pa.array(numeric.ravel()), NUMERIC),
        "categorical": _lists(pa.array(words.ravel()), CATEGORICAL),
        "outputs": _lists(pa.array(p.astype(np.float32)), 1),
        "missing": pa.nulls(len(ids), pa.list_(pa.string())),
        "entities": pa.nulls(len(ids), pa.string()),
        "day": day,
    }
    return pa.table([columns[field.name].cast(field.type) for field in PREDICTIONS], schema=PREDICTIONS)


def _lists(flat: pa.Array, width: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(flat) + 1, width, dtype=np.int32)), flat)
