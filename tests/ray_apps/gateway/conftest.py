import importlib.util
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from toque.functions.runtime.clock import FixedClock
from toque.functions.runtime.context import Context
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.registry import Access, open_store

SAMPLES = Path(__file__).with_name("sample_functions.py")
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def sample_functions() -> None:
    """Declare the functions that the tests call."""
    spec = importlib.util.spec_from_file_location("gateway_samples", SAMPLES)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gateway_samples"] = module
    spec.loader.exec_module(module)


@dataclass
class MemoryLabelLog:
    """A label log in memory."""

    payloads: list[bytes] = field(default_factory=list)

    def commit(self, payloads: Sequence[bytes]) -> int:
        self.payloads.extend(payloads)
        return len(self.payloads)


@dataclass
class Gateway:
    """A gateway without Ray, with a token for each role and a label log in memory."""

    context: Context
    tokens: dict[str, str]
    labels: dict[str, MemoryLabelLog]
    client: httpx.AsyncClient
    app: FastAPI

    def headers(self, role: str, workspace: str | None = None) -> dict[str, str]:
        """Make the headers of a caller with `role`, in the workspace that is named."""
        named = {"X-Toque-Workspace": workspace} if workspace else {}
        return {"Authorization": f"Bearer {self.tokens[role]}"} | named


@pytest.fixture
def context(tmp_path: Path) -> Context:
    url = f"file://{tmp_path / 'store'}"
    return Context(open_store(url), url, clock=FixedClock(NOW), actor="platform")


@pytest.fixture
def labels() -> dict[str, MemoryLabelLog]:
    """The label logs by workspace, each opened on first use."""
    return defaultdict(MemoryLabelLog)


@pytest.fixture
async def gateway(context: Context, labels: dict[str, MemoryLabelLog]) -> AsyncIterator[Gateway]:
    access = Access(context.store, actor="tests")
    roles = ("viewer", "caller", "labeller", "operator", "approver", "admin")
    tokens = {role: access.create_token(f"a-{role}", role) for role in roles}
    tokens["root"] = access.create_token("root", "admin", workspace="*")
    services = Services(context=context, labels=labels.__getitem__, access=access, wait_s=20)
    app = build_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Gateway(context, tokens, labels, client, app)
