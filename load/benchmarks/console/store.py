"""Store of a size at which lists must be paged: 10,000 runs, 1,000 versions, a million predictions, 100,000 invocations.

Written once into a folder by the platform's own code without waiting for the disk, and found again there. Times lie in the 30 days
before it was written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from toque.functions import function
from toque.functions.prediction_log import predictions_table
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.queue import CHECKPOINT, index
from toque.functions.runtime.durable.values import put_value
from toque.load.benchmarks.harness import NotPossible, say, seconds_of, temporary
from toque.load.benchmarks.prep.logged import logged_rows
from toque.registry import ModelPolicy, ObjectStore, Registry, Table, open_store
from toque.registry.store import folder as folder_store

DAYS, MODEL = 30, "late-flights"
_DONE = "written"
_USAGE: dict[str, Any] = {"run_s": 2.0, "cpu_s": 1.5, "gpu_s": 0.0, "peak_memory_bytes": 1 << 20}
_USAGE |= {"store_reads": 3, "store_writes": 1}
_FAILURE = {"type": "ConnectionError", "message": "weather.example answered 503", "traceback": "…"}
_POLICY = ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",), approvals=1)


@function(http=True, role="viewer")
def count_flights(model: str = "", day: str = "") -> int:
    """Count the flights of a day."""
    return len(model + day)


@dataclass(frozen=True, slots=True)
class Size:
    """Numbers of things in the store."""

    runs: int = 10_000
    experiments: int = 20
    versions: int = 1_000
    models: int = 100
    predictions: int = 1_000_000
    invocations: int = 100_000

    def share(self, part: float) -> Size:
        """Make a smaller store, for a test of the benchmark itself."""
        return Size(*(max(2, round(part * getattr(self, name))) for name in self.__slots__))


def filled_store(folder: Path, size: Size) -> ObjectStore:
    """Open the store in a folder, and write it if it is not there yet. Raises: NotPossible if it was written in part."""
    store = open_store(f"file://{folder}")
    if store.find(_DONE) is not None:
        return store
    if folder.exists() and any(folder.iterdir()):
        raise NotPossible(
            f"{folder} holds a store that was written in part; delete it, or name another folder"
        )
    # A store that is half written is thrown away anyway.
    with mock.patch.object(os, "fsync"), mock.patch.object(folder_store, "_sync_folders"):
        for write in (_write_models, _write_predictions, _write_runs, _write_invocations):
            seconds = seconds_of(partial(write, store, size))
            say(f"{write.__name__.removeprefix('_write_')}: {seconds:.0f} s")
        store.put(_DONE, repr(size).encode())
    return store


class _Clock:
    """A clock that goes through the last days in as many steps as there are things to write."""

    def __init__(self, steps: int) -> None:
        self._start, self._step = datetime.now(UTC) - timedelta(days=DAYS), timedelta(days=DAYS) / (steps + 1)
        self._taken = 0

    def __call__(self) -> datetime:
        return self._start + self._taken * self._step

    def steps(self, count: int) -> Iterator[int]:
        """Count, and let a step pass each time."""
        for number in range(count):
            self._taken += 1
            yield number


def _write_models(store: ObjectStore, size: Size) -> None:
    """Write one model with most of the versions, and many with one, of which every third waits for an approver."""
    clock = _Clock(size.versions)
    registry = Registry(store, actor="trainer", clock=clock)
    others = [f"model-{number:04d}" for number in range(min(size.models, size.versions) - 1)]
    with temporary() as files:
        (files / "weights.bin").write_bytes(bytes(256))
        registry.create_model(MODEL, policy=_POLICY)
        for number in clock.steps(size.versions - len(others)):
            registry.create_version(MODEL, files, metrics={"log_loss": 0.5 - number / 10_000, "auc": 0.7})
            registry.record_gate(MODEL, number + 1, "offline", (number + 1) % 5 != 0)
        registry.as_actor("ada").approve(MODEL, 1)
        registry.promote(MODEL, 1, reason="first")
        for number, name in enumerate(others):
            registry.create_model(name, policy=_POLICY)
            registry.create_version(name, files, metrics={"log_loss": 0.5})
            registry.record_gate(name, 1, "offline", number % 3 == 0)


def _write_predictions(store: ObjectStore, size: Size) -> None:
    """Log predictions of one model, evenly over the days."""
    table, now = Table(store, predictions_table(MODEL)), datetime.now(UTC)
    count = -(-size.predictions // DAYS)
    numeric = np.array([[1_400.0, 17.0, 12.5]] * count, np.float32)
    outputs = np.full((count, 1), 0.25, np.float32)
    units = [f"N{number % 4_000}" for number in range(count)]
    for day in range(DAYS):
        start = (now - timedelta(days=day)).replace(hour=0, minute=0)
        span_s = (min(start + timedelta(days=1, minutes=-1), now) - start).total_seconds()
        micros = (np.sort(np.random.default_rng(day).uniform(0, span_s, count)) * 1e6).astype(np.int64)
        ids = [f"{day:02d}-{number:07d}" for number in range(count)]
        at_us = micros + int(start.timestamp() * 1e6)
        rows = logged_rows(MODEL, at_us, numeric, outputs, ids=ids, units=units)
        table.append(rows, partition_by=["day"])


def _write_runs(store: ObjectStore, size: Size) -> None:
    """Log runs of some experiments, each with four metrics of twenty steps; every hundredth failed."""
    clock = _Clock(size.runs)
    registry = Registry(store, actor="sweep", clock=clock)
    for number in clock.steps(size.runs):
        rate, width = 0.3 / (1 + number % 40), 16 * (1 + number % 3)
        params = {"lr": f"{rate:.4g}", "width": width, "optimizer": "adam"}
        experiment = f"experiment-{number % size.experiments:02d}"
        run = registry.start_run(experiment, name=f"trial-{number}", params=params)
        for step in range(20):
            value = 0.4 + 0.3 * math.exp(-rate * step)
            run.log_metrics(dict.fromkeys(("valid_loss", "train_loss", "auc", "ece"), value), step)
        run.finish("FINISHED" if number % 100 else "FAILED")


def _write_invocations(store: ObjectStore, size: Size) -> None:
    """Write invocations as executors leave them: nearly all succeeded, every thousandth is dead.

    At the end stands the checkpoint of an executor that has read all of them.
    """
    clock = _Clock(size.invocations)
    ledger, result = Ledger(store, actor="ada", clock=clock), put_value(store, 3)
    started = {"worker": "w", "node": "10.0.0.1", "lease_s": 15.0, "digest": count_flights.digest}
    for number in clock.steps(size.invocations):
        arguments = {"model": f"model-{number % 20:04d}", "day": "2026-02-28"}
        invocation = ledger.submit(count_flights, arguments, key=str(number))
        ended: dict[str, Any] = {"kind": "succeeded", "result": result}
        if number % 1_000 == 0:
            ended = {"kind": "dead", "failure": _FAILURE}
            ledger.dead_letters.add(invocation)
        journal = ledger.journal(invocation)
        journal.append({"kind": "started", **started}, at=1)
        journal.append({**ended, "usage": _USAGE}, at=2)
    (queue,) = index(store, actor="ada").refresh()
    store.put(CHECKPOINT, json.dumps({"positions": {queue: size.invocations}, "open": {}}).encode())
