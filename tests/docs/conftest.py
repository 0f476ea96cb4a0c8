"""A platform in this process that the commands and clients of the pages ask: gateway and MLflow's protocol on one port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.redis_server import running_redis
from toque.functions import Context
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.invocation import executor_of, run_pending
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.ray_apps.mlflow import build_app as build_mlflow
from toque.registry import Access, Registry, open_store

DEADLINE_S = 60.0
PROJECT = "examples.flights"


@dataclass(frozen=True)
class AskedPlatform:
    """Where it answers, an admin's token, and its registry in the name of another person."""

    url: str
    token: str
    context: Context
    registry: Registry

    def with_model(self, name: str, files: Path, versions: int) -> None:
        """Register versions that passed their gate and are approved; the champion was the first, then the third or last."""
        files.mkdir(exist_ok=True)
        (files / "weights.bin").write_bytes(b"weights")
        self.registry.create_model(name)
        for number in range(1, versions + 1):
            self.registry.create_version(name, files)
            self.registry.record_gate(name, number, "offline", passed=True)
            self.registry.as_actor("bob").approve(name, number)
        for number in (1, min(3, versions)):
            self.registry.set_alias(name, "champion", number)


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of this test's own."""
    with running_redis(tmp_path / "redis") as server:
        yield server.url


@pytest.fixture
def asked(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[AskedPlatform]:
    """The platform, named to the command line by its environment, with an executor for what is submitted."""
    monkeypatch.chdir(tmp_path)
    url = (tmp_path / "store").as_uri()
    context = Context(open_store(url), url, redis_url=redis_url, actor="platform", project=PROJECT)
    access = Access(context.store, actor="docs")
    services = Services(
        context=context,
        labels=lambda _: pytest.fail("no page sends a label here"),
        access=access,
        discover=lambda: catalog.discover((*catalog.PLATFORM, PROJECT)),
    )
    app = Starlette(
        routes=[Mount("/api", build_mlflow(context.store, access=access)), Mount("/", build_app(services))]
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    ended = threading.Event()
    working = threading.Thread(target=_work, args=(context, ended), daemon=True)
    working.start()
    _until_started(server)
    port = server.servers[0].sockets[0].getsockname()[1]
    token = access.create_token("root", "admin", workspace="*")
    for name, value in (
        ("TOQUE_URL", f"http://127.0.0.1:{port}"),
        ("TOQUE_TOKEN", token),
        ("TOQUE_HOME", str(tmp_path / "home")),
    ):
        monkeypatch.setenv(name, value)
    yield AskedPlatform(f"http://127.0.0.1:{port}", token, context, Registry(context.store, actor="trainer"))
    ended.set()
    server.should_exit = True
    working.join(DEADLINE_S)
    serving.join(DEADLINE_S)
    executor_of(context).close()


def _work(context: Context, ended: threading.Event) -> None:
    while not ended.wait(0.05):
        run_pending(context)


def _until_started(server: uvicorn.Server) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
