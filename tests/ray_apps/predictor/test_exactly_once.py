"""kill -9 of replicas, Redis and the drain while 50,000 predictions are answered and labelled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.functions.prediction_log.test_kills import DRAINER, Child
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.prediction_log import (
    Label,
    LogWriter,
    default_wal_root,
    drain,
    encode_labels,
    outcomes,
    predictions,
)
from toque.functions.runtime.changes import Announcer
from toque.ray_apps.predictor.grpc import HttpModels
from toque.ray_apps.predictor.grpc.call import UnreachableError
from toque.registry import Access, Registry, Signature, TensorSpec, open_store
from toque.registry.store import ObjectStore

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]

PREDICTIONS, ROWS = 50_000, 5
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
    example={"x": [[1.0, 2.0, 3.0]]},
)


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True)


@dataclass
class Replica:
    """A predictor in a process of its own, which is started again when it was killed."""

    port: int
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "toque.ray_apps.predictor",
            "--standalone",
            "--port",
            str(self.port),
            "one",
        ]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass
class Flow:
    """Requests of several rows to replicas in turns; labels for half of what was answered."""

    ports: list[int]
    token: str
    labels: LogWriter
    answered: set[str] = field(default_factory=set)
    labelled: set[str] = field(default_factory=set)

    async def run(self, callers: int = 8) -> None:
        ups = [HttpModels(f"http://127.0.0.1:{port}") for port in self.ports]
        numbers = itertools.count()
        await asyncio.gather(*(self._ask(ups, numbers) for _ in range(callers)))
        for up in ups:
            await up.close()

    async def _ask(self, ups: list[HttpModels], numbers: Iterator[int]) -> None:
        headers = {b"authorization": f"Bearer {self.token}".encode(), b"content-type": b"application/json"}
        tensor = {"name": "x", "datatype": "FP32", "shape": [ROWS, 3], "data": [1.0] * 3 * ROWS}
        while len(self.answered) < PREDICTIONS:
            number = next(numbers)
            name = f"r{number}"
            body = json.dumps({"id": name, "inputs": [tensor]}).encode()
            try:
                status, _, answer = await ups[number % len(ups)].request(
                    "POST", "/v2/models/one/infer", headers, body
                )
            except UnreachableError:
                await asyncio.sleep(0.05)  # the replica was killed; the other one goes on
                continue
            assert status == 200, answer
            rows = [f"{name}:{row}" for row in range(ROWS)]
            self.answered.update(rows)
            if number % 2:
                now = datetime.now(UTC)
                self.labels.append(encode_labels([Label(row, 1.0, now, now) for row in rows]))
                self.labelled.update(rows)  # acknowledged


def killer(
    flow: Flow, replicas: list[Replica], redis: Any, drain_arguments: list[Any], told: list[str]
) -> None:
    """Kill something at every twelfth of the way, in turns, and start it again."""
    rng = random.Random(11)
    drainer = Child(DRAINER, *drain_arguments)
    for step in range(1, 12):
        while len(flow.answered) < PREDICTIONS * step / 12:
            time.sleep(0.02)
        victim = ("a replica", "Redis", "the drain")[step % 3]
        told.append(victim)
        if victim == "a replica":
            replica = rng.choice(replicas)
            replica.kill()
            replica.start()
        elif victim == "Redis":
            redis.kill()
            time.sleep(rng.uniform(0.0, 1.0))
            redis.start()
        else:
            drainer.kill()
            drainer = Child(DRAINER, *drain_arguments)
    drainer.kill()


@contextlib.contextmanager
def running(replicas: list[Replica]) -> Iterator[None]:
    for replica in replicas:
        replica.start()
    try:
        yield
    finally:
        for replica in replicas:
            replica.kill()


def published(folder: Path, store: ObjectStore) -> str:
    """The model `one` with a champion; returns a token that may predict."""
    registry = Registry(store, actor="ada")
    (folder / "artifact").mkdir()
    save_program(export_program(Sum(), {"x": torch.rand(2, 3)}), folder / "artifact" / "model.pt2")
    registry.create_model("one")
    version = registry.create_version("one", path=folder / "artifact", signature=SIGNATURE)
    registry.promote("one", version.version)
    return Access(store, actor="ada").create_token("flow", "predictor")


def test_every_answered_prediction_is_in_the_table_once_and_every_acknowledged_label_joined(
    tmp_path: Path, redis_server: Any
):
    from tests.ports import free_port

    store = open_store(f"file://{tmp_path}/store", announce=Announcer(redis_server.url))
    token, wal_root = published(tmp_path, store), default_wal_root(store.url)
    environment = os.environ | {"TOQUE_STORE": store.url, "TOQUE_REDIS_URL": redis_server.url}
    replicas = [Replica(free_port(), environment, tmp_path / "log") for _ in range(2)]
    labels, killed = LogWriter(wal_root, "labels", redis_server.url), list[str]()
    flow = Flow([replica.port for replica in replicas], token, labels)
    with running(replicas):
        arguments = [store.url, redis_server.url, wal_root]
        thread = threading.Thread(target=killer, args=(flow, replicas, redis_server, arguments, killed))
        thread.start()
        asyncio.run(flow.run())
        thread.join()
    labels.close(timeout_s=60)
    for _ in range(2):  # what the dead left in their files, then what that brought into the stream
        drain(store, redis_server.url, wal_root=wal_root)
    since, until = datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1)
    counts = Counter(predictions(store, "one", since, until)["prediction_id"].to_pylist())
    joined = Counter(outcomes(store, "one", since, until)["prediction_id"].to_pylist())
    sys.stdout.write(
        f"{len(flow.answered)} answered, {len(flow.labelled)} labelled, {sum(counts.values())} rows, "
        f"{sum(joined.values())} joined; killed: {dict(Counter(killed))}\n"
    )
    assert Counter(killed) == {"a replica": 3, "Redis": 4, "the drain": 4}
    assert len(flow.answered) >= PREDICTIONS
    assert [name for name, count in counts.items() if count != 1] == []
    assert flow.answered - counts.keys() == set()
    assert flow.labelled - joined.keys() == set()
