"""No request up to the size limits keeps the event loop of gateway or MLflow's protocol from others for 50 ms."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ray_apps.watchdog import MAX_MS, longest_gap_ms
from toque.functions.runtime import catalog
from toque.functions.runtime.context import Context
from toque.functions.runtime.function import function
from toque.ray_apps import mlflow
from toque.ray_apps.admission.guarded_route import MAX_CONTAINERS, MAX_JSON_BYTES, MAX_VALUES
from toque.ray_apps.gateway.app import build_app
from toque.ray_apps.gateway.services import Services
from toque.ray_apps.gateway.wire import MAX_ROWS
from toque.ray_apps.serve.process import freeze
from toque.registry import Access, open_store

pytestmark = pytest.mark.slow


class Labels:
    """A log that keeps no label."""

    def commit(self, _: list[bytes]) -> int:
        return 1


@function(http=True)
def loop_length(values: Any) -> int:
    """Say how long a value is."""
    return len(values)


@pytest.fixture(autouse=True)
def frozen() -> None:
    """What was imported is left out of collections, as in a replica."""
    freeze()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    catalog.declare(loop_length)
    store = open_store(f"file://{tmp_path}/store")
    access = Access(store, actor="root")
    token = access.create_token("ada", "operator")
    app = build_app(Services(Context(store, store.url), labels=lambda _: Labels(), access=access))
    async with client_of(app, token) as client:
        yield client


def client_of(app: Any, token: str) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://toque", headers=headers, timeout=120
    )


def compute(seconds: float) -> None:
    """Compute for as long on this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def many(item: bytes, number: int) -> bytes:
    return b"[" + b",".join([item] * number) + b"]"


BODIES = {
    "labels": ("/feedback", many(b'{"prediction_id": "0123456789abcdef:12", "label": 0.25}', MAX_ROWS), 200),
    "labels, each wrong": ("/feedback", many(b'{"prediction_id": "", "label": "x"}', MAX_ROWS), 422),
    "one row of lists": ("/feedback", b'[{"prediction_id": ' + many(b"[]", 150_000) + b"}]", 422),
    "feature rows": (
        "/features/weather/push",
        b'{"rows": ' + many(b'{"event_timestamp": "2024-01-01T00:00:00Z", "x": 1}', MAX_ROWS) + b"}",
        404,
    ),
    "lists": ("/functions/loop_length", b'{"values": ' + many(b"[]", MAX_CONTAINERS - 2) + b"}", 200),
    "too many lists": ("/functions/loop_length", b'{"values": ' + many(b"[]", MAX_CONTAINERS) + b"}", 413),
    "numbers": ("/functions/loop_length", b'{"values": ' + many(b"1.25", MAX_VALUES) + b"}", 200),
    "a text": ("/functions/loop_length", b'{"values": "' + b"x" * (MAX_JSON_BYTES - 20) + b'"}', 200),
    "an escaped text": (
        "/functions/loop_length",
        b'{"values": "' + b"\\u00e9" * (MAX_JSON_BYTES // 6 - 4) + b'"}',
        200,
    ),
    "no JSON": ("/models/m/promote", b"[" * (MAX_CONTAINERS - 1), 400),
}


@pytest.mark.parametrize("name", BODIES)
async def test_the_gateways_loop_goes_on(gateway: httpx.AsyncClient, name: str) -> None:
    path, body, status = BODIES[name]

    async def send() -> None:
        answer = await gateway.post(path, content=body)
        assert answer.status_code == status, answer.text[:500]

    await send()
    assert await longest_gap_ms(send) < MAX_MS


async def test_mlflows_loop_goes_on(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    token = Access(store, actor="root").create_token("ada", "operator")
    batch = (
        b'{"run_id": "x", "metrics": '
        + many(b'{"key": "a", "value": 1, "timestamp": 1}', MAX_CONTAINERS - 2)
        + b"}"
    )
    async with client_of(mlflow.build_app(store), token) as client:

        async def send() -> None:
            answer = await client.post("/2.0/mlflow/runs/log-batch", content=batch)
            assert answer.status_code in {400, 404}, answer.text[:500]

        await send()
        assert await longest_gap_ms(send) < MAX_MS


@pytest.mark.parametrize("wait", [time.sleep, compute])
async def test_the_watchdog_sees_a_loop_that_is_held(wait: Callable[[float], None]) -> None:
    async def hold() -> None:
        wait(2e-3 * MAX_MS)

    assert await longest_gap_ms(hold) > MAX_MS
