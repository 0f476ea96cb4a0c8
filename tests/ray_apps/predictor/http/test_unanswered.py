"""Requests that an application leaves without a response get one that says what to do, in place of a plain 500."""

import logging
from typing import Any

import httpx
import pytest

from toque.ray_apps.predictor.http.bypass import App, BypassMiddleware


async def silent(scope: Any, receive: Any, send: Any) -> None: ...


async def failing(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("no flour")


async def breaking_off(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("no flour")


async def ask(app: App, path: str) -> httpx.Response:
    transport = httpx.ASGITransport(app=BypassMiddleware(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
        return await client.post(path, json={})


@pytest.mark.parametrize("app", [silent, failing])
@pytest.mark.parametrize("path", ["/functions/bake", "/v2/models/late/infer"])
async def test_a_request_without_a_response_may_have_been_carried_out(app: App, path: str) -> None:
    answer = await ask(app, path)
    assert (answer.status_code, answer.headers["content-type"]) == (502, "application/json")
    assert "is not known" in answer.json()["error"]


@pytest.mark.parametrize("app", [silent, failing])
async def test_clients_of_language_models_are_told_in_their_shape_to_come_again(app: App) -> None:
    answer = await ask(app, "/v1/chat/completions")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["type"] == "server_error"


async def test_what_failed_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "ray.serve"):
        await ask(failing, "/functions/bake")
    (record,) = caplog.records
    assert "POST /functions/bake failed" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "no flour"


async def test_a_response_that_breaks_off_is_no_second_one() -> None:
    with pytest.raises(RuntimeError, match="no flour"):
        await ask(breaking_off, "/functions/bake")
