"""Requests that do not wait for each other, against a server that says when it answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from toque.load.benchmarks.open_loop import ask_steadily


class Stub:
    """Answers each request with 200, or what `status` says; the first `held` of them only once the rest came."""

    def __init__(self, *, held: int = 0, status: str = "200 OK", hang_up_after: int | None = None) -> None:
        self.held, self.status, self.hang_up_after = held, status, hang_up_after
        self.bodies: list[bytes] = []
        self.came = threading.Event()
        self.all = asyncio.Event()
        self.expected = 0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(60)

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/infer"
            self.end = asyncio.Event()
            started.set()
            await self.end.wait()
            server.close()

        self._loop.run_until_complete(serve())

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"Content-Length" in line)
            self.bodies.append(await reader.readexactly(size))
            if len(self.bodies) == self.hang_up_after:
                break
            if len(self.bodies) == self.expected:
                self.all.set()
            if len(self.bodies) <= self.held:
                await self.all.wait()
            for part in (f"HTTP/1.1 {self.status}\r\ncontent-length: 4\r\n\r\nan", "sw"):  # in two pieces
                writer.write(part.encode())
                await writer.drain()
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.end.set)
        self._thread.join(60)


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    made: list[Stub] = []
    yield made
    for stub in made:
        stub.close()


def test_a_server_that_stalls_is_asked_on_and_the_wait_is_counted(stubs: list[Stub]):
    stub = Stub(held=3)
    stubs.append(stub)
    stub.expected = 50
    found = ask_steadily(stub.url, {"X": "y"}, b"row", rate=100, seconds=0.5, connections=64)
    assert (len(found.latencies_ms), found.failed) == (50, 0)
    assert stub.bodies == [b"row"] * 50
    due_ms = np.cumsum(np.random.default_rng(7).exponential(10, size=50))
    # three were answered when the last had come only: they waited from when they were due until then, as did the last
    assert (found.latencies_ms + due_ms >= due_ms[-1] - 1e-6).sum() >= 4
    assert (found.late_ms >= 0).all()


def test_what_waits_for_a_connection_waits_from_when_it_was_due(stubs: list[Stub]):
    stubs.append(Stub())
    found = ask_steadily(stubs[0].url, {}, b"row", rate=2_000, seconds=0.1, connections=1)
    assert (len(found.latencies_ms), found.failed) == (200, 0)
    assert (found.latencies_ms >= found.late_ms).all()
    assert "200 requests at 2000/s" in str(found)


def test_answers_that_are_no_200_and_a_connection_that_ends_are_failures(stubs: list[Stub]):
    stubs += [Stub(status="503 Service Unavailable"), Stub(hang_up_after=3)]
    refused = ask_steadily(stubs[0].url, {}, b"row", rate=500, seconds=0.02, connections=4)
    assert refused.failed == 10
    ended = ask_steadily(stubs[1].url, {}, b"row", rate=500, seconds=0.02, connections=1)
    assert ended.failed == 1  # the connection is opened anew
    assert len(ended.latencies_ms) == 10
