"""The load against a tiny server that speaks the protocol, well or badly."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from load.scenarios.run import NotPossible, find_target, main

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
        return 200, {"id": request["id"], "outputs": [{"name": "y", "shape": [1, 1], "data": [0.5]}]}


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
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return f"http://127.0.0.1:{door.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TOQUE_URL", "TOQUE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOQUE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOQUE_TOKEN", TOKEN)


def slo(folder: Path, objectives: str, load: str = "") -> str:
    path = folder / "slo.toml"
    path.write_text(
        f"[load]\nusers = 2\nrequests_per_user_per_s = 20\nduration_s = 2\nwarm_up_s = 0\n{load}\n[objectives]\n{objectives}"
    )
    return str(path)


def test_objectives_that_hold_end_with_0(serve, tmp_path: Path, capsys: pytest.CaptureFixture):
    model = Model()
    held = slo(tmp_path, "p50_ms = 500\np99_ms = 2000\nerror_share = 0\nrequests_per_s = 5")
    assert main(["--url", serve(model), "--slo", held]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("toy at http://127.0.0.1")
    assert "MISSED" not in printed
    assert len(model.seen) >= 10
    assert model.seen[0]["inputs"][0]["shape"] == [1, 2]


def test_a_missed_objective_ends_with_1_and_is_named(serve, tmp_path: Path, capsys: pytest.CaptureFixture):
    model = Model(fail_every=4)
    missed = slo(tmp_path, "error_share = 0.01")
    assert main(["--url", serve(model), "--slo", missed, "--model", "toy"]) == 1
    printed = capsys.readouterr().out
    assert "MISSED  error_share" in printed
    assert "unlucky" in printed


def test_latency_counts_from_when_a_request_was_due(serve, tmp_path: Path, capsys: pytest.CaptureFixture):
    # One user, 20 requests a second due, 100 ms each: answers fall behind by 50 ms a request. Timed from their sending
    # every one would take 100 ms; from when they were due the last of two seconds are more than half a second late.
    url = serve(Model(delay_s=0.1))
    missed = slo(tmp_path, "p99_ms = 500").replace("slo.toml", "one.toml")
    Path(missed).write_text(Path(slo(tmp_path, "p99_ms = 500")).read_text().replace("users = 2", "users = 1"))
    assert main(["--url", url, "--slo", missed]) == 1
    assert "MISSED  p99_ms" in capsys.readouterr().out


def test_requests_by_key_carry_the_rows_of_the_file(serve, tmp_path: Path):
    model = Model()
    keys = tmp_path / "rows.jsonl"
    keys.write_text('{"entities": {"plane": "N1"}}\n{"entities": {"plane": "N2"}}\n')
    held = slo(tmp_path, "error_share = 0", load="rows_per_request = 2")
    assert main(["--url", serve(model), "--slo", held, "--keys", str(keys)]) == 0
    assert len(model.seen[0]["parameters"]["entities"]) == 2
    assert {row["plane"] for seen in model.seen for row in seen["parameters"]["entities"]} == {"N1", "N2"}


def test_no_server_ends_with_2_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["--url", "http://127.0.0.1:9", "--slo", slo(tmp_path, "")]) == 2
    assert "http://127.0.0.1:9/models" in capsys.readouterr().err
    assert main(["--slo", slo(tmp_path, "")]) == 2
    assert "start one with `make up`" in capsys.readouterr().err


def test_a_refused_token_is_no_success(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOQUE_TOKEN", "wrong")
    assert main(["--url", serve(Model()), "--slo", slo(tmp_path, ""), "--model", "toy"]) == 1


def test_the_target_is_what_was_started_here(tmp_path: Path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "up.json").write_text(json.dumps({"settings": {"host": "127.0.0.1"}, "ports": {"http": 8123}}))
    (home / "token").write_text("secret\n")
    target = find_target({"TOQUE_HOME": str(home)}, model="m")
    assert (target.url, target.token, target.model) == ("http://127.0.0.1:8123", "secret", "m")
    with pytest.raises(NotPossible, match="does not exist"):
        find_target({"TOQUE_HOME": str(tmp_path / "elsewhere")}, model="m")
