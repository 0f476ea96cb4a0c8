"""The load against a tiny server that speaks the protocol, well or badly."""

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from toque.load.scenarios.plan import plan_of
from toque.load.scenarios.result import LoadRun
from toque.load.scenarios.run import main
from toque.load.scenarios.scenario import Scenario, Steady
from toque.load.scenarios.sending import processes
from toque.load.scenarios.sending.processes import put_load, start_sending
from toque.load.scenarios.target import NotPossible, Target, find_target
from toque.load.scenarios.windows import quantile_ms

TOKEN = "t0ken"


@dataclass
class Model:
    """An inference server in forty lines."""

    delay_s: float = 0.0
    fail_every: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, answer = await self.answer(scope, body)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def answer(self, scope: dict[str, Any], body: bytes) -> tuple[int, Any]:
        if dict(scope["headers"]).get(b"authorization") != f"Bearer {TOKEN}".encode():
            return 401, {"error": "token"}
        if scope["path"] == "/models":
            return 200, [{"name": "idle", "aliases": {}}, {"name": "toy", "aliases": {"champion": 1}}]
        if scope["path"] == "/v2/models/toy":
            return 200, {"name": "toy", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]}
        if scope["path"] != "/v2/models/toy/infer":
            return 404, {"error": scope["path"]}
        request = json.loads(body)
        self.seen.append(request)
        await asyncio.sleep(self.delay_s)
        if self.fail_every and len(self.seen) % self.fail_every == 0:
            return 500, {"error": "unlucky"}
        return 200, {"outputs": [{"name": "y", "shape": [1, 1], "data": [0.5]}]}


@pytest.fixture
def serve() -> Iterator[Callable[[Model], str]]:
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(model: Model) -> str:
        door = socket.socket()
        door.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(model, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"http://127.0.0.1:{door.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=60)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TOQUE_URL", "TOQUE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOQUE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOQUE_TOKEN", TOKEN)


def slo(folder: Path, objectives: str, *, rate: int = 40, seconds: float = 2, more: str = "") -> str:
    path = folder / "slo.toml"
    path.write_text(
        f"[scenarios.here]\nshape = {{ kind = 'steady', rate = {rate}, seconds = {seconds} }}\nwarm_up_s = 0\n{more}\n"
        f"objectives = {{ {objectives} }}\n"
    )
    return str(path)


def test_objectives_that_hold_end_with_0(serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = Model()
    more = "processes = 2\nclient = 'native'\nconnections = 4\npatience_s = 30"  # a client as scenarios of before name it
    held = slo(tmp_path, "p50_ms = 5000, p99_ms = 9000, error_share = 0, requests_per_s = 5", more=more)
    kept = tmp_path / "run.json"
    assert main(["--url", serve(model), "--slo", held, "--save", str(kept)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("toy at http://127.0.0.1")
    assert "MISSED" not in printed
    run = LoadRun.model_validate_json(kept.read_text())
    assert run.measured().due == run.measured().answered == len(model.seen)
    assert run.client_busy is not None
    assert len(model.seen) >= 40  # 80 due, Poisson: fewer than 40 in one of 10^6 runs
    assert model.seen[0]["inputs"][0]["shape"] == [1, 2]


def test_a_missed_objective_ends_with_1_and_is_named(
    serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = Model(fail_every=4)
    missed = slo(tmp_path, "error_share = 0.01")
    assert main(["--url", serve(model), "--slo", missed, "--model", "toy"]) == 1
    printed = capsys.readouterr().out
    assert "MISSED  error_share" in printed
    assert "unlucky" in printed


def test_latency_counts_from_when_a_request_was_due_and_what_waits_too_long_is_dropped(serve, tmp_path: Path):
    # One connection, 20 requests a second due, 100 ms each: half of them can be sent. Timed from their sending every one would
    # take 100 ms; from when they were due they wait up to their patience of half a second, and the rest are dropped.
    model, kept = Model(delay_s=0.1), tmp_path / "run.json"
    one = slo(tmp_path, "error_share = 0.01", rate=20, seconds=3, more="connections = 1\npatience_s = 0.5")
    assert main(["--url", serve(model), "--slo", one, "--save", str(kept)]) == 1
    found = LoadRun.model_validate_json(kept.read_text()).measured()
    assert found.dropped >= 5
    assert found.due == found.answered + found.dropped
    assert found.answered == len(model.seen)
    assert 300 < quantile_ms(found.counts, 0.9) < 1500
    assert found.latency_ms(0.99) == math.inf


def test_a_broken_objective_ends_a_run_early(serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    long = slo(tmp_path, "p99_ms = 500, error_share = 0.05", rate=50, seconds=600, more="abort_after_s = 1")
    began = time.monotonic()
    assert main(["--url", serve(Model(fail_every=2)), "--slo", long]) == 1
    assert time.monotonic() - began < 60
    assert "ABORTED" in capsys.readouterr().out


def test_requests_by_key_carry_the_rows_of_the_file_and_a_mix_has_its_shares(serve, tmp_path: Path):
    model = Model()
    keys = tmp_path / "rows.jsonl"
    keys.write_text('{"entities": {"plane": "N1"}}\n{"entities": {"plane": "N2"}}\n')
    mix = f"mix = [{{ keys = '{keys}', rows = 2, weight = 3 }}, {{ rows = 5 }}]"
    mixed = slo(tmp_path, "error_share = 0", rate=100, more=mix)
    assert main(["--url", serve(model), "--slo", mixed]) == 0
    keyed = [seen for seen in model.seen if "entities" in seen["parameters"]]
    assert {len(seen["parameters"]["entities"]) for seen in keyed} == {2}
    assert {row["plane"] for seen in keyed for row in seen["parameters"]["entities"]} == {"N1", "N2"}
    assert len(keyed) / len(model.seen) == pytest.approx(0.75, abs=0.15)  # 200 draws: 5 standard errors


def test_no_server_ends_with_2_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["--url", "http://127.0.0.1:9", "--slo", slo(tmp_path, "")]) == 2
    assert "http://127.0.0.1:9/models" in capsys.readouterr().err
    assert main(["--slo", slo(tmp_path, "")]) == 2
    assert "start one with `make up`" in capsys.readouterr().err


def test_a_refused_token_is_no_success(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOQUE_TOKEN", "wrong")
    assert main(["--url", serve(Model()), "--slo", slo(tmp_path, ""), "--model", "toy"]) == 2


def test_the_target_is_what_was_started_here(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "up.json").write_text(json.dumps({"settings": {"host": "127.0.0.1"}, "ports": {"http": 8123}}))
    (home / "token").write_text("secret\n")
    target = find_target({"TOQUE_HOME": str(home)}, model="m")
    assert (target.url, target.token, target.model) == ("http://127.0.0.1:8123", "secret", "m")
    with pytest.raises(NotPossible, match="does not exist"):
        find_target({"TOQUE_HOME": str(tmp_path / "elsewhere")}, model="m")


def test_each_request_has_a_line_where_a_plan_asks_for_them(serve):
    target, scenario = (
        Target(serve(Model(fail_every=3)), TOKEN, "toy"),
        Scenario(shape=Steady(rate=20, seconds=2)),
    )
    plan = plan_of(target.url, "toy", scenario, metadata_of=target.metadata, log_requests=True)
    with start_sending(plan, TOKEN) as sending:
        while not sending.collect():
            time.sleep(0.1)
        lines = sending.requests()
    counted = sending.windows.measured(first=-math.inf)
    assert len(lines) == counted.answered + counted.failed
    assert sum(line["problem"] is not None for line in lines) == counted.failed > 0
    assert all(line["due"] <= line["sent"] <= line["ended"] for line in lines)


def test_without_locust_a_load_says_what_to_install(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "find_spec", lambda _: None)
    with pytest.raises(NotPossible, match=r"pip install 'toque\[load\]'"):
        put_load(Target(serve(Model()), TOKEN, "toy"), "s", Scenario())
