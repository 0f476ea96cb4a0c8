"""A model behind Serve and HAProxy that gets a second replica because its answers are late, and no third."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.ports import free_port
from tests.ray_apps.predictor.test_serve import _replicas
from tests.waiting import until
from toque.registry import Registry, Signature, TensorSpec, open_store

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(400)]

WITHIN_S = 120
HELD_S = 18.0
"""Longer than a number of replicas is held before it is judged, and than Serve looks back."""
CALLERS = 7
"""Fewer than the eight that a replica may have in flight: by them alone there is never a second one."""
PROJECT = """
import os, time
import numpy as np

class Sleepy:
    def load(self, folder): ...

    def predict(self, inputs):
        time.sleep({takes_s})  # what an answer takes: it is the work itself, nobody waits for something by it
        return dict(process=np.full((len(inputs["x"]), 1), os.getpid(), np.float64))

SCORERS = dict(sleepy=Sleepy)
"""
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
    outputs=[TensorSpec(name="process", datatype="FP64", shape=[-1, 1])],
    example={"x": [[1.0, 2.0, 3.0]]},
)
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}]}


class Case(NamedTuple):
    """A model by how long it takes, and where it is served: what is started, and what of it is scaled."""

    takes_s: float
    target_ms: int
    arguments: list[str]
    replicas: str


CASES = {
    "shared": Case(0.03, 40, ["sleepy"], "predict-sleepy"),
    "dedicated": Case(0.03, 40, ["--dedicated", "sleepy"], "version-sleepy@1"),
    "on the loop": Case(0.0012, 5, ["sleepy"], "predict-sleepy"),
}


@pytest.fixture(
    params=[name if name == "shared" else pytest.param(name, marks=pytest.mark.proof) for name in CASES]
)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def url(tmp_path: Path, case: Case) -> Iterator[str]:
    """URL of a model that answers a little later with the id of its process."""
    store = open_store(f"file://{tmp_path}/store")
    registry = Registry(store, actor="ada")
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "python_model.json").write_text('{"scorer": "sleepy"}')
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "sleepy_project.py").write_text(PROJECT.format(takes_s=case.takes_s))
    registry.create_model("sleepy")
    version = registry.create_version("sleepy", path=tmp_path / "artifact", signature=SIGNATURE)
    registry.promote("sleepy", version.version)
    port = free_port()
    environment = os.environ | {"TOQUE_STORE": store.url, "TOQUE_PROJECT": "sleepy_project"}
    paths = [str(tmp_path / "project"), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "toque.ray_apps.predictor", "--port", str(port), "--no-authentication"]
    command += ["--max-replicas", "4", "--target-latency-ms", str(case.target_ms), *case.arguments]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        until(lambda: b"\nready\n" in log.read_bytes() or process.poll() is not None, within_s=180)
        assert process.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}/v2/models/sleepy/infer"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)


def asked(client: httpx.Client, url: str) -> int:
    """The process that answers."""
    answer = client.post(url, json=BODY)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["outputs"][0]["data"][0])


def test_late_answers_bring_a_second_replica_and_answers_in_time_no_third(url: str, case: Case):
    seen: set[int] = set()
    enough = threading.Event()

    def call() -> None:
        with httpx.Client(timeout=60) as client:
            while not enough.is_set():
                seen.add(asked(client, url))

    with ThreadPoolExecutor(CALLERS) as threads:
        calls = [threads.submit(call) for _ in range(CALLERS)]
        try:
            until(lambda: len(seen) > 1 or any(call.done() for call in calls), within_s=WITHIN_S)
        finally:
            enough.set()
        for call in calls:
            call.result()
    assert len(seen) == 2
    started: set[int] = set()
    with httpx.Client(timeout=60) as client:
        held_until = time.monotonic() + HELD_S
        while time.monotonic() < held_until:
            seen.add(asked(client, url))
            started |= set(_replicas(case.replicas))
    assert len(seen) == 2
    assert len(started) == 2
