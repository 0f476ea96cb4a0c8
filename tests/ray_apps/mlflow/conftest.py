import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from toque.ray_apps.middleware import Beside
from toque.ray_apps.mlflow import build_app
from toque.registry import Access, Registry, Role, open_store

DEADLINE_S = 30.0


@dataclass
class TrackingServer:
    """The application as it stands beside the gateway's, its registry, and a token for each person."""

    folder: Path
    registry: Registry
    tokens: dict[str, str]
    app: Beside


@pytest.fixture
def server(tmp_path: Path) -> TrackingServer:
    store = open_store(f"file://{tmp_path}/store")
    access = Access(store, actor="root")
    people = {"ada": Role.operator, "bob": Role.approver, "vera": Role.viewer}
    tokens = {name: access.create_token(name, role) for name, role in people.items()}
    app = Beside(Starlette(), "/api", build_app(store))
    return TrackingServer(tmp_path, Registry(store, actor="ada"), tokens, app)


class Client:
    """An HTTP client with one person's token; paths begin after `/api/2.0/mlflow/`."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self.http = http
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        base = "/api/2.0/" if path.startswith("mlflow-artifacts") else "/api/2.0/mlflow/"
        return await self.http.request(method, base + path, headers=self.headers, **kwargs)

    async def get(self, path: str, /, **params: Any) -> Any:
        return _ok(await self.send("GET", path, params=params))

    async def post(self, path: str, /, **body: Any) -> Any:
        return _ok(await self.send("POST", path, json=body))

    async def refused(self, method: str, path: str, **kwargs: Any) -> tuple[int, str, str]:
        """Send a request that is refused; returns status, MLflow's error code and message."""
        answer = await self.send(method, path, **kwargs)
        assert set(answer.json()) == {"error_code", "message"}
        return answer.status_code, answer.json()["error_code"], answer.json()["message"]


def _ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
async def http(server: TrackingServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://toque") as client:
        yield client


@pytest.fixture
def ada(http: httpx.AsyncClient, server: TrackingServer) -> Client:
    return Client(http, server.tokens["ada"])


@pytest.fixture
def vera(http: httpx.AsyncClient, server: TrackingServer) -> Client:
    return Client(http, server.tokens["vera"])


@pytest.fixture
def address(server: TrackingServer) -> Iterator[str]:
    """Serve the application on a port; yields the tracking URI for clients."""
    http_server = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=http_server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + DEADLINE_S
    while not http_server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{http_server.servers[0].sockets[0].getsockname()[1]}"
    http_server.should_exit = True
    thread.join(DEADLINE_S)


def run_client(script: Path, address: str, token: str, folder: Path, *arguments: str) -> Any:
    """Run an unmodified client in a process of its own; returns the JSON it prints last."""
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_TRACKING_TOKEN": token,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_REQUIREMENTS_INFERENCE_TIMEOUT": "0",  # else a process for each model finds out what it needs
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
