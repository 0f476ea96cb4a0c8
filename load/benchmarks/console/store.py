"""Store of a size at which lists must be paged: 10,000 runs, 1,000 versions, a million predictions, 100,000 invocations.

Written once into a folder without waiting for the disk, and found again there: models and predictions by the platform's own
code, runs and invocations as its code leaves them. Times lie in the 30 days before it was written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

from toque.functions import function
from toque.functions.prediction_log import predictions_table
from toque.functions.runtime.durable.ledger import Ledger, invocation_id
from toque.functions.runtime.durable.queue import CHECKPOINT, index
from toque.functions.runtime.durable.values import put_value
from toque.load.benchmarks.harness import NotPossible, say, seconds_of, temporary
from toque.load.benchmarks.prep.logged import logged_rows
from toque.registry import ModelPolicy, ObjectStore, Registry, Table, open_store
from toque.registry.journal.entry import NO_DIGEST, Entry
from toque.registry.runs.record import Point, RunRecord, Segment, with_segments
from toque.registry.store import folder as folder_store

DAYS, MODEL = 30, "late-flights"
_DONE = "written"
_USAGE = {
    "run_s": 2.0,
    "cpu_s": 1.5,
    "gpu_s": 0.0,
    "peak_memory_bytes": 1 << 20,
    "store_reads": 3,
    "store_writes": 1,
}
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
    numeric, outputs = (
        np.array([[1_400.0, 17.0, 12.5]] * count, np.float32),
        np.full((count, 1), 0.25, np.float32),
    )
    units = [f"N{number % 4_000}" for number in range(count)]
    for day in range(DAYS):
        start = (now - timedelta(days=day)).replace(hour=0, minute=0)
        span_s = (min(start + timedelta(days=1, minutes=-1), now) - start).total_seconds()
        micros = (np.sort(np.random.default_rng(day).uniform(0, span_s, count)) * 1e6).astype(np.int64)
        ids, at_us = (
            [f"{day:02d}-{number:07d}" for number in range(count)],
            micros + int(start.timestamp() * 1e6),
        )
        rows = logged_rows(MODEL, at_us, numeric, outputs, ids=ids, units=units)
        table.append(rows, partition_by=["day"])


def _write_runs(store: ObjectStore, size: Size) -> None:
    """Log runs of some experiments, each with four metrics; every hundredth failed. Their indexes get a snapshot at the end."""
    clock = _Clock(size.runs)
    names = [f"experiment-{number:02d}" for number in range(size.experiments)]
    indexes = {name: Chain(store, f"experiments/{name}/journal", actor="sweep") for name in names}
    for number in clock.steps(size.runs):
        record = _run(number, names[number % len(names)], clock())
        segment = Segment(points=_points(0.3 / (1 + number % 40), record.started_at))
        status: Literal["FAILED", "FINISHED"] = "FAILED" if number % 100 == 0 else "FINISHED"
        ended = replace(with_segments(record, [segment]), status=status, ended_at=record.started_at)
        write_object(store, f"runs/{record.id}/run.json", json.dumps(record.to_json()).encode())
        write_object(store, f"runs/{record.id}/segments/00000000.json", segment.to_bytes(nonce=record.id))
        for kind, brief in (("started", record.brief()), ("ended", ended.brief())):
            indexes[record.experiment].append({"kind": kind, "run": brief}, record.started_at)
    registry = Registry(store, actor="sweep", clock=clock)
    for number, name in enumerate(names):  # one more run as the platform writes it, which makes the snapshot
        record = _run(size.runs + number, name, clock())
        registry.begin(record)
        registry.end(record, "FINISHED")


def _run(number: int, experiment: str, started_at: datetime) -> RunRecord:
    return RunRecord(
        id=f"{int(started_at.timestamp() * 1000):012x}{number:020x}",
        experiment=experiment,
        name=f"trial-{number}",
        status="RUNNING",
        actor="sweep",
        started_at=started_at,
        params={
            "lr": f"{0.3 / (1 + number % 40):.4g}",
            "width": str(16 * (1 + number % 3)),
            "optimizer": "adam",
        },
        facts={"remote": True},
    )


def _points(rate: float, logged_at: datetime) -> list[tuple[str, Point]]:
    names = ("valid_loss", "train_loss", "auc", "ece")
    values = [0.4 + 0.3 * math.exp(-rate * step) for step in range(20)]
    return [(name, Point(step, value, logged_at)) for step, value in enumerate(values) for name in names]


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
    started = {
        "kind": "started",
        "worker": "w",
        "node": "10.0.0.1",
        "lease_s": 15.0,
        "digest": count_flights.digest,
    }
    for number in clock.steps(size.invocations):
        now, invocation = clock(), invocation_id(count_flights.name, str(number))
        arguments = {"json": {"model": f"model-{number % 20:04d}", "day": "2026-02-28"}}
        ended = (
            {"kind": "succeeded", "result": result}
            if number % 1_000
            else {"kind": "dead", "failure": _FAILURE}
        )
        queue.append({"invocation": invocation}, now)
        chain = Chain(store, f"invocations/{invocation}", actor="ada")
        for body in (
            submitted | {"key": str(number), "arguments": arguments},
            started,
            ended | {"usage": _USAGE},
        ):
            chain.append(body, now)
        if number % 1_000 == 0:
            ledger.dead_letters.add(invocation)
    positions = {queue.path.rpartition("/")[2]: queue.written}
    store.put(CHECKPOINT, json.dumps({"positions": positions, "open": {}}).encode())


class Chain:
    """Journal of a new store, written without reading it: the same entries as `Journal.append`, at a tenth of the time.

    Of those that carry earlier ones only what the platform writes later does. written: number of entries so far.
    """

    def __init__(self, store: ObjectStore, path: str, *, actor: str) -> None:
        self.path, self.written = path, 0
        self._store, self._actor, self._digest = store, actor, NO_DIGEST

    def append(self, body: dict[str, Any], written_at: datetime) -> None:
        """Write the next entry, over one that is there."""
        txn = f"{self.written:032x}"
        entry = Entry(self.written, body, self._actor, written_at, txn, self._digest).with_digest()
        write_object(self._store, f"{self.path}/entries/{self.written:08d}.json", entry.to_bytes())
        self.written, self._digest = self.written + 1, entry.digest


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
