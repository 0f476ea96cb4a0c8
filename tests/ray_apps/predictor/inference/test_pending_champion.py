"""Requests that come while the first champion is being loaded: they wait for it, within bounds, and for nothing that will not come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.ray_apps.predictor.conftest import ServedModel, load_fake_scorer, tensors
from tests.waiting import until
from toque.ray_apps.predictor.inference.caller import Caller
from toque.ray_apps.predictor.protocol.errors import CallerGone
from toque.ray_apps.predictor.protocol.json import decode_request
from toque.ray_apps.predictor.versions.engine import PendingChampion


class Load:
    """The load of a version, which ends when `end` is called. begun: whether it has begun."""

    def __init__(self) -> None:
        self.begun, self._ended = threading.Event(), threading.Event()

    def end(self) -> None:
        self._ended.set()

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        assert self._ended.wait(60)
        return load_fake_scorer(*arguments)


@pytest.fixture
def load() -> Load:
    return Load()


@pytest.fixture
async def served(make_served_model: Callable[..., ServedModel], load: Load) -> AsyncIterator[ServedModel]:
    made = make_served_model()
    made.engine._loader = load
    yield made
    load.end()
    await made.predictor.close()
    await made.client.aclose()


async def begin(served: ServedModel, load: Load, **document: Any) -> asyncio.Future[None]:
    """Promote a version, whose load begins."""
    served.registry.promote("late", served.version(**document))
    served.engine.follow_once()
    loading = asyncio.get_running_loop().run_in_executor(None, served.engine.load_wanted)
    await asyncio.to_thread(load.begun.wait, 60)
    return loading


def ask(served: ServedModel, **headers: str) -> asyncio.Task[httpx.Response]:
    return asyncio.ensure_future(served.client.post("/infer", json=tensors(), headers=headers))


async def waits(served: ServedModel) -> None:
    """Wait until a request waits for the champion."""
    await asyncio.to_thread(until, lambda: served.predictor.pending_champion._looking)


async def test_requests_that_come_during_the_load_are_answered_by_it(served: ServedModel, load: Load) -> None:
    loading = await begin(served, load)
    asked = [ask(served) for _ in range(40)]
    await waits(served)
    load.end()
    assert {(await each).status_code for each in asked} == {200}
    await loading


async def test_a_load_that_fails_is_told_at_once_with_its_reason(served: ServedModel, load: Load) -> None:
    loading = await begin(served, load, fail="load")
    asked = ask(served)
    await waits(served)
    load.end()
    await loading
    for answer in (await asked, await ask(served)):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "version 1, the champion, cannot answer: late@1 cannot be served: not a model" in answer.text


async def test_a_request_waits_no_longer_than_its_deadline(served: ServedModel, load: Load) -> None:
    await begin(served, load)
    assert (await ask(served, **{"x-request-timeout-ms": "30"})).status_code == 504


async def test_a_caller_who_leaves_is_not_waited_for(served: ServedModel, load: Load) -> None:
    await begin(served, load)
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    request = decode_request(b'{"inputs": []}', None)
    asked = asyncio.ensure_future(served.predictor.infer(request, caller=Caller(receive)))
    await waits(served)
    left.set()
    with pytest.raises(CallerGone):
        await asked


async def test_a_load_that_takes_too_long_is_told(served: ServedModel, load: Load) -> None:
    await begin(served, load)
    served.predictor.pending_champion = PendingChampion(served.engine, patience_s=0.05)
    answer = await ask(served)
    assert answer.status_code == 503
    assert "version 1, the champion, cannot answer: it is not loaded yet; try again soon" in answer.text


@pytest.mark.parametrize("versions", [0, 1])
async def test_where_nothing_is_promoted_nobody_waits(served: ServedModel, versions: int) -> None:
    for _ in range(versions):
        served.version()
    served.engine.follow_once()
    answer = await ask(served)
    assert (answer.status_code, "promote one of its versions" in answer.text) == (503, True)


async def test_while_the_next_champion_is_loaded_the_one_before_answers(
    served: ServedModel, load: Load
) -> None:
    first = Load()
    first.end()
    served.engine._loader = first
    await (await begin(served, first))
    served.engine._loader = load
    loading = await begin(served, load)
    assert (await ask(served)).json()["model_version"] == "1"
    load.end()
    await loading
    assert (await ask(served)).json()["model_version"] == "2"
