"""The proxy's HTTP client: connections are kept, one that ended is noticed, and a request given up ends its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from toque.ray_apps.predictor.grpc import HttpModels
from toque.ray_apps.predictor.grpc.call import UnreachableError

OK = b"HTTP/1.1 200 OK\r\nX-Name: a\r\ncontent-length: 2\r\n\r\nhi"
Reply = Callable[[int, int], bytes]


class Server:
    """Answers request `n` of connection `c` with `reply(c, n)`, in pieces of `piece` bytes; b"" ends the connection."""

    def __init__(self, reply: Reply, piece: int = 1 << 16) -> None:
        self.reply, self.piece = reply, piece
        self.connections = self.open = 0
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        mine, count = self.connections, 0
        self.open += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                count += 1
                answer = self.reply(mine, count)
                if not answer:
                    break
                for at in range(0, len(answer), self.piece):
                    writer.write(answer[at : at + self.piece])
                    await writer.drain()
        self.open -= 1
        writer.close()


@contextlib.asynccontextmanager
async def models_of(server: Server) -> AsyncIterator[HttpModels]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    models = HttpModels(f"http://127.0.0.1:{port}")
    try:
        yield models
    finally:
        await models.close()
        listening.close()


async def request(models: HttpModels) -> tuple[int, bytes]:
    status, _, body = await models.request("GET", "/x%2Fy", {b"a": b"b"})
    return status, body


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
async def test_answers_come_whole_over_one_connection(piece: int):
    server = Server(lambda *_: OK, piece)
    async with models_of(server) as models:
        for _ in range(3):
            assert await request(models) == (200, b"hi")
    assert server.connections == 1
    assert b"GET /x%2Fy HTTP/1.1\r\n" in server.heads[0]
    assert b"a: b\r\n" in server.heads[0]


async def test_chunked_answers_and_a_100_before_them_are_read():
    chunked = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 X\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"
    async with models_of(Server(lambda *_: chunked)) as models:
        assert await request(models) == (404, b"hi")


async def test_a_kept_connection_that_ended_meanwhile_is_replaced():
    server = Server(lambda _, request: OK if request == 1 else b"")
    async with models_of(server) as models:
        for _ in range(3):
            assert await request(models) == (200, b"hi")
    assert server.connections == 3


async def test_a_server_that_wants_no_more_requests_gets_a_new_connection():
    server = Server(lambda *_: OK.replace(b"X-Name: a", b"connection: close"))
    async with models_of(server) as models:
        for _ in range(2):
            assert await request(models) == (200, b"hi")
    assert server.connections == 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [(lambda *_: b"", "disconnected"), (lambda *_: b"SSH-2.0\r\n\r\n", "http://127.0.0.1")],
)
async def test_no_answer_is_an_error(reply: Reply, words: str):
    async with models_of(Server(reply)) as models:
        with pytest.raises(UnreachableError, match=words):
            await request(models)


async def test_a_request_that_is_given_up_ends_its_connection():
    server = Server(lambda *_: OK[:-1])
    async with models_of(server) as models:
        asked = asyncio.ensure_future(request(models))
        async with asyncio.timeout(60):
            while not server.open:  # noqa: ASYNC110 - the other end of the socket
                await asyncio.sleep(0.01)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            while server.open:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    assert server.connections == 1


async def test_an_answer_that_is_cut_off_is_an_error():
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(cut)
        writer.close()

    server = Server(lambda *_: b"")
    server.serve = serve  # type: ignore[method-assign]
    async with models_of(server) as models:
        with pytest.raises(UnreachableError, match="not completed"):
            await request(models)


async def test_nobody_there_is_an_error():
    with pytest.raises(UnreachableError, match="Cannot connect"):
        await request(HttpModels("http://127.0.0.1:9"))


@pytest.mark.parametrize("url", ["https://a:1", "http://a", "a:1"])
def test_an_address_that_is_none_is_refused(url: str):
    with pytest.raises(ValueError, match="http://host:port"):
        HttpModels(url)
