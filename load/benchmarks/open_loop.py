"""Open loop of one process that is precise to a tenth of a millisecond, at rates that locust does not reach in one process.

A request of locust takes 200 µs of a core, so that 70 % of what a predictor answers, some 6,000 requests/s, would be locust's own latency;
this client, written on sockets, takes 75 µs, and root may give it real-time priority. Scenarios are sent by locust. The
moments are drawn beforehand, as of many callers who do not know of each other (a Poisson process, seeded), and an answer is timed from
when its request was due: a caller that waits for an answer before it asks again is silent while a server stalls, and never sees it.
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

_SWEEP_S = 0.05  # how often patience is looked at, and between two attempts to connect
_PATIENCE_S = 30.0  # after which a request without a connection or an answer has failed
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Result of an open loop.

    latencies_ms: from when each request was due; late_ms: how long after that it was sent.
    """

    rate: float
    latencies_ms: Floats
    late_ms: Floats
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
    request = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
    due_s = np.cumsum(np.random.default_rng(7).exponential(1 / rate, size=max(1, round(rate * seconds))))
    gc.collect()
    gc.freeze()  # what is imported here takes 80 ms to look through, in which nobody would be asked
    try:
        # select() waits for microseconds, epoll and uvloop for milliseconds.
        with asyncio.Runner(
            loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
        ) as runner:
            caller = runner.run(
                _send(parts.hostname or "", parts.port or 80, request.encode() + body, due_s, connections)
            )
    finally:
        gc.unfreeze()
    _, latencies_s, late_s = np.array(sorted(caller.rows)).T
    return OpenLoop(rate, latencies_s * 1e3, late_s * 1e3, caller.failed)


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


async def _send(host: str, port: int, request: bytes, due_s: Floats, connections: int) -> _Caller:
    caller = _Caller(host, port, request, deque(due_s.tolist()))
    for _ in range(connections):
        await caller.open()
    caller.begin = asyncio.get_running_loop().time()
    caller.go_on()
    sweeping = asyncio.create_task(caller.sweep())
    await caller.done.wait()
    sweeping.cancel()
    for connection in list(caller.all):
        connection.transport.close()
    return caller


class _Caller:
    """State of a load under way: what is next, what waits for a connection, what is in flight.

    rows: of each request when it was due, its latency, and how late it was sent, in seconds.
    """

    def __init__(self, host: str, port: int, request: bytes, upcoming: deque[float]) -> None:
        self.rows: list[tuple[float, float, float]] = []
        self.failed, self.begin, self.done = 0, 0.0, asyncio.Event()
        self.all: set[_Connection] = set()
        self._host, self._port, self._request, self._upcoming = host, port, request, upcoming
        self._left = len(upcoming)
        self._free: deque[_Connection] = deque()
        self._waiting: deque[float] = deque()
        self._loop = asyncio.get_running_loop()
        self._reconnecting: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open a connection to the server. Raises: OSError."""
        _, connection = await self._loop.create_connection(lambda: _Connection(self), self._host, self._port)
        self.all.add(connection)
        self._free.append(connection)

    def go_on(self) -> None:
        """Take what is due, send what can be sent, and come back when the next is due."""
        now = self._loop.time() - self.begin
        while self._upcoming and self._upcoming[0] <= now:
            self._waiting.append(self._upcoming.popleft())
        self._send()
        if self._upcoming:
            self._loop.call_at(self.begin + self._upcoming[0], self.go_on)

    def _send(self) -> None:
        while self._waiting and self._free:
            connection = self._free.popleft()
            connection.times = self._waiting.popleft(), self._loop.time() - self.begin
            connection.received = b""
            connection.transport.write(self._request)

    def ended(self, times: tuple[float, float], connection: _Connection | None, *, failed: bool) -> None:
        """Record the end of a request, and use its connection for the next one if that is still open."""
        due_s, sent_s = times
        self.rows.append((due_s, self._loop.time() - self.begin - due_s, sent_s - due_s))
        self.failed += failed
        self._left -= 1
        if connection in self.all:
            self._free.append(connection)
        self._send()
        if not self._left:
            self.done.set()

    def lost(self, connection: _Connection) -> None:
        """Replace a connection that ended."""
        self.all.discard(connection)
        with contextlib.suppress(ValueError):
            self._free.remove(connection)
        if not self.done.is_set():
            task = self._loop.create_task(self._reconnect())
            self._reconnecting.add(task)
            task.add_done_callback(self._reconnecting.discard)

    async def _reconnect(self) -> None:
        while not self.done.is_set():
            try:
                await self.open()
            except OSError:
                await asyncio.sleep(_SWEEP_S)
            else:
                self._send()
                return

    async def sweep(self) -> None:
        """Give up, again and again, what took too long: in a connection, and waiting for one."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            before = self._loop.time() - self.begin - _PATIENCE_S
            for connection in [one for one in self.all if one.times and one.times[1] < before]:
                connection.transport.abort()
            while self._waiting and self._waiting[0] < before:
                due_s = self._waiting.popleft()
                self.ended((due_s, due_s + _PATIENCE_S), None, failed=True)


class _Connection(asyncio.Protocol):
    """Persistent connection: a request, its answer, the next request. times: when its request was due and sent, None without one."""

    transport: asyncio.WriteTransport

    def __init__(self, caller: _Caller) -> None:
        self._caller, self.received = caller, b""
        self.times: tuple[float, float] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - a stream's is one
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        if not end or self.times is None:
            return
        length = next(
            int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        if len(rest) >= length:
            times, self.times = self.times, None
            if b"connection: close" in head.lower():
                self._caller.all.discard(self)
            self._caller.ended(times, self, failed=b" 200 " not in head[:13])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        self._caller.lost(self)
        if self.times is not None:
            times, self.times = self.times, None
            self._caller.ended(times, None, failed=True)
