"""Two models behind Serve and HAProxy, with an unmodified tritonclient: promotions, a broken version, a killed replica."""

from __future__ import annotations

import contextlib
import json
import os
import signal
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

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton

from tests.otlp_receiver import Receiver, Span, receiving
from tests.ports import free_port
from tests.ray_apps.served_gateway import gateway_of
from tests.waiting import until
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.prediction_log import default_wal_root, drain, predictions
from toque.functions.runtime.changes import Announcer
from toque.ray_apps.cli.main import main as cli_main
from toque.registry import Access, Registry, Signature, TensorSpec, open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]

SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
    example={"x": [[1.0, 2.0, 3.0]]},
)


class Scale(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True) * self.factor


@dataclass
class Platform:
    folder: Path
    port: int
    grpc_port: int
    registry: Registry
    token: str
    redis_url: str
    collector: Receiver | None = None
    process: subprocess.Popen[bytes] | None = None
    made: int = 0

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def version(self, model: str, factor: float, *, broken: bool = False) -> int:
        self.made += 1
        path = self.folder / f"artifact-{self.made}"
        path.mkdir()
        if broken:
            (path / "model.pt2").write_bytes(b"no program")
        else:
            save_program(export_program(Scale(factor), {"x": torch.rand(2, 3)}), path / "model.pt2")
        return self.registry.create_version(model, path=path, signature=SIGNATURE).version

    def infer(self, client: triton.InferenceServerClient, model: str, *, binary: bool = True) -> Any:
        tensor = triton.InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 3), np.float32), binary_data=binary)
        output = triton.InferRequestedOutput("y", binary_data=binary)
        return client.infer(model, [tensor], outputs=[output], headers=self.headers)


PLACES = {"shared": ["one", "two"], "dedicated": ["--dedicated", "one", "--dedicated", "two"]}


@pytest.fixture(scope="module", params=["shared", pytest.param("dedicated", marks=pytest.mark.proof)])
def platform(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Platform]:
    from tests.redis_server import RedisServer

    folder = tmp_path_factory.mktemp("platform")
    (folder / "redis").mkdir()
    redis = RedisServer(folder / "redis")
    redis.start()
    with receiving() as collector:
        yield from serving(folder, redis, collector, PLACES[request.param])


def serving(folder: Path, redis: Any, collector: Receiver, places: list[str]) -> Iterator[Platform]:
    """Serve both models until the test is over; replicas send the spans of what their callers trace to a collector."""
    store = open_store(f"file://{folder}/store", announce=Announcer(redis.url))
    made = Platform(
        folder=folder,
        port=free_port(),
        grpc_port=free_port(),
        registry=Registry(store, actor="ada"),
        token=Access(store, actor="ada").create_token("test", "predictor"),
        redis_url=redis.url,
        collector=collector,
    )
    for model, factor in (("one", 1.0), ("two", 2.0)):
        made.registry.create_model(model)
        made.registry.promote(model, made.version(model, factor))
    traced = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "TOQUE_TRACE_SHARE": "0",
        "TOQUE_TRACE_SLOW_MS": "60000",
    }
    environment = os.environ | {"TOQUE_STORE": store.url, "TOQUE_REDIS_URL": redis.url} | traced
    ports = ["--port", str(made.port), "--grpc-port", str(made.grpc_port)]
    command = [sys.executable, "-m", "toque.ray_apps.predictor", *ports, *places]
    with (folder / "log").open("wb") as log:
        made.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        until(
            lambda: b"\nready\n" in (folder / "log").read_bytes() or made.process.poll() is not None,
            within_s=180,
        )
        assert made.process.poll() is None, (folder / "log").read_text()[-3000:]
        yield made
    finally:
        made.process.send_signal(signal.SIGTERM)
        made.process.wait(90)
        redis.kill()


@dataclass
class Callers:
    """Threads that ask all the time, and what they were told."""

    platform: Platform
    answers: list[tuple[str, str]] = field(default_factory=list)  # prediction id, version
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self, count: int = 2) -> Iterator[Callers]:
        threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _ask(self) -> None:
        url = f"http://127.0.0.1:{self.platform.port}/v2/models/one/infer"
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}]}
        with httpx.Client(headers=self.platform.headers, timeout=60) as client:
            while not self._stop.is_set():
                try:
                    response = client.post(url, json=body)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if response.status_code == 200:
                    answer = response.json()
                    self.answers.append((answer["id"], answer["model_version"]))
                else:
                    self.failures.append(f"{response.status_code} {response.text[:200]}")


@pytest.mark.parametrize("binary", [True, False])
def test_an_unmodified_tritonclient_reaches_each_model_by_its_name(platform: Platform, *, binary: bool):
    client = triton.InferenceServerClient(f"127.0.0.1:{platform.port}")
    for model, want in (("one", 3.0), ("two", 6.0)):
        assert client.is_model_ready(model, headers=platform.headers)
        assert client.get_model_metadata(model, headers=platform.headers)["inputs"][0]["shape"] == [-1, 3]
        result = platform.infer(client, model, binary=binary)
        assert result.as_numpy("y").tolist() == [[want]]
        assert result.get_response()["model_name"] == model
    client.close()


def test_an_unmodified_grpc_client_reaches_each_model_by_its_name(platform: Platform):
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{platform.grpc_port}") as client:
        login = {"authorization": f"Bearer {platform.token}"}
        for model, want in (("one", 3.0), ("two", 6.0)):
            assert client.is_model_ready(model, headers=login)
            tensor = triton_grpc.InferInput("x", [1, 3], "FP32")
            tensor.set_data_from_numpy(np.ones((1, 3), np.float32))
            answer = client.infer(model, [tensor], headers=login)
            assert answer.as_numpy("y").tolist() == [[want]]
            assert answer.get_response().model_name == model


def test_a_traced_request_is_followed_from_the_door_to_its_label(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trace_id, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    sent = {"traceparent": f"00-{trace_id}-{caller}-01"}
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}]}
    url = f"http://127.0.0.1:{platform.port}/v2/models/one/infer"
    answer = httpx.post(url, json=body, headers=platform.headers | sent, timeout=60)
    assert answer.headers["traceparent"] == sent["traceparent"]
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{platform.grpc_port}") as client:
        tensor = triton_grpc.InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 3), np.float32))
        login = {"authorization": f"Bearer {platform.token}"}
        client.infer("two", [tensor], headers=login | {"traceparent": f"00-{'ab' * 16}-{caller}-01"})

    def spans(trace_id: str) -> dict[str, Span]:
        return {each.name: each for each in platform.collector.of_trace(trace_id)}

    until(lambda: {"POST /v2/models/one/infer", "log"} <= set(spans(trace_id)))
    until(lambda: {"gRPC ModelInfer", "POST /v2/models/two/infer"} <= set(spans("ab" * 16)))
    by_http, by_grpc = spans(trace_id), spans("ab" * 16)
    door = by_http["POST /v2/models/one/infer"]
    assert (door.parent_id, door.service, door.kind) == (caller, "toque-predictor", 2)
    assert {"token", "read", "model", "log", "encode"} <= set(by_http)
    assert by_grpc["gRPC ModelInfer"].parent_id == caller
    assert by_grpc["POST /v2/models/two/infer"].parent_id == by_grpc["gRPC ModelInfer"].span_id
    access = Access(platform.registry.store, actor="ada")
    labeller, viewer = access.create_token("labels", "labeller"), access.create_token("looks", "viewer")
    with gateway_of(platform.registry.store.url, platform.redis_url) as gateway:
        label = {"prediction_id": answer.json()["id"], "label": 1}
        login = {"Authorization": f"Bearer {labeller}"}
        httpx.post(f"{gateway}/feedback", json=[label], headers=login, timeout=60).raise_for_status()
        monkeypatch.setenv("TOQUE_URL", gateway)
        monkeypatch.setenv("TOQUE_TOKEN", viewer)

        def found() -> Any:
            drain(platform.registry.store, platform.redis_url)
            code = cli_main(["trace", trace_id, "--model", "one", "-o", "json"])
            printed = capsys.readouterr().out
            return json.loads(printed)["predictions"] if code == 0 else []

        until(lambda: any(row["label"] is not None for row in found()))
        (row,) = found()
        assert (row["label"], row["kept"], row["span_id"]) == (1.0, "caller", door.span_id)
        assert [each["name"] for each in row["stages"]] == ["token", "read", "model"]
        assert cli_main(["trace", answer.json()["id"], "-o", "wide"]) == 0
        assert trace_id in capsys.readouterr().out


def test_promotions_rollbacks_and_a_broken_version_fail_no_request(platform: Platform):
    with Callers(platform).running() as callers:
        until(lambda: len(callers.answers) > 20)
        for _ in range(3):
            number = str(platform.version("one", 5.0))
            platform.registry.promote("one", int(number))
            begin = time.monotonic()
            until(lambda number=number: callers.answers[-1][1] == number)
            loaded_after_s = time.monotonic() - begin
            platform.registry.rollback("one", "champion")
            until(lambda number=number: callers.answers[-1][1] != number)
            assert loaded_after_s < 30
        broken = platform.version("one", 0.0, broken=True)
        platform.registry.promote("one", broken)
        seen = len(callers.answers)
        until(lambda: str(broken) in _status(platform)["failures"])
        until(lambda: len(callers.answers) > seen + 50)
        platform.registry.rollback("one", "champion")
    assert callers.failures == []
    assert str(broken) not in {version for _, version in callers.answers}


def test_a_killed_replica_costs_only_its_own_requests_and_no_logged_prediction(platform: Platform):
    with Callers(platform).running() as callers:
        until(lambda: len(callers.answers) > 300)
        (replica,) = _replicas("predict-one")
        os.kill(replica, signal.SIGKILL)
        seen = len(callers.answers)
        until(lambda: len(callers.answers) > seen + 300, within_s=120)
    store = platform.registry.store
    drain(store, platform.redis_url, wal_root=default_wal_root(store.url))
    answered = [name for name, _ in callers.answers]

    def missing() -> set[str]:  # the living replica's last records are on their way
        drain(store, platform.redis_url)
        now = datetime.now(UTC)
        rows = predictions(store, "one", now - timedelta(hours=1), now + timedelta(hours=1))
        counts = Counter(rows["prediction_id"].to_pylist())
        assert max(counts.values()) == 1
        return set(answered) - counts.keys()

    until(lambda: not missing())


def _status(platform: Platform) -> Any:
    url = f"http://127.0.0.1:{platform.port}/v2/models/one/status"
    return httpx.get(url, headers=platform.headers).json()


def _replicas(name: str) -> list[int]:
    """Processes that call themselves a replica of a deployment, below this test's own platform."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and name.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found
