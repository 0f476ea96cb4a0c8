"""Benchmark of monitoring at scale: rows beyond memory, a day from its hours, a thousand models an hour.

Parts of `python -m toque.load.benchmarks.monitoring.bounds`; each prints its figures. The
models have fifty features, a training set and a log that grows.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import ray.data

from toque.functions.monitoring import (
    DriftMonitor,
    PerformanceMonitor,
    QualityMonitor,
    reference_of_dataset,
    sketch_dataset,
    watch_drift,
    watch_performance,
    watch_quality,
)
from toque.functions.monitoring.drift.monitor import DriftState, compare_window
from toque.functions.monitoring.drift.reference import Reference
from toque.functions.prediction_log import LABELS_TABLE, predictions_table
from toque.functions.prediction_log.records import LABELS
from toque.functions.project import ModelDefinition
from toque.functions.retraining.jobs import MODELS_PER_RUN, inspect_models
from toque.functions.runtime import Context, use_context
from toque.functions.stats import TableSketch, drift
from toque.load.benchmarks import harness
from toque.load.benchmarks.harness import bound, say
from toque.load.benchmarks.prep.fixtures import cluster
from toque.load.benchmarks.prep.logged import logged_rows
from toque.registry import Lineage, ObjectStore, Signature, Table, TableSnapshot, TensorSpec, open_store

COLUMNS, BLOCK_ROWS, SHIFT_SD = 20, 250_000, 0.2
WINDOW_HOURS, ROWS_AN_HOUR = 24, 1_000
_WARM = "warm"
_WINDOW_KEYS = f"monitoring/{_WARM}/state/drift.json", f"monitoring/{_WARM}/reference/1.json"
PROJECT = "monitored_models"
HOUR = timedelta(hours=1)
START = datetime(2026, 3, 2, tzinfo=UTC)
NUMERIC, CATEGORICAL = 40, 10
NAMES = [f"n{place}" for place in range(NUMERIC)], [f"c{place}" for place in range(CATEGORICAL)]
TRAINING_ROWS, TRAINING_HOURS = 5_000, 14 * 24
WORDS = np.array([f"w{place}" for place in range(20)])
_TIME = pa.timestamp("us", "UTC")

DRIFT = DriftMonitor(cohort=HOUR, window=24, delay=timedelta(0), lookback=timedelta(hours=24))
QUALITY = QualityMonitor(cohort=HOUR, delay=timedelta(0), lookback=timedelta(hours=24))
PERFORMANCE = PerformanceMonitor(cohort=HOUR, label_delay=HOUR, lookback=timedelta(hours=24))
SIGNATURE = Signature(
    inputs=[
        TensorSpec(name="numeric", datatype="FP32", shape=[-1, NUMERIC], columns=NAMES[0]),
        TensorSpec(name="categorical", datatype="BYTES", shape=[-1, CATEGORICAL], columns=NAMES[1]),
    ],
    outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
)


def rows_beyond_memory(sizes: tuple[int, int] = (10_000_000, 100_000_000)) -> None:
    """Benchmark drift of tables of twenty numbers over Ray Data, made block by block."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # else a page of plans between the figures
    peaks, ns_a_row, named = [], [], []
    with harness.temporary() as folder, cluster(folder, harness.GIB // 2):
        reference = reference_of_dataset(_numbers(1_000_000, shift=0.0, seed=1))
        sketch_dataset(_numbers(1_000_000, shift=0.0, seed=2), reference)  # workers are there from now on
        for rows in sizes:
            with harness.greatest(harness.family_bytes, every_s=0.5) as peak:
                watch = harness.Stopwatch()
                window = sketch_dataset(_numbers(rows, shift=SHIFT_SD, seed=3), reference)
                named.append(drift.compare(reference, window).drifted)
                took_s = watch.wall_s
            if window.columns["c0"].rows != rows:
                raise RuntimeError(f"{window.columns['c0'].rows} rows were counted of {rows}")
            peaks.append(peak[0])
            ns_a_row.append(took_s / rows * 1e9)
            say(
                f"drift of {rows:>11,} rows x {COLUMNS} columns over Ray Data: {took_s:7.1f} s, "
                f"{ns_a_row[-1]:6.0f} ns a row, peak of all processes {peaks[-1] / harness.GIB:.2f} GiB"
            )
    bound(f"GiB at most, {sizes[-1]:,} rows", peaks[-1] / harness.GIB, most=3.0)
    bound(f"times the peak of {sizes[0]:,} rows", peaks[-1] / peaks[0], most=1.25)
    bound("times its time a row: linear in rows", ns_a_row[-1] / ns_a_row[0], most=1.2)
    bound("sizes where the one column that moved is named", named.count(("c0",)), least=len(sizes))


def _numbers(rows: int, *, shift: float, seed: int) -> ray.data.Dataset:
    """Make a Ray dataset of normal numbers, its first column shifted, block by block."""

    def make(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, int(block["id"][0])])
        size = len(block["id"])
        columns = {f"c{place}": rng.standard_normal(size, dtype=np.float32) for place in range(COLUMNS)}
        columns["c0"] += np.float32(shift)
        return columns

    numbered = ray.data.range(rows, override_num_blocks=max(2, rows // BLOCK_ROWS))
    return numbered.map_batches(make, batch_size=None)


def day_from_hours() -> None:
    """Benchmark the drift of the last 24 hours of a model with fifty features, from the state in the store."""
    with harness.temporary() as folder:
        store = _watched(folder).context.store
        took = harness.timed(lambda: _judge_window(store), repeats=29)
        size = sum(len(store.get(key)) for key in _WINDOW_KEYS)
    say(f"{took}  {WINDOW_HOURS} hourly sketches x 50 features, {size / harness.MIB:.2f} MiB read")
    bound(f"ms a model for a {WINDOW_HOURS}-hour window", took.p50_s * 1e3, most=50)


def _judge_window(store: ObjectStore) -> None:
    """Read state and reference from the store, add the hours up, and compare."""
    state, reference = (store.get(key) for key in _WINDOW_KEYS)
    sketches = DriftState.model_validate_json(state).sketches
    if len(sketches) != WINDOW_HOURS:
        raise RuntimeError(f"{len(sketches)} hours are kept, not {WINDOW_HOURS}")
    numbered = [(place, TableSketch.from_dict(sketch)) for place, sketch in enumerate(sketches)]
    compare_window(Reference.from_dict(json.loads(reference)), numbered, DRIFT)


def _watched(root: Path) -> MonitoredStore:
    """Make a store in which the model `warm` has been watched for 26 hours."""
    monitored = MonitoredStore(root)
    monitored.register(_WARM, monitored.training_set())
    monitored.label(monitored.serve(_WARM, START, hours=26, rows_an_hour=ROWS_AN_HOUR))
    monitored.now = START + 26 * HOUR
    with use_context(monitored.context):
        watch_quality(_WARM, QUALITY)
        watch_performance(_WARM, PERFORMANCE)
        watch_drift(_WARM, DRIFT)
    return monitored


def an_hour_of_models(models: int = 1_000) -> None:
    """Benchmark one hourly inspection of so many models with fifty features, a thousand logged rows each: CPU of everything.

    Each model has a registry entry, a log and labels of its own. What its monitors remember of the day before is what those
    of one model remember that was watched for 26 hours: that is the same for all, and only prepares the hour that is timed.
    """
    names = [f"model-{place:04d}" for place in range(models)]
    chunks = [names[first : first + MODELS_PER_RUN] for first in range(0, models, MODELS_PER_RUN)]
    with harness.temporary() as folder:
        monitored = _watched(folder)
        _make_alike(monitored, chunks)
        declare(names)
        monitored.now += HOUR
        with use_context(monitored.context):
            watch = harness.Stopwatch()
            inspected = [seen for chunk in chunks for seen in inspect_models(chunk)]
            cpu_s, wall_s = watch.cpu_s, watch.wall_s
    kinds = {(monitor.monitor, monitor.cohorts) for seen in inspected for monitor in seen.watched}
    if kinds != {("quality", 1), ("performance", 1), ("drift", 1)}:
        raise RuntimeError(f"each monitor of each model judges one hour, but these did: {sorted(kinds)}")
    what = f"CPU s for an hour of {models:,} models x 50 features, {wall_s:.1f} s in one process"
    bound(what, cpu_s, most=600 * models / 1_000)


def _make_alike(monitored: MonitoredStore, chunks: list[list[str]]) -> None:
    """Make models with logs of their own for the last hour and the one to come, and the memory of the one that is warm."""
    store, snapshot = monitored.context.store, monitored.training_set()
    parts = ("state/quality", "state/performance", "state/drift", "reference/1")
    memory = {part: store.get(f"monitoring/{_WARM}/{part}.json") for part in parts}
    for chunk in chunks:
        labels = []
        for name in chunk:
            monitored.register(name, snapshot)
            labels.append(monitored.serve(name, monitored.now - HOUR, hours=2, rows_an_hour=ROWS_AN_HOUR))
            for part, data in memory.items():
                store.put(f"monitoring/{name}/{part}.json", data)
        monitored.label(pa.concat_tables(labels))


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
        numeric, words = (np.stack([features[name].to_numpy() for name in names], axis=1) for names in NAMES)
        step_us = 3_600_000_000 / rows_an_hour
        at_us = int(start.timestamp()) * 1_000_000 + (np.arange(count) * step_us).astype(np.int64)
        p = 1 / (1 + np.exp(-numeric[:, 0]))
        ids, outputs = [f"{model}-{one}" for one in at_us.tolist()], p[:, None].astype(np.float32)
        rows = logged_rows(
            model, at_us, numeric.astype(np.float32), outputs, ids=ids, categorical=words.astype(str)
        )
        Table(self.context.store, predictions_table(model)).append(rows, partition_by=["day"])
        label = (self.rng.random(count) < p).astype(np.float64)
        times = pa.array(at_us).cast(_TIME)
        return pa.table(
            [pa.array(ids), pa.array(label), times, times, rows["day"].combine_chunks()], schema=LABELS
        )

    def label(self, labels: pa.Table) -> None:
        """Log labels of one or many models."""
        Table(self.context.store, LABELS_TABLE).append(labels, partition_by=["day"])


def declare(models: Sequence[str]) -> None:
    """Declare a project of these models, each with the three monitors every hour, and the default policy of retraining."""
    numeric, categorical = map(tuple, NAMES)
    definitions = [
        ModelDefinition(
            name=model, service="none", entities="none", label="label", numeric=numeric,
            categorical=categorical, monitors=(QUALITY, PERFORMANCE, DRIFT), inspect="0 * * * *",
        )
        for model in models
    ]  # fmt: skip
    sys.modules[PROJECT] = module = ModuleType(PROJECT)
    module.__dict__.update(FEATURES=(), MODELS=definitions)


def feature_rows(rng: np.random.Generator, rows: int) -> pa.Table:
    """Make rows of independent features."""
    numbers: dict[str, object] = {name: rng.standard_normal(rows) for name in NAMES[0]}
    words = {name: WORDS[rng.integers(0, len(WORDS), rows)] for name in NAMES[1]}
    return pa.table(numbers | words)
