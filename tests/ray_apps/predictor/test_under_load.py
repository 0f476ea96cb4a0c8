"""Under constant load on Serve: what promotions, deploys, kills and absences cost, in failed requests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.redis_server import RedisServer
from tests.waiting import until
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.runtime.changes import Announcer
from toque.load.scenarios.plan import plan_of
from toque.load.scenarios.scenario import Scenario, Steady
from toque.load.scenarios.sending.processes import start_sending
from toque.load.scenarios.target import Target
from toque.registry import Access, Registry, Signature, TensorSpec, open_store

pytestmark = [pytest.mark.proof, pytest.mark.ray, pytest.mark.timeout(1800)]

RATE = 20
"""Requests a second, on a schedule."""
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
    example={"x": [[1.0, 2.0, 3.0]]},
)
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}]}


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True)


@dataclass
class Platform:
    folder: Path
    port: int
    redis: Any
    store_server: subprocess.Popen[str]
    registry: Registry
    token: str
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> bytes:
        return (self.folder / "log").read_bytes()

    def version(self, model: str, artifact: str = "good") -> int:
        return self.registry.create_version(model, path=self.folder / artifact, signature=SIGNATURE).version

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}/v2/models", headers=headers, timeout=120)

    def served(self, model: str) -> str:
        with self.client() as client:
            answer = client.post(f"/{model}/infer", json=BODY)
            return str(answer.json().get("model_version"))


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the S3 server, in this process and those it starts."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def tell(figures: str) -> None:
    """Say what was counted: `pytest -s` shows it."""
    sys.stdout.write(f"{figures}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def platform(folder: Path, models: list[str], arguments: list[str]) -> Iterator[Platform]:
    """A store on S3, Redis, and models of one version behind Serve and HAProxy."""
    from tests.ports import free_port
    from tests.registry import s3_servers

    script = Path(s3_servers.__file__).with_name("moto_server.py")
    store_server = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    redis = RedisServer(folder)
    try:
        redis.start()
        assert store_server.stdout is not None
        endpoint = f"http://127.0.0.1:{store_server.stdout.readline().strip()}"
        s3_servers.create_bucket(endpoint, "toque")
        store = open_store(f"s3://toque/models?endpoint={endpoint}", announce=Announcer(redis.url))
        registry, port = Registry(store, actor="ada"), free_port()
        (folder / "good").mkdir()
        save_program(export_program(Sum(), {"x": torch.rand(2, 3)}), folder / "good" / "model.pt2")
        (folder / "broken").mkdir()
        (folder / "broken" / "model.pt2").write_bytes(b"no program")

        def register(model: str) -> None:
            registry.create_model(model)
            version = registry.create_version(model, path=folder / "good", signature=SIGNATURE)
            registry.promote(model, version.version)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(register, models))
        token = Access(store, actor="ada").create_token("load", "predictor")
        command = [sys.executable, "-m", "toque.ray_apps.predictor", "--port", str(port), *arguments]
        environment = os.environ | {"TOQUE_STORE": store.url, "TOQUE_REDIS_URL": redis.url}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        made = Platform(folder, port, redis, store_server, registry, token, process)
        try:
            until(lambda: b"ready\n" in made.log or process.poll() is not None, within_s=300)
            assert process.poll() is None, made.log[-3000:].decode()
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
    finally:
        redis.kill()
        store_server.kill()
        store_server.wait()


class Load:
    """Open loop on eight connections, and what it was told in every phase."""

    def __init__(self, place: Platform, model: str) -> None:
        self.phases: dict[str, dict[str, int]] = {}
        self._ending = contextlib.ExitStack()
        target = Target(f"http://127.0.0.1:{place.port}", place.token, model)
        scenario = Scenario(
            shape=Steady(rate=RATE, seconds=86_400), warm_up_s=0, connections=8, patience_s=30, timeout_s=30
        )
        plan = plan_of(target.url, model, scenario, metadata_of=target.metadata, log_requests=True)
        self._sending = self._ending.enter_context(start_sending(plan, place.token))
        until(lambda: len(self.answers()) > RATE)

    def answers(self) -> list[dict[str, Any]]:
        return self._sending.requests()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what was due while this lasts, and until a second of answers after it."""
        begin = time.time()
        yield
        end = time.time()
        until(lambda: sum(one["due"] > end for one in self.answers()) > RATE)
        end += 1
        due = [one for one in self.answers() if begin <= one["due"] < end]
        failed = [one["problem"] for one in due if one["problem"]]
        longest_s = max((one["ended"] - one["due"] for one in due), default=0.0)
        self.phases[name] = {
            "requests": len(due),
            "failed": len(failed),
            "longest_ms": round(longest_s * 1e3),
        }
        tell(f"{name}: {self.phases[name]} {failed[:3]}")

    def stop(self) -> None:
        self._ending.close()


def replicas(place: Platform) -> list[int]:
    """Processes of replicas of the model `one` below this platform's Ray."""
    from tests.ray_apps.predictor.test_serve import _replicas

    return _replicas("predict-one")


def test_what_changes_and_faults_cost_under_constant_load_on_serve(tmp_path: Path):
    with platform(tmp_path, ["one"], ["--replicas", "2", "one"]) as place:
        load = Load(place, "one")
        try:
            _policies(place, load)
            _deploy(place, load)
            _a_killed_replica(place, load)
            _absences(place, load)
        finally:
            load.stop()
    killed = load.phases.pop("a replica killed")
    assert killed["failed"] <= 8  # one request of each connection at most was in it
    assert len(load.phases) == 5
    none_failed(load)


def test_what_changes_and_absences_cost_under_constant_load_in_one_process(tmp_path: Path):
    with platform(tmp_path, ["one"], ["--standalone", "one"]) as place:
        load = Load(place, "one")
        try:
            _policies(place, load)
            _absences(place, load)
        finally:
            load.stop()
    assert len(load.phases) == 4
    none_failed(load)


def none_failed(load: Load) -> None:
    for name, counts in load.phases.items():
        assert counts["requests"] > 0, name
        assert counts["failed"] == 0, name


def _policies(place: Platform, load: Load) -> None:
    with load.phase("20 promotions and rollbacks"):
        for _ in range(10):
            number = place.version("one")
            place.registry.promote("one", number)
            until(lambda number=number: place.served("one") == str(number))
            place.registry.rollback("one", "champion")
            until(lambda number=number: place.served("one") != str(number))
    with load.phase("a broken version"):
        broken = place.version("one", "broken")
        place.registry.promote("one", broken)
        with place.client() as client:
            until(lambda: str(broken) in client.get("/one/status").json()["failures"])
        seen = len(load.answers())
        until(lambda: len(load.answers()) > seen + 3 * RATE)
        place.registry.rollback("one", "champion")
    assert str(broken) not in {one["version"] for one in load.answers()}


def _deploy(place: Platform, load: Load) -> None:
    with load.phase("a deploy of new code"):
        before = set(replicas(place))
        place.process.send_signal(signal.SIGHUP)
        until(lambda: b"\ndeployed\n" in place.log, within_s=300)
        until(lambda: not before & set(replicas(place)))


def _a_killed_replica(place: Platform, load: Load) -> None:
    with load.phase("a replica killed"):
        before = replicas(place)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(replicas(place)) - {before[0]}) == 2)


def _absences(place: Platform, load: Load) -> None:
    with load.phase("Redis restarted"):
        place.redis.kill()
        place.redis.start()
    place.store_server.send_signal(signal.SIGSTOP)
    try:
        with load.phase("a minute without the store"):
            time.sleep(60)
    finally:
        place.store_server.send_signal(signal.SIGCONT)


def test_a_model_goes_to_zero_and_comes_back_without_a_failed_request(tmp_path: Path):
    arguments = ["--min-replicas", "0", "--max-replicas", "1", "--idle-s", "4", "one"]
    with platform(tmp_path, ["one"], arguments) as place, place.client() as client:
        for _ in range(2):
            until(lambda: not replicas(place))
            begin = time.monotonic()
            with ThreadPoolExecutor(8) as threads:
                answers = list(threads.map(lambda _: client.post("/one/infer", json=BODY), range(8)))
            tell(f"first answers after zero: {time.monotonic() - begin:.1f} s")
            assert [answer.status_code for answer in answers] == [200] * 8, answers[0].text


def test_200_models_in_a_pool_of_two_replicas_all_answer(tmp_path: Path):
    names = [f"model-{number}" for number in range(200)]
    limit = 60 * (300 << 10)
    with platform(tmp_path, names, ["--pool", "--pool-bytes", str(limit)]) as place, place.client() as client:
        for name in names:
            answer = client.post(f"/{name}/infer", json=BODY)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["data"] == [3.0]
        counts: dict[tuple[str, ...], dict[str, Any]] = {}  # by what each replica holds

        def seen() -> bool:
            status = client.get("/").json()
            counts[tuple(status["models"])] = status
            return sum(one["loads"] for one in counts.values()) >= len(names)

        until(seen)
        for status in counts.values():
            tell(f"a replica: {status | {'models': len(status['models'])}}")
            assert status["size_bytes"] <= limit
            assert status["evictions"] == status["loads"] - len(status["models"]) > 0
