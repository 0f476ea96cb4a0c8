import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import httpx
import pytest
import redis
from fastapi import FastAPI

from tests.ray_apps.console.browser import chromium  # noqa: F401  # a fixture
from tests.ray_apps.console.sample_features import fill_features
from tests.ray_apps.console.sample_monitors import fill_monitors
from tests.ray_apps.console.sample_platform import NOW, answer_requests, begin_rollout, fill
from tests.ray_apps.console.sample_predictions import fill_predictions
from tests.ray_apps.console.sample_runs import fill_runs
from tests.ray_apps.console.sample_work import FUNCTION, fill_work
from tests.ray_apps.gateway.conftest import MemoryLabelLog
from tests.redis_server import RedisServer, running_redis
from toque.functions import Cron
from toque.functions.resources import invocations
from toque.functions.runtime.changes import announcer_of
from toque.functions.runtime.clock import FixedClock
from toque.functions.runtime.context import Context
from toque.functions.runtime.triggers import schedule
from toque.ray_apps.console import live
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.ray_apps.oidc import OidcSettings
from toque.registry import Access, open_store

ORIGIN = "http://gateway"
PROJECT = "tests.ray_apps.console.sample_project"
DISCOVERED = (
    "toque.functions.reporting", "toque.functions.alerting.jobs", "toque.functions.features.jobs", "toque.functions.monitoring.language.jobs", "toque.functions.quotas",
)  # fmt: skip


@dataclass
class Visitor:
    """A browser of one person, without scripts: cookies are kept, redirects are not followed."""

    http: httpx.AsyncClient

    async def sign_in(self, token: str, to: str = "/ui/") -> httpx.Response:
        return await self.http.post("/ui/sign-in", data={"token": token, "next": to})

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(path)

    async def send(self, page: str, action: str, **fields: str) -> httpx.Response:
        """Send a form of a page, with what the page says that proves it."""
        shown = await self.http.get(page)
        found = re.search(r'name="csrf" value="(\w+)"', shown.text)
        assert found, shown.text
        return await self.http.post(action, data={"csrf": found[1], **fields})


@dataclass
class Platform:
    """A gateway without Ray over a filled store, with a token for each role."""

    context: Context
    access: Access
    tokens: dict[str, str]
    app: FastAPI

    def visitor(self, **headers: str) -> Visitor:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return Visitor(httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers=headers))

    async def signed_in(self, role: str) -> Visitor:
        visitor = self.visitor()
        answer = await visitor.sign_in(self.tokens[role])
        assert answer.status_code == 303, answer.text
        return visitor


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a filled store, made once and copied for each test."""
    folder = tmp_path_factory.mktemp("console")
    store = open_store(f"file://{folder / 'store'}")
    fill(store, folder / "versions")
    begin_rollout(store)
    fill_work(store)
    fill_runs(store)
    fill_monitors(store)
    fill_features(store)
    fill_predictions(store)
    return folder / "store"


def make_platform(
    store: Path,
    redis_url: str | None = None,
    *,
    oidc: OidcSettings | None = None,
    project: str | None = PROJECT,
) -> Platform:
    """Open a gateway without Ray on a filled store.

    redis_url: where requests are counted and changes announced. project: module that declares models.
    """
    url = f"file://{store}"
    announce = announcer_of(redis_url)
    context = Context(
        open_store(url, announce=announce),
        url,
        redis_url=redis_url,
        project=project,
        clock=FixedClock(NOW),
        actor="platform",
    )
    access = Access(context.store, actor="tests")
    access.create_workspace("payments")
    roles = ("viewer", "caller", "operator", "approver", "admin")
    tokens = {role: access.create_token(f"a-{role}", role) for role in roles}
    tokens["root"] = access.create_token("root", "admin", workspace="*")
    tokens["payments"] = access.create_token("paula", "viewer", workspace="payments")
    services = Services(
        context=context,
        labels=defaultdict(MemoryLabelLog).__getitem__,
        access=access,
        oidc=oidc,
        discover=lambda: [import_module(each) for each in DISCOVERED],
    )
    return Platform(context, access, tokens, build_app(services))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum costs and render pages for as long as it takes, as a machine that runs tests may be slow."""
    monkeypatch.setattr(live, "_RENDER_S", 600.0)
    monkeypatch.setattr(invocations, "_KNOWN_WITHIN_S", 60.0)


@pytest.fixture
def platform(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    morning = schedule.Schedule("refresh_flights", FUNCTION, Cron("30 5 * * *", timezone="Europe/Berlin"))
    monkeypatch.setitem(schedule._added, ("default", morning.name), morning)
    shutil.copytree(filled, tmp_path / "store")
    return make_platform(tmp_path / "store")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """A Redis in which changes are announced and requests counted."""
    return redis_server.url


@pytest.fixture(scope="session")
def counting(redis_server: RedisServer) -> str:
    """A Redis in which requests were counted."""
    client = redis.Redis.from_url(redis_server.url)
    answer_requests(client, time.time())
    client.close()
    return redis_server.url
