"""Benchmark of monitoring at scale: rows beyond memory, a day from its hours, a thousand models an hour.

Parts of `python -m toque.load.benchmarks.monitoring.bounds`; each prints its figures and says which bounds held.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data

from toque.functions.monitoring import (
    reference_of_dataset,
    sketch_dataset,
    watch_drift,
    watch_performance,
    watch_quality,
)
from toque.functions.monitoring.drift.monitor import DriftState, compare_window
from toque.functions.monitoring.drift.reference import Reference
from toque.functions.retraining.jobs import MODELS_PER_RUN, inspect_models
from toque.functions.runtime import use_context
from toque.functions.stats import TableSketch, drift
from toque.load.benchmarks.monitoring.fixtures import (
    DRIFT,
    HOUR,
    PERFORMANCE,
    QUALITY,
    START,
    MonitoredStore,
    declare,
)
from toque.load.benchmarks.prep.features_big import GIB, cluster, memory_watch
from toque.load.benchmarks.timing import timed
from toque.registry import ObjectStore

COLUMNS, BLOCK_ROWS, SHIFT_SD = 20, 250_000, 0.2
MOST_GIB, MOST_GROWTH, MOST_SLOWER = 3.0, 1.25, 1.2
OBJECT_STORE_BYTES = GIB // 2
WINDOW_HOURS, MOST_WINDOW_MS = 24, 50.0
ROWS_AN_HOUR, MOST_CPU_S_OF_A_THOUSAND = 1_000, 600.0


def say(held: bool, what: str) -> bool:  # noqa: FBT001 - a verdict
    """Print whether a bound held, and return it."""
    print(f"{'held  ' if held else 'BROKEN'} {what}", flush=True)
    return held


@dataclass(frozen=True, slots=True)
class SketchResult:
    """Result for one size of table. peak_bytes: of all processes together."""

    rows: int
    seconds: float
    peak_bytes: int
    drifted: tuple[str, ...]

    @property
    def ns_a_row(self) -> float:
        """Nanoseconds of wall time per row."""
        return self.seconds / self.rows * 1e9


def rows_beyond_memory(sizes: tuple[int, ...] = (10_000_000, 100_000_000)) -> list[bool]:
    """Benchmark drift of tables of twenty numbers over Ray Data, made block by block."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # else a page of plans between the figures
    with tempfile.TemporaryDirectory() as folder, cluster(folder, OBJECT_STORE_BYTES):
        reference = reference_of_dataset(_made(1_000_000, shift=0.0, seed=1))
        sketch_dataset(_made(1_000_000, shift=0.0, seed=2), reference)  # workers are there from now on
        found = [_sketched(rows, reference) for rows in sizes]
    for one in found:
        print(
            f"       drift of {one.rows:>11,} rows x {COLUMNS} columns over Ray Data: {one.seconds:7.1f} s, "
            f"{one.ns_a_row:6.0f} ns a row, peak of all processes {one.peak_bytes / GIB:.2f} GiB",
            flush=True,
        )
    small, large = found[0], found[-1]
    growth, slower = large.peak_bytes / small.peak_bytes, large.ns_a_row / small.ns_a_row
    return [
        say(large.peak_bytes <= MOST_GIB * GIB, f"peak of {large.rows:,} rows <= {MOST_GIB} GiB"),
        say(growth <= MOST_GROWTH, f"{growth:.2f} x the peak of {small.rows:,} rows, <= {MOST_GROWTH}"),
        say(slower <= MOST_SLOWER, f"{slower:.2f} x its time a row, <= {MOST_SLOWER}: linear in rows"),
        say(all(one.drifted == ("c0",) for one in found), "the one column that moved by .2 sd is named"),
    ]


def _sketched(rows: int, reference: TableSketch) -> SketchResult:
    with memory_watch() as peak:
        start = time.perf_counter()
        window = sketch_dataset(_made(rows, shift=SHIFT_SD, seed=3), reference)
        report = drift.compare(reference, window)
        took = time.perf_counter() - start
    if window.columns["c0"].rows != rows:
        raise RuntimeError(f"{window.columns['c0'].rows} rows were counted of {rows}")
    return SketchResult(rows, took, sum(peak.values()), report.drifted)


def _made(rows: int, *, shift: float, seed: int) -> ray.data.Dataset:
    """Make a Ray dataset of normal numbers, its first column shifted, block by block."""

    def make(block: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.float32]]:
        numbers = block["id"]
        rng = np.random.default_rng([seed, int(numbers[0])])
        columns = {
            f"c{place}": rng.standard_normal(len(numbers), dtype=np.float32) for place in range(COLUMNS)
        }
        columns["c0"] += np.float32(shift)
        return columns

    numbered = ray.data.range(rows, override_num_blocks=max(2, rows // BLOCK_ROWS))
    return numbered.map_batches(make, batch_size=None)


def day_from_hours() -> list[bool]:
    """Benchmark the drift of the last 24 hours of a model with fifty features, from the state in the store."""
    with tempfile.TemporaryDirectory() as folder:
        monitored = _warm(Path(folder))
        store = monitored.context.store
        took = timed(lambda: _window_judged(store), repeats=29)
        kept = sum(len(store.get(key)) for key in _WINDOW_KEYS)
    print(
        f"       {WINDOW_HOURS} hourly sketches x 50 features, p20/p50/p80 {took}, {kept / 2**20:.2f} MiB read"
    )
    return [
        say(
            took.p50_s * 1e3 <= MOST_WINDOW_MS,
            f"a {WINDOW_HOURS}-hour window <= {MOST_WINDOW_MS:.0f} ms a model",
        )
    ]


_WARM = "warm"
_WINDOW_KEYS = f"monitoring/{_WARM}/state/drift.json", f"monitoring/{_WARM}/reference/1.json"


def _window_judged(store: ObjectStore) -> None:
    """Read state and reference from the store, add the hours up, and compare."""
    state, reference = (store.get(key) for key in _WINDOW_KEYS)
    parsed = DriftState.model_validate_json(state)
    numbered = [(place, TableSketch.from_dict(one)) for place, one in enumerate(parsed.sketches)]
    if len(numbered) != WINDOW_HOURS:
        raise RuntimeError(f"{len(numbered)} hours are kept, not {WINDOW_HOURS}")
    compare_window(Reference.from_dict(json.loads(reference)), numbered, DRIFT)


def _warm(root: Path) -> MonitoredStore:
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


def an_hour_of_models(models: int = 1_000) -> list[bool]:
    """Benchmark one hourly inspection of so many models with fifty features, a thousand logged rows each: CPU of everything.

    Each model has a registry entry, a log and labels of its own. What its monitors remember of the day before is what those
    of one model remember that was watched for 26 hours: that is the same for all, and only prepares the hour that is timed.
    """
    names = [f"model-{place:04d}" for place in range(models)]
    with tempfile.TemporaryDirectory() as folder:
        monitored = _warm(Path(folder))
        _alike(monitored, names)
        declare(names)
        monitored.now += HOUR
        with use_context(monitored.context):
            cpu, wall, kinds = _cpu_s(), time.perf_counter(), set()
            for at in range(0, models, MODELS_PER_RUN):
                for seen in inspect_models(names[at : at + MODELS_PER_RUN]):
                    kinds |= {(one.monitor, one.cohorts) for one in seen.watched}
            cpu, wall = _cpu_s() - cpu, time.perf_counter() - wall
    if kinds != {("quality", 1), ("performance", 1), ("drift", 1)}:
        raise RuntimeError(f"each monitor of each model judges one hour, but these did: {sorted(kinds)}")
    print(
        f"       {models:,} models x 50 features, an hour: {cpu:.1f} CPU s, {wall:.1f} s in one process",
        flush=True,
    )
    bound = MOST_CPU_S_OF_A_THOUSAND * models / 1_000
    return [say(cpu <= bound, f"{models:,} models an hour <= {bound:.0f} CPU s")]


def _alike(monitored: MonitoredStore, names: list[str]) -> None:
    """Make models with logs of their own for the last hour and the one to come, and the memory of the one that is warm."""
    store, snapshot = monitored.context.store, monitored.training_set()
    kept = {
        f"{part}.json": store.get(f"monitoring/{_WARM}/{part}.json")
        for part in ("state/quality", "state/performance", "state/drift", "reference/1")
    }
    labels: list[pa.Table] = []
    for name in names:
        monitored.register(name, snapshot)
        labels.append(monitored.serve(name, monitored.now - HOUR, hours=2, rows_an_hour=ROWS_AN_HOUR))
        for part, data in kept.items():
            store.put(f"monitoring/{name}/{part}", data)
        if len(labels) == MODELS_PER_RUN:
            monitored.label(pa.concat_tables(labels))
            labels = []
    if labels:
        monitored.label(pa.concat_tables(labels))


def _cpu_s() -> float:
    """Read the CPU seconds of this process, its threads, and its ended children."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
