"""Store of a size at which lists must be paged: 10,000 runs, 1,000 versions, a million predictions, 100,000 invocations.

Written once into a folder without waiting for the disk, and found again there: models and predictions by the platform's own
code, runs and invocations as its code leaves them. Times lie in the 30 days before it was written.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from toque.functions import function
from toque.functions.prediction_log import predictions_table
from toque.functions.prediction_log.records import PREDICTIONS
from toque.functions.runtime.durable.ledger import Ledger, invocation_id
from toque.functions.runtime.durable.queue import CHECKPOINT, index
from toque.functions.runtime.durable.values import put_value
from toque.registry import ModelPolicy, ObjectStore, Registry, Table, open_store
from toque.registry.journal.entry import NO_DIGEST, Entry
from toque.registry.runs.record import Point, RunRecord, Segment, with_segments
from toque.registry.store import folder as folder_store

DAYS = 30
MODEL = "late-flights"
_DONE = "written"
_USAGE = {"run_s": 2.0, "cpu_s": 1.5, "gpu_s": 0.0, "peak_memory_bytes": 1 << 20, "store_reads": 3, "store_writes": 1}  # fmt: skip
_FAILURE = {"type": "ConnectionError", "message": "weather.example answered 503", "traceback": "…"}


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


class _Clock:
    """A clock that goes through the last days in as many steps as there are things to write."""

    def __init__(self, steps: int) -> None:
        self._start = datetime.now(UTC) - timedelta(days=DAYS)
        self._step = timedelta(days=DAYS) / (steps + 1)
        self.taken = 0

    def __call__(self) -> datetime:
        return self._start + self.taken * self._step


def filled_store(folder: Path, size: Size, say: Callable[[str], None] = print) -> ObjectStore:
    """Open the store in a folder, and write it if it is not there yet; one that was written in part is written anew elsewhere."""
    store = open_store(f"file://{folder}")
    if store.find(_DONE) is not None:
        return store
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds a store that was written in part; delete it, or name another folder"
        )
    with _no_wait_for_disk():
        for write in (_write_models, _write_predictions, _write_runs, _write_invocations):
            start = time.perf_counter()
            write(store, size)
            say(f"{write.__name__.removeprefix('_write_')}: {time.perf_counter() - start:.0f} s")
        store.put(_DONE, repr(size).encode())
    return store


@contextmanager
def _no_wait_for_disk() -> Iterator[None]:
    """Write without syncing files and folders: a store that is half written is thrown away anyway."""
    with mock.patch.object(os, "fsync"), mock.patch.object(folder_store, "_sync_folders"):
        yield


def _write_models(store: ObjectStore, size: Size) -> None:
    """Write one model with most of the versions, and many with one, of which every third waits for an approver."""
    clock = _Clock(size.versions)
    registry = Registry(store, actor="trainer", clock=clock)
    policy = ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",), approvals=1)
    others = [f"model-{number:04d}" for number in range(min(size.models, size.versions) - 1)]
    with _files() as files:
        registry.create_model(MODEL, policy=policy)
        for number in range(1, size.versions - len(others) + 1):
            clock.taken += 1
            registry.create_version(MODEL, files, metrics={"log_loss": 0.5 - number / 10_000, "auc": 0.7})
            registry.record_gate(MODEL, number, "offline", number % 5 != 0)
        registry.as_actor("ada").approve(MODEL, 1)
        registry.promote(MODEL, 1, reason="first")
        for at, name in enumerate(others):
            registry.create_model(name, policy=policy)
            registry.create_version(name, files, metrics={"log_loss": 0.5})
            registry.record_gate(name, 1, "offline", at % 3 == 0)


@contextmanager
def _files() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "weights.bin").write_bytes(bytes(256))
        yield Path(folder)


def _write_predictions(store: ObjectStore, size: Size) -> None:
    """Log predictions of one model, evenly over the days."""
    table, now = Table(store, predictions_table(MODEL)), datetime.now(UTC)
    each = -(-size.predictions // DAYS)
    for day in range(DAYS):
        end = (now - timedelta(days=day)).replace(hour=23, minute=59)
        start = end.replace(hour=0, minute=0)
        span = (min(end, now) - start).total_seconds()
        micros = (np.sort(np.random.default_rng(day).uniform(0, span, each)) * 1e6).astype(np.int64)
        at = pa.array(micros + int(start.timestamp() * 1e6)).cast(pa.timestamp("us", "UTC"))
        made = {
            "prediction_id": [f"{day:02d}-{number:07d}" for number in range(each)],
            "model": [MODEL] * each,
            "version": np.ones(each, dtype=np.int64),
            "arm": ["champion"] * each,
            "shadow": np.zeros(each, dtype=bool),
            "unit": [f"N{number % 4_000}" for number in range(each)],
            "predicted_at": at,
            "latency_ms": np.full(each, 1.75),
            "numeric": [[1_400.0, 17.0, 12.5]] * each,
            "categorical": pa.nulls(each, PREDICTIONS.field("categorical").type),
            "outputs": [[0.25]] * each,
            "missing": [[]] * each,
            "entities": ["{}"] * each,
            "day": [f"{start:%Y-%m-%d}"] * each,
        }
        columns = [pa.array(made[field.name]).cast(field.type) for field in PREDICTIONS]
        table.append(pa.Table.from_arrays(columns, schema=PREDICTIONS), partition_by=["day"])


def _write_runs(store: ObjectStore, size: Size) -> None:
    """Log runs of some experiments, each with four metrics; every hundredth failed. Their indexes get a snapshot at the end."""
    clock = _Clock(size.runs)
    indexes = [
        Chain(store, f"experiments/experiment-{number:02d}/journal", actor="sweep")
        for number in range(size.experiments)
    ]
    for number in range(size.runs):
        clock.taken += 1
        record = _run(number, f"experiment-{number % size.experiments:02d}", clock())
        write_object(store, f"runs/{record.id}/run.json", json.dumps(record.to_json()).encode())
        index = indexes[number % size.experiments]
        index.append({"kind": "started", "run": record.brief()}, record.started_at)
        segment = Segment(points=_points(0.3 / (1 + number % 40), record.started_at))
        write_object(store, f"runs/{record.id}/segments/00000000.json", segment.to_bytes(nonce=record.id))
        ended = replace(
            with_segments(record, [segment]),
            status="FAILED" if number % 100 == 0 else "FINISHED",
            ended_at=record.started_at,
        )
        index.append({"kind": "ended", "run": ended.brief()}, record.started_at)
    registry = Registry(store, actor="sweep", clock=clock)
    for number in range(size.experiments):  # one more run as the platform writes it, which makes the snapshot
        record = _run(size.runs + number, f"experiment-{number:02d}", clock())
        registry.begin(record)
        registry.end(record, "FINISHED")


def _run(number: int, experiment: str, at: datetime) -> RunRecord:
    rate = 0.3 / (1 + number % 40)
    return RunRecord(
        id=f"{int(at.timestamp() * 1000):012x}{number:020x}",
        experiment=experiment,
        name=f"trial-{number}",
        status="RUNNING",
        actor="sweep",
        started_at=at,
        params={"lr": f"{rate:.4g}", "width": str(16 * (1 + number % 3)), "optimizer": "adam"},
        facts={"remote": True},
    )


def _points(rate: float, at: datetime) -> list[tuple[str, Point]]:
    names = ("valid_loss", "train_loss", "auc", "ece")
    return [
        (name, Point(step, 0.4 + 0.3 * math.exp(-rate * step), at)) for step in range(20) for name in names
    ]


def _write_invocations(store: ObjectStore, size: Size) -> None:
    """Write invocations as executors leave them: nearly all succeeded, every thousandth is dead.

    The first is submitted by the platform's ledger; the others are like it, but for key, model and time. At the end stands the
    checkpoint of an executor that has read all of them.
    """
    clock = _Clock(size.invocations)
    ledger = Ledger(store, actor="ada", clock=clock)
    first = ledger.submit(count_flights, {"model": "model-0000", "day": "2026-02-28"}, key="0")
    submitted, result = ledger.first_entry(first).body, put_value(store, 3)
    queue = Chain(store, f"queues/{next(iter(index(store, actor='ada').refresh()))}", actor="ada")
    for number in range(size.invocations):
        clock.taken += 1
        at, made = clock(), invocation_id(count_flights.name, str(number))
        chain = Chain(store, f"invocations/{made}", actor="ada")
        arguments = {"json": {"model": f"model-{number % 20:04d}", "day": "2026-02-28"}}
        chain.append(submitted | {"key": str(number), "arguments": arguments}, at)
        queue.append({"invocation": made}, at)
        digest = count_flights.digest
        chain.append({"kind": "started", "worker": "w", "node": "10.0.0.1", "lease_s": 15.0, "digest": digest}, at)  # fmt: skip
        is_dead = number % 1_000 == 0
        ended = {"kind": "dead", "failure": _FAILURE} if is_dead else {"kind": "succeeded", "result": result}
        chain.append(ended | {"usage": _USAGE}, at)
        if is_dead:
            ledger.dead_letters.add(made)
    read = {queue.name: queue.written}
    store.put(CHECKPOINT, json.dumps({"positions": read, "open": {}}).encode())


class Chain:
    """Journal of a new store, written without reading it: the same entries as `Journal.append`, at a tenth of the time.

    Of those that carry earlier ones only what the platform writes later does.
    """

    def __init__(self, store: ObjectStore, path: str, *, actor: str) -> None:
        self._store, self._path, self._actor = store, path, actor
        self._number, self._digest = 0, NO_DIGEST

    @property
    def name(self) -> str:
        """Last part of the journal's path."""
        return self._path.rpartition("/")[2]

    @property
    def written(self) -> int:
        """Number of entries so far."""
        return self._number

    def append(self, body: dict[str, Any], at: datetime) -> None:
        """Write the next entry, over one that is there."""
        txn = f"{self._number:032x}"
        entry = Entry(self._number, body, self._actor, at, txn, self._digest).with_digest()
        write_object(self._store, f"{self._path}/entries/{self._number:08d}.json", entry.to_bytes())
        self._number, self._digest = self._number + 1, entry.digest


def write_object(store: ObjectStore, key: str, data: bytes) -> None:
    """Write an object of a store in a folder that nobody reads yet."""
    path = f"{store.url.removeprefix('file://')}/{key}"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120  # a million times
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(file, data)
    os.close(file)
