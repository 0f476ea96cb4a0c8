"""Labels are acknowledged once Redis has them, and refused with 503 while it is away; losses of the log at `/metrics`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray_apps.gateway.conftest import Gateway
from tests.redis_server import RedisServer, running_redis
from tests.waiting import until
from toque.functions.prediction_log import LogWriter, drain, latest_labels
from toque.registry import open_store


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def log(tmp_path: Path, gateway: Gateway, redis_server: RedisServer) -> Iterator[LogWriter]:
    """The gateway's own log of labels, with its files on this node and a real Redis."""
    opened = LogWriter(
        tmp_path / "wal", "labels", redis_server.url, poll_s=0.01, answers_first=False, confirm_s=0.5
    )
    gateway.app.state.services.labels = lambda _: opened
    yield opened
    opened.close(timeout_s=0.5)


async def send(gateway: Gateway, *names: str) -> Any:
    body = [{"prediction_id": name, "label": 1} for name in names]
    return await gateway.client.post("/feedback", headers=gateway.headers("labeller"), json=body)


async def test_acknowledged_labels_outlive_the_node_and_others_are_not_acknowledged(
    gateway: Gateway, log: LogWriter, redis_server: RedisServer, tmp_path: Path
) -> None:
    assert (await send(gateway, "a", "b")).json() == {"accepted": 2}
    redis_server.kill()
    for _ in range(2):
        answer = await send(gateway, "c")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["content-type"] == "application/problem+json"
        assert "send them again" in answer.json()["detail"]
    assert (
        "toque_labels_received_total"
        in (await gateway.client.get("/metrics", headers=gateway.headers("root"))).text
    )
    redis_server.start()
    until(lambda: log.confirms)
    assert (await send(gateway, "c")).json() == {"accepted": 1}
    log.close()
    shutil.rmtree(tmp_path / "wal")  # the gateway's node never comes back
    store = open_store(f"file://{tmp_path}/other")
    drain(store, redis_server.url)
    assert set(latest_labels(store)["prediction_id"].to_pylist()) == {"a", "b", "c"}
