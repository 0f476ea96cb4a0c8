import importlib.util
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from functions.runtime.clock import FixedClock
from functions.runtime.context import Context
from ray_apps.gateway.app import build_app
from ray_apps.gateway.services import Services
from registry import Access, open_store

TOYS = Path(__file__).with_name("toys.py")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def toys() -> None:
    """Functions that the tests call, declared."""
    spec = importlib.util.spec_from_file_location("gateway_toys", TOYS)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gateway_toys"] = module
    spec.loader.exec_module(module)


@dataclass
class Labels:
    """A label log in memory."""

    payloads: list[bytes] = field(default_factory=list)

    def append(self, payload: bytes) -> int:
        self.payloads.append(payload)
        return len(self.payloads)


@dataclass
class Platform:
    """A gateway without Ray: its context, a token for each role, its label log."""

    context: Context
    tokens: dict[str, str]
    labels: Labels
    client: httpx.AsyncClient
    app: FastAPI

    def of(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[role]}"}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    url = f"file://{tmp_path / 'store'}"
    return Context(open_store(url), url, clock=FixedClock(NOW), actor="platform")


@pytest.fixture
def labels() -> Iterator[Labels]:
    return Labels()


@pytest.fixture
async def platform(context: Context, labels: Labels) -> AsyncIterator[Platform]:
    access = Access(context.store, actor="tests")
    roles = ("viewer", "predictor", "operator", "approver", "admin")
    tokens = {role: access.create_token(f"a-{role}", role) for role in roles}
    services = Services(context=context, labels=lambda: labels, access=access, wait_s=20)
    app = build_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Platform(context, tokens, labels, client, app)
