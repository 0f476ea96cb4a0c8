"""From a request to a roll-back without Ray: a replica's counts go through a real Redis to the reflexes, by the wall clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ray_apps.predictor.conftest import SIGNATURE, load_fake_scorer, tensors
from toque.functions.monitoring import alarms
from toque.functions.prediction_log import close_writers
from toque.functions.reflexes import Reflexes, reflexes_of
from toque.functions.rollout import RolloutPolicy, start_rollout
from toque.functions.runtime.context import Context, use_context
from toque.ray_apps.predictor import PredictorOptions
from toque.ray_apps.predictor.deploy.deployment import build_predictor
from toque.ray_apps.predictor.deploy.standalone import EndpointRouter
from toque.registry import Registry, open_store

AT_ONCE = RolloutPolicy(
    promote_by="service", ramp_hold=timedelta(0), error_margin=0.9, canary_share=0.5, min_shadow_share=0.1
)


@pytest.fixture
def used(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A platform with a champion and a second version of one model."""
    monkeypatch.setattr("toque.ray_apps.predictor.deploy.deployment.tried_first", lambda *_: load_fake_scorer)
    url = f"file://{tmp_path}/store"
    (tmp_path / "model.json").write_text('{"value": 0.25}')
    registry = Registry(open_store(url), actor="ada")
    registry.create_model("live")
    for _ in range(2):
        registry.create_version("live", path=tmp_path / "model.json", signature=SIGNATURE)
    registry.promote("live", 1)
    return Context(store=open_store(url), store_url=url, redis_url=redis_server.url, actor="ticker")


async def ask_until(client: httpx.AsyncClient, reflexes: Reflexes, there: Callable[[], bool]) -> None:
    """Ask, and let the reflexes judge now and then, until something is so."""
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        for _ in range(10):
            await client.post("/v2/models/live/infer", json=tensors())
        await asyncio.sleep(0.1)
        await asyncio.to_thread(reflexes.tick)


async def test_a_canary_that_fails_over_http_is_rolled_back_and_an_alarm_raised(used: Context) -> None:
    options = {"store_url": used.store_url, "redis_url": used.redis_url, "authentication": False}
    endpoint = build_predictor("live", PredictorOptions.model_validate(options | {"poll_s": 0.1}))
    registry, reflexes = used.registry(), reflexes_of(used)
    assert reflexes is not None
    with use_context(used):
        start_rollout("live", 2, AT_ONCE, "a try")
    app = httpx.ASGITransport(EndpointRouter({"live": endpoint}, endpoint.auth))
    async with httpx.AsyncClient(transport=app, base_url="http://replica") as client:
        await ask_until(client, reflexes, lambda: len(registry.traffic("live").arms) == 2)
        broken: Any = endpoint.predictor.engine.find(2)
        broken._scorer.fail = "predict"
        await ask_until(client, reflexes, lambda: registry.traffic("live").versions == (1,))
    await endpoint.close()
    await asyncio.to_thread(close_writers)
    with use_context(used):
        raised = alarms("live").all()
    assert [(one.monitor, one.version) for one in raised] == [("rollout", 2)]
    assert "live_errors" in raised[0].text
