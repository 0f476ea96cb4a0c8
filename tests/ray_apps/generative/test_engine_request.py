"""Requests that an engine does not answer: whose fault that is, and requests that ask nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from toque.functions.generative import EngineSettings, Prompt
from toque.functions.generative.engines.programs import LlamaCpp
from toque.ray_apps.generative.answering.engine_request import engine_body, engine_refusal
from toque.ray_apps.generative.openai.errors import ApiRefusal
from toque.ray_apps.generative.openai.requests import CHAT, parse_request

FAULT = orjson.dumps({"error": {"message": "boom", "type": "server_error"}})
ODD = orjson.dumps({"error": {"message": "roles must alternate", "type": "server_error"}})


@dataclass
class FakeEngine:
    """What the routes of an engine answer by which a prompt is made and counted."""

    template: tuple[int, bytes] = (200, b'{"prompt": "Hi"}')
    tokens: tuple[int, bytes] = (200, b'{"tokens": [1]}')
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        status, body = self.template if request.path == "/apply-template" else self.tokens
        return web.Response(status=status, body=body, content_type="application/json")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def process(engine: FakeEngine) -> AsyncIterator[Any]:
    app = web.Application()
    app.router.add_post("/{path}", engine.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession() as client:
        yield SimpleNamespace(engine=LlamaCpp(), client=client, base=f"http://{host}:{port}")
    await runner.cleanup()


async def refused(process: Any, body: dict[str, Any], status: int = 500) -> tuple[int, bool]:
    refusal = await engine_refusal(process, body, status, FAULT)
    return refusal.status, refusal.retry_after_s is not None


MESSAGES = {"messages": [{"role": "assistant", "content": "Hi"}]}


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_messages_of_which_no_prompt_can_be_made_are_the_callers_fault(
    process: Any, engine: FakeEngine, status: int
):
    engine.template = (500, ODD)
    refusal = await engine_refusal(process, MESSAGES, status, FAULT)
    assert (refusal.status, refusal.retry_after_s) == (400, None)
    assert "roles must alternate" in str(refusal)


async def test_a_fault_of_an_engine_that_makes_the_prompt_stays_one(process: Any, engine: FakeEngine):
    assert await refused(process, MESSAGES) == (503, True)
    engine.tokens = (500, FAULT)
    assert await refused(process, MESSAGES) == (503, True)


async def test_an_engine_that_has_gone_is_no_fault_of_the_caller(process: Any):
    process.base = "http://127.0.0.1:9"
    assert await refused(process, MESSAGES) == (503, True)


async def test_what_has_no_messages_or_is_a_refusal_already_costs_no_more_requests(
    process: Any, engine: FakeEngine
):
    assert await refused(process, {"prompt": "Hi"}) == (503, True)
    assert await refused(process, MESSAGES, 400) == (400, False)
    assert engine.asked == []


@pytest.mark.parametrize(
    ("prompt", "messages", "asks"),
    [
        ({}, [], False),
        ({}, [{"role": "system", "content": "Be brief."}], False),
        ({}, [{"role": "user", "content": "Hi"}], True),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, [], False),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
            [],
            True,
        ),
    ],
)
def test_a_chat_in_which_nothing_is_asked_is_refused(prompt: Any, messages: Any, *, asks: bool):
    version: Any = SimpleNamespace(
        prompt=Prompt.model_validate(prompt), settings=EngineSettings(max_tokens=7)
    )
    ask = parse_request(CHAT, orjson.dumps({"model": "m", "messages": messages}))
    if asks:
        assert engine_body(ask, version)["max_tokens"] == 7
        return
    with pytest.raises(ApiRefusal, match="nothing is asked"):
        engine_body(ask, version)
