"""Open loop: one request so many times a second, independent of earlier answers, timed from when it was due.

A caller that waits for an answer before it asks again is silent while a server stalls, and never sees the stall. Here
the moments are drawn beforehand, as of many callers who do not know of each other (a Poisson process, seeded). Written on
sockets: a general client takes more of a core than the server that it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import selectors
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

__all__ = ["OpenLoop", "ask_steadily", "at_once"]


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Result of an open loop.

    latencies_ms: from when each request was due; late_ms: how long after that it was sent.
    """

    rate: float
    latencies_ms: npt.NDArray[np.float64]
    late_ms: npt.NDArray[np.float64]
    failed: int

    @property
    def p99_of_a_second_ms(self) -> float:
        """Median over seconds of each second's p99, which ignores stalls of the machine.

        A neighbour that takes both cores for 50 ms is a p99 of 10 s at any rate, whoever answers.
        """
        seconds = np.array_split(self.latencies_ms, max(1, round(len(self.latencies_ms) / self.rate)))
        return float(np.median([np.quantile(second, 0.99) for second in seconds]))

    def __str__(self) -> str:
        p50, p99 = np.quantile(self.latencies_ms, [0.5, 0.99])
        of_a_second = self.p99_of_a_second_ms
        return (
            f"{len(self.latencies_ms)} requests at {self.rate:.0f}/s: p50 {p50:.2f} ms, p99 {p99:.2f} ms, {p99 / p50:.1f} times; "
            f"of the median second {of_a_second:.2f} ms, {of_a_second / p50:.1f} times; {self.failed} failed; "
            f"sent late by {np.median(self.late_ms):.2f} ms (p50), {np.max(self.late_ms):.1f} ms at most"
        )


def ask_steadily(
    url: str, headers: Mapping[str, str], body: bytes, *, rate: float, seconds: float, connections: int = 64
) -> OpenLoop:
    """POST `body` to `url` about `rate` times a second for so long. Raises: OSError if nobody listens there."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    rng = np.random.default_rng(7)
    due_s = np.cumsum(rng.exponential(1 / rate, size=max(1, round(rate * seconds))))
    caller = _Caller(request, due_s)
    gc.collect()
    gc.freeze()  # what is imported here takes 80 ms to look through, in which nobody would be asked
    try:
        with asyncio.Runner(loop_factory=_precise) as runner:
            runner.run(caller.run(parts.hostname or "", parts.port or 80, connections))
    finally:
        gc.unfreeze()
    return OpenLoop(rate, caller.latencies_s * 1e3, caller.late_s * 1e3, caller.failed)


@contextlib.contextmanager
def at_once() -> Iterator[bool]:
    """Run the block with real-time priority if allowed; yields whether it was, which root may.

    Else what it waits for a CPU, to send and to read, counts as the server's time. For a few requests a second: with
    thousands it takes the CPU from the server.
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)


def _precise() -> asyncio.SelectorEventLoop:
    """Make an event loop on select(), which waits for microseconds; epoll and uvloop wait for milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class _Caller:
    """Caller that sends each due request on a free connection."""

    def __init__(self, request: bytes, due_s: npt.NDArray[np.float64]) -> None:
        self.request, self.due_s = request, due_s
        self.latencies_s, self.late_s = np.zeros(len(due_s)), np.zeros(len(due_s))
        self.failed = 0
        self.left = len(due_s)
        self.free: deque[_Connection] = deque()
        self.waiting: deque[int] = deque()
        self.done = asyncio.Event()

    async def run(self, host: str, port: int, connections: int) -> None:
        loop = asyncio.get_running_loop()
        opened = [
            await loop.create_connection(lambda: _Connection(self), host, port) for _ in range(connections)
        ]
        self.free.extend(protocol for _, protocol in opened)
        self.begin = loop.time()
        self._go_on(0)
        await self.done.wait()
        for transport, _ in opened:
            transport.close()

    def _go_on(self, next_: int) -> None:
        """Send all due requests, and schedule the next round."""
        loop = asyncio.get_running_loop()
        while next_ < len(self.due_s) and self.due_s[next_] <= loop.time() - self.begin:
            self.waiting.append(next_)
            next_ += 1
        self.send()
        if next_ < len(self.due_s):
            loop.call_at(self.begin + self.due_s[next_], self._go_on, next_)

    def send(self) -> None:
        """Send as many requests as there are free connections."""
        now = asyncio.get_running_loop().time() - self.begin
        while self.waiting and self.free:
            number = self.waiting.popleft()
            self.late_s[number] = now - self.due_s[number]
            self.free.popleft().send(number)

    def answered(self, connection: _Connection, number: int, *, ok: bool) -> None:
        """Record an answer and free its connection."""
        self.latencies_s[number] = asyncio.get_running_loop().time() - self.begin - self.due_s[number]
        self.failed += not ok
        self.left -= 1
        if self.left == 0:
            self.done.set()
            return
        self.free.append(connection)
        self.send()


class _Connection(asyncio.Protocol):
    """Persistent connection: a request, its answer, the next request."""

    def __init__(self, caller: _Caller) -> None:
        self._caller, self._number, self._got = caller, -1, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - a stream's is one
        self._transport = transport

    def send(self, number: int) -> None:
        """Send the request of that number."""
        self._number, self._got = number, b""
        self._transport.write(self._caller.request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, rest = self._got.partition(b"\r\n\r\n")
        if end and len(rest) >= _length_of(head):
            self._caller.answered(self, self._number, ok=b" 200 " in head[:13])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if (
            not self._caller.done.is_set()
        ):  # what it had sent, and all that is left, cannot be told from failed
            self._caller.failed += self._caller.left
            self._caller.done.set()


def _length_of(head: bytes) -> int:
    """Read the length of the body from the head. Raises: ValueError if it says none."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise ValueError(f"an answer without Content-Length cannot be read: {head[:200]!r}")
