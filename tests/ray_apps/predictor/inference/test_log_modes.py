"""Answers that wait for their record: in Redis, or refused, as the mode of the log says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.ray_apps.predictor.conftest import SIGNATURE, MemoryLog, load_fake_scorer, tensors
from tests.ray_apps.predictor.inference.test_recording import record
from tests.waiting import until
from toque.functions.prediction_log import close_writers, drain
from toque.functions.prediction_log.writing.stream import Stream
from toque.ray_apps.predictor import PredictorOptions
from toque.ray_apps.predictor.deploy.deployment import PredictorReplica, build_predictor
from toque.ray_apps.predictor.deploy.standalone import EndpointRouter
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.recording import Confirmation, Recorder
from toque.ray_apps.predictor.protocol.errors import NotLogged
from toque.registry import Registry, open_store

Ask = Callable[[], Awaitable[httpx.Response]]


@pytest.fixture
def endpoint_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: Any
) -> Callable[[str], ModelEndpoint]:
    """Makes the replica of one model on a real Redis, in a mode."""
    monkeypatch.setattr("toque.ray_apps.predictor.deploy.deployment.tried_first", lambda *_: load_fake_scorer)
    url = f"file://{tmp_path}/store"
    (tmp_path / "model.json").write_text('{"value": 0.25}')
    registry = Registry(open_store(url), actor="ada")
    registry.create_model("late")
    version = registry.create_version("late", path=tmp_path / "model.json", signature=SIGNATURE)
    registry.promote("late", version.version)

    def make(mode: str) -> ModelEndpoint:
        options = {"store_url": url, "redis_url": redis_server.url, "authentication": False, "log_mode": mode}
        return build_predictor("late", PredictorOptions.model_validate(options))

    return make


@asynccontextmanager
async def asked(endpoint: ModelEndpoint) -> AsyncIterator[Ask]:
    app = httpx.ASGITransport(EndpointRouter({"late": endpoint}, endpoint.auth))
    async with httpx.AsyncClient(transport=app, base_url="http://replica") as client:
        yield lambda: client.post("/v2/models/late/infer", json=tensors())
    await endpoint.close()
    await asyncio.to_thread(close_writers)


def in_redis(url: str) -> int:
    states = Stream(redis.Redis.from_url(url), "predictions").states()
    return sum(state.shipped for state in states)


async def test_in_mode_redis_a_row_is_in_redis_before_its_answer_and_without_redis_in_the_file(
    endpoint_of: Callable[[str], ModelEndpoint], redis_server: Any, tmp_path: Path
):
    endpoint = endpoint_of("redis")
    async with asked(endpoint) as ask:
        for count in range(1, 4):
            assert (await ask()).status_code == 200
            assert in_redis(redis_server.url) == count
        answers = await asyncio.gather(*(ask() for _ in range(20)))
        assert {each.status_code for each in answers} == {200}
        assert in_redis(redis_server.url) == 23
        redis_server.kill()
        assert (await ask()).status_code == 200
        log = endpoint.predictor.describe()["log"]
        assert (log["written"], log["unconfirmed"], log["refused"]) == (24, 1, 0)
        redis_server.start()
        until(lambda: in_redis(redis_server.url) == 24)


async def test_in_mode_two_nodes_a_request_is_refused_where_there_is_one_node(
    endpoint_of: Callable[[str], ModelEndpoint], redis_server: Any
):
    endpoint = endpoint_of("two_nodes")
    async with asked(endpoint) as ask:
        answer = await ask()
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "could not be logged on two nodes" in answer.json()["error"]
        assert endpoint.predictor.describe()["log"]["refused"] == 1


async def test_a_replica_that_stops_ships_its_log_first(
    endpoint_of: Callable[[str], ModelEndpoint], redis_server: Any, tmp_path: Path
):
    replica: Any = PredictorReplica.__new__(PredictorReplica.__bases__[0])
    replica._endpoint = endpoint_of("file")
    async with asked(replica._endpoint) as ask:
        answers = await asyncio.gather(*(ask() for _ in range(5)))
        assert {each.status_code for each in answers} == {200}
        await PredictorReplica.__bases__[0].__del__(replica)
    assert drain(open_store(f"file://{tmp_path}/store"), redis_server.url).predictions == 5


class Unconfirmed(MemoryLog):
    """A log that confirms nothing."""

    confirms = True
    why_unconfirmed = "Redis is away"

    async def confirmed(self, number: int, /) -> bool:
        self.confirms = number < 0
        return self.confirms


@pytest.mark.parametrize("mode", ["redis", "two_nodes"])
async def test_what_is_not_confirmed_is_counted_or_refused(mode: str):
    log, strict = Unconfirmed(), mode == "two_nodes"
    confirmation = Confirmation(log, strict=strict)
    recorder = Recorder("m", log, confirmation=confirmation)
    number = record(recorder, "a")
    assert number == 1
    if strict:
        with pytest.raises(NotLogged, match="Redis is away; ask again"):
            await recorder.confirmed(number)
        with pytest.raises(NotLogged):  # before it is written
            record(recorder, "b")
        assert (len(log.payloads), confirmation.refused, confirmation.unconfirmed) == (1, 2, 0)
    else:
        await recorder.confirmed(number)
        assert record(recorder, "b") == 2
        assert (confirmation.refused, confirmation.unconfirmed) == (0, 1)


def test_the_mode_comes_from_the_environment_and_from_the_options(tmp_path: Path):
    environment = {"TOQUE_STORE": f"file://{tmp_path}", "TOQUE_REDIS_URL": "redis://away:1/0"}
    assert PredictorOptions.from_environment(environment).log_mode == "file"
    chosen = environment | {"TOQUE_LOG_MODE": "redis"}
    assert PredictorOptions.from_environment(chosen).log_mode == "redis"
    assert PredictorOptions.from_environment(chosen, log_mode="two_nodes").log_mode == "two_nodes"
    with pytest.raises(ValueError, match="log_mode='redis' needs Redis; set TOQUE_REDIS_URL"):
        PredictorOptions(store_url=f"file://{tmp_path}", log_mode="redis")
    with pytest.raises(ValueError, match="TOQUE_LOG_MODE='both'"):
        PredictorOptions.from_environment(environment | {"TOQUE_LOG_MODE": "both"})
