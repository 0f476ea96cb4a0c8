"""Callers that send or read too slowly are disconnected, and others are not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from toque.ray_apps.predictor.http import bypass
from toque.ray_apps.predictor.http.bypass import MAX_HEAD_BYTES, TimedProtocol

HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"
LARGE = 64 << 20


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HEAD_S": 0.4, "GRACE_S": 0.4, "_PERIOD_S": 0.1, "MAX_CONNECTIONS": 8}.items():
        monkeypatch.setattr(bypass, name, value)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the size of the body; at /large with much, at /slow after more than the deadlines."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(1.2)
    body = bytes(LARGE) if scope["path"] == "/large" else b"%d" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def server() -> uvicorn.Server:
    config = uvicorn.Config(app, http=TimedProtocol, ws="none", lifespan="off", log_level="critical")
    made = uvicorn.Server(config)
    made.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    return made


@pytest.fixture
async def port(server: uvicorn.Server) -> AsyncIterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve(sockets=[listening]))
    yield listening.getsockname()[1]
    server.should_exit = True
    await running


async def said(reader: asyncio.StreamReader, within_s: float = 60) -> bytes:
    """All that the server says until it closes the connection."""
    async with asyncio.timeout(within_s):
        with contextlib.suppress(ConnectionError):
            return await reader.read()
    return b""


@pytest.mark.parametrize(
    ("begun", "answer"),
    [
        (b"", b""),
        (b"POST / HT", b"HTTP/1.1 408"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx-", b"HTTP/1.1 408"),
        (HEAD, b"HTTP/1.1 408"),
        (HEAD + b"a" * 100, b"HTTP/1.1 408"),
    ],
    ids=["nothing", "line", "headers", "no body", "body"],
)
async def test_a_caller_that_stops_is_disconnected(port: int, begun: bytes, answer: bytes):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(begun)
    assert (await said(reader))[:12] == answer
    writer.close()


async def test_a_trickle_keeps_no_connection_open(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD)
    ended = asyncio.ensure_future(said(reader))
    while not ended.done():
        writer.write(b"a")
        await asyncio.sleep(0.02)
    assert (await ended)[:12] in {
        b"HTTP/1.1 408",
        b"",
    }  # a reset may overtake the answer, as it goes on writing
    writer.close()


async def test_headers_without_an_end_are_refused(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bypass, "HEAD_S", 60.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\n")
    for i in range(MAX_HEAD_BYTES // 1_000 + 2):
        writer.write(b"x-%d: %s\r\n" % (i, b"a" * 1_000))
        await asyncio.sleep(0)
    answer = await said(reader)
    assert answer[:12] in {b"HTTP/1.1 431", b""}  # a reset may overtake the answer
    writer.close()


async def test_a_caller_that_does_not_read_is_disconnected(
    server: uvicorn.Server, port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bypass, "BYTES_PER_S", LARGE)  # else it has minutes for so much
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 10)
    writer.write(b"POST /large HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    assert server.server_state.connections
    async with asyncio.timeout(60):
        while server.server_state.connections:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.05)
    writer.close()


async def test_a_steady_body_and_a_slow_answer_are_waited_for(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /slow HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 500000\r\n\r\n")
    for _ in range(10):
        writer.write(b"a" * 50_000)
        await asyncio.sleep(0.06)
    assert (await said(reader)).endswith(b"500000")
    writer.close()


async def test_connections_beyond_the_bound_are_closed(port: int):
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
    early = 0
    for reader, _ in opened:
        with contextlib.suppress(TimeoutError):
            early += await said(reader, 0.05) == b""
    assert early >= 4
    for _, writer in opened:
        writer.close()
