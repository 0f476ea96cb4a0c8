import sys
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import uvicorn
from pydantic import Field
from starlette.applications import Starlette
from starlette.routing import Mount

from toque.functions import function
from toque.functions.runtime.context import Context
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.ray_apps.mlflow import build_app as build_mlflow
from toque.registry import Access, Registry, open_store


@dataclass
class Platform:
    """A gateway, and MLflow's protocol beside it, on a real port, and their registry."""

    url: str
    token: str
    context: Context
    registry: Registry


@function(http=True)
def cli_add(a: Annotated[int, Field(description="The first number.")], b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@function(http=True)
def cli_break() -> int:
    """Fail."""
    raise RuntimeError("out of gas")


@function(http=True)
def cli_talk(words: list[str]) -> int:
    """Say some words."""
    for word in words:
        print(word)  # noqa: T201
    return len(words)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TOQUE_URL", "TOQUE_TOKEN", "TOQUE_HOME", "TOQUE_PROJECT", "TOQUE_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture
def platform(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    url = f"file://{tmp_path / 'store'}"
    context = Context(open_store(url), url, actor="platform")
    access = Access(context.store, actor="tests")
    services = Services(context=context, labels=lambda _: pytest.fail("no labels here"), access=access)
    app = Starlette(
        routes=[Mount("/api", build_mlflow(context.store, access=access)), Mount("/", build_app(services))]
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    monkeypatch.setenv("TOQUE_URL", f"http://127.0.0.1:{port}")
    token = access.create_token("ada", "admin", workspace="*")
    monkeypatch.setenv("TOQUE_TOKEN", token)
    yield Platform(f"http://127.0.0.1:{port}", token, context, Registry(context.store, actor="trainer"))
    server.should_exit = True
    thread.join(60)


@pytest.fixture
def model(platform: Platform, tmp_path: Path) -> str:
    files = tmp_path / "files"
    files.mkdir()
    (files / "weights.bin").write_bytes(b"1")
    platform.registry.create_model("late")
    for _ in range(3):
        platform.registry.create_version("late", files)
    return "late"


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A project on sys.path, `kitchen`, to be given a demo."""
    folder = tmp_path / "kitchen"
    folder.mkdir()
    (folder / "__init__.py").write_text("FEATURES, MODELS = [], []\n")
    monkeypatch.chdir(tmp_path)
    for name in [each for each in sys.modules if each.split(".")[0] == "kitchen"]:
        monkeypatch.delitem(sys.modules, name)  # another test's project of that name
    before = list(sys.path)
    yield folder
    sys.path[:] = before
    for name in [each for each in sys.modules if each.split(".")[0] == "kitchen"]:
        assert isinstance(sys.modules.pop(name), types.ModuleType)
