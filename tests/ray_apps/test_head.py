"""HEAD as GET without its body, whatever the application says, and however long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from toque.ray_apps.middleware import AnswersHead, TracedRequests


async def endless(_: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"more"
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


def text(_: Request) -> Response:
    return PlainTextResponse("hello", headers={"ETag": '"a"'})


async def echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    routes = [
        Route("/text", text, methods=["GET"]),
        Route("/endless", endless, methods=["GET"]),
        Route("/body", echo, methods=["GET"]),
        Route("/post", text, methods=["POST"]),
    ]
    app = AnswersHead(Starlette(routes=routes))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toque") as client:
        yield client


@pytest.mark.parametrize("path", ["/text", "/body", "/none", "/post"])
async def test_a_head_has_the_status_and_headers_of_a_get_and_no_body(http: httpx.AsyncClient, path: str):
    head, get = await http.head(path), await http.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers == get.headers


async def test_an_answer_without_an_end_ends(http: httpx.AsyncClient):
    answer = await asyncio.wait_for(http.head("/endless"), 10)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/text", "/none"])
@pytest.mark.parametrize("sent", [{}, {"X-Request-Id": "order-7"}])
async def test_behind_serve_the_id_of_a_request_is_left_to_it(path: str, sent: dict[str, str]):
    app = TracedRequests(Starlette(routes=[Route("/text", text)]), behind_serve=True)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toque") as client:
        assert "x-request-id" not in (await client.get(path, headers=sent)).headers
