"""uvicorn with coalesced writes: each caller gets its own responses, whole, in order and not late."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.config import HTTP_PROTOCOLS

from toque.ray_apps.predictor.http.bypass import TimedProtocol, middlewares
from toque.ray_apps.predictor.write_coalescing import CoalescingProtocol

BIG = 8 << 20


async def app(scope: Any, receive: Any, send: Any) -> None:
    """`/{n}` answers n after its body; `/stream` in pieces, the second when asked again; `/big` much."""
    message = await receive()
    body = message["body"]
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await released.wait()
        await send({"type": "http.response.body", "body": b"second"})
        return
    if scope["path"] == "/wait":
        await released.wait()
    if scope["path"] == "/fail":
        raise ValueError("a model's fault")
    answer = bytes(BIG) if scope["path"] == "/big" else scope["path"][1:].encode() + b"=" + body
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


released = asyncio.Event()


class Server(uvicorn.Server):
    def install_signal_handlers(self) -> None: ...

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def served(application: Any) -> AsyncIterator[tuple[Server, int]]:
    """An application behind uvicorn, on the loop of the test."""
    global released  # noqa: PLW0603 - of the loop that runs
    released = asyncio.Event()
    config = uvicorn.Config(
        application, port=0, http=CoalescingProtocol, ws="none", lifespan="off", log_level="critical"
    )
    server = Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        async with asyncio.timeout(60):
            while not server.started:  # noqa: ASYNC110 - uvicorn tells it by a flag only
                await asyncio.sleep(0.005)
        yield server, listening.getsockname()[1]
    finally:
        released.set()
        server.should_exit = True
        await asyncio.wait_for(running, 60)


Client = Callable[[Server, int], Awaitable[None]]


def run(client: Client, loop: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), served(app) as (server, port):
            await client(server, port)

    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split(b" ")[1]), await reader.readexactly(length)


def post(path: str, body: bytes = b"", *fields: str) -> bytes:
    head = [f"POST /{path} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_each_of_many_gets_its_own_answers_in_order(loop: str) -> None:
    async def ask(port: int, caller: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for n in range(0, 60, 3):
            texts = [f"{caller}-{i}" for i in range(n, n + 3)]
            writer.write(b"".join(post(text, text.encode()) for text in texts))  # three at once
            for text in texts:
                assert await answer(reader) == (200, f"{text}={text}".encode())
        writer.close()

    async def many(_server: Server, port: int) -> None:
        await asyncio.gather(*(ask(port, caller) for caller in range(32)))

    run(many, loop)


def test_a_piece_of_an_answer_does_not_wait_for_the_next(loop: str) -> None:
    async def stream(_server: Server, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        for _, other in others:
            other.write(post("wait"))
        writer.write(post("stream"))
        assert b"first" in await reader.readuntil(b"first\r\n")
        released.set()
        assert await reader.readuntil(b"0\r\n\r\n") == b"6\r\nsecond\r\n0\r\n\r\n"
        for waiting, _ in others:
            assert await answer(waiting) == (200, b"wait=")

    run(stream, loop)


def test_an_interim_response_leaves_too(loop: str) -> None:
    async def hesitate(_server: Server, port: int) -> None:
        others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, other in others:
            other.write(post("wait"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for n in range(5):
            writer.write(post(f"{n}"))
            await answer(reader)
            writer.write(post(f"{n}", b"later", "Expect: 100-continue")[: -len(b"later")])
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"later")
            assert await answer(reader) == (200, f"{n}=later".encode())

    run(hesitate, loop)


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (post("x", b"y", "Connection: close"), 200, b"x=y"),
        (b"no HTTP at all\r\n\r\n", 400, b"Invalid HTTP request received."),
        (post("fail"), 500, b"Internal Server Error"),
    ],
)
def test_a_connection_that_is_closed_has_its_answer_first(
    loop: str, request_: bytes, status: int, body: bytes
) -> None:
    async def ask(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_)
        assert await answer(reader) == (status, body)
        assert await reader.read() == b""
        writer.close()

    async def many(_server: Server, port: int) -> None:
        await asyncio.gather(*(ask(port) for _ in range(16)))

    run(many, loop)


def test_a_client_that_does_not_read_holds_up_no_other_and_gets_all_of_it(loop: str) -> None:
    async def read_late(_server: Server, port: int) -> None:
        slow = [await asyncio.open_connection("127.0.0.1", port, limit=1 << 10) for _ in range(4)]
        for _, writer in slow:
            writer.write(post("big") + post("after"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for n in range(100):
            writer.write(post(f"{n}"))
            assert await answer(reader) == (200, f"{n}=".encode())
        for late, _ in slow:
            assert await answer(late) == (200, bytes(BIG))
            assert await answer(late) == (200, b"after=")

    run(read_late, loop)


def test_a_client_that_hangs_up_does_no_harm(loop: str) -> None:
    async def hang_up(server: Server, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for n in range(50):
            gone = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            for _, other in gone:
                other.write(post("gone"))
                other.transport.abort()
            writer.write(post(f"{n}"))
            assert await answer(reader) == (200, f"{n}=".encode())
        writer.close()
        async with asyncio.timeout(60):
            while server.server_state.connections or server.server_state.tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    run(hang_up, loop)


def test_a_drain_answers_what_has_come_in(loop: str) -> None:
    async def drain(server: Server, port: int) -> None:
        waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(16)]
        for _, writer in waiting:
            writer.write(post("wait"))
        async with asyncio.timeout(60):
            while len(server.server_state.tasks) < len(waiting):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        server.should_exit = True
        asyncio.get_running_loop().call_later(0.2, released.set)
        for reader, _ in waiting:
            assert await answer(reader) == (200, b"wait=")
            assert await reader.read() == b""

    run(drain, loop)


def test_the_servers_of_serve_coalesce_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    middlewares()
    config = uvicorn.Config(app)  # as Serve makes it
    config.load()
    assert config.http_protocol_class is TimedProtocol
