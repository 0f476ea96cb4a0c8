"""Client of some hundred persistent connections that sends each request when it is due, whatever became of those before.

Written on sockets: a general client takes more of a core than the server that it asks. A caller that waits for an answer before
it asks again is silent while a server stalls, and never sees the stall. Here the moments are drawn beforehand, as of many
callers who do not know of each other (a Poisson process, seeded), and an answer is timed from when its request was due.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import selectors
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

_SWEEP_S = 0.05  # how often timeouts and patience are looked at
_RECONNECT_S = 0.05  # between two attempts on one connection
_PATIENCE_S = 30.0  # after which a request without a connection or an answer has failed


class Ended(Protocol):
    """Sink of what becomes of the requests; moments are seconds from the start."""

    def due(self, due_s: float) -> None:
        """Count a request that is due."""

    def dropped(self, due_s: float) -> None:
        """Count a request that found no free connection in time."""

    def ended(self, due_s: float, sent_s: float, end_s: float, problem: str | None) -> None:
        """Count a request that was answered, or whose connection or patience ended."""


@dataclass(frozen=True, slots=True)
class Address:
    """Address that requests are sent to by HTTP/1.1."""

    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Read an address from a url. Raises: ValueError if it is no http:// one."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// address; the native client speaks no TLS, locust does")
        return cls(parts.hostname, parts.port or 80, parts.path)

    def request(self, body: bytes, headers: Mapping[str, str], *, path: str | None = None) -> bytes:
        """Write a POST of `body`, whole as it is sent. path: of this one, in place of the address's."""
        lines = [f"POST {path or self.path} HTTP/1.1", f"Host: {self.host}:{self.port}"]
        lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body


def status_problem(head: bytes, body: bytes) -> str | None:
    """Say what is wrong with an answer whose status is not 200, or None."""
    if b" 200 " in head[:13]:
        return None
    return f"{head[9:12].decode(errors='replace')}: {body[:80].decode(errors='replace')}"


def precise_loop() -> asyncio.SelectorEventLoop:
    """Make an event loop on select(), which waits for microseconds; epoll and uvloop wait for milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def send_arrivals(
    address: Address,
    arrivals: Iterable[tuple[float, bytes]],
    sink: Ended,
    *,
    connections: int,
    begin: float | None = None,
    patience_s: float | None = None,
    timeout_s: float | None = None,
    check: Callable[[bytes, bytes], str | None] = status_problem,
    stop: asyncio.Event | None = None,
) -> None:
    """Send each request when it is due, on a free connection, until all have ended. Raises: OSError if nobody listens at first.

    arrivals: moments in seconds from the start and what is sent, in order. begin: the start, on the loop's clock; now, if it is
    left out. patience_s: how long an arrival waits for a connection before it is dropped. timeout_s: how long a request may take.
    check: says what is wrong with the head and body of an answer. stop: ends it early; what is in flight then is dropped.
    """
    loop = asyncio.get_running_loop()
    caller = _Caller(address, iter(arrivals), sink, check)
    await caller.connect(connections)
    caller.begin = loop.time() if begin is None else begin
    sweeping = asyncio.create_task(caller.sweep(patience_s, timeout_s))
    stopping = asyncio.create_task(stop.wait()) if stop else None
    caller.go_on()
    ended = asyncio.create_task(caller.done.wait())
    try:
        tasks = [ended, *([stopping] if stopping else [])]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sweeping, stopping, ended):
            if task:
                task.cancel()
        caller.close()


class _Caller:
    """State of a load under way: what is next, what waits for a connection, what is in flight."""

    def __init__(
        self,
        address: Address,
        arrivals: Iterator[tuple[float, bytes]],
        sink: Ended,
        check: Callable[[bytes, bytes], str | None],
    ) -> None:
        self.address, self.arrivals, self.sink, self.check = address, arrivals, sink, check
        self.begin = 0.0
        self.free: deque[_Connection] = deque()
        self.all: set[_Connection] = set()
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.upcoming = next(arrivals, None)
        self.in_flight = 0
        self.done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._reconnecting: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        """Return the seconds since the start."""
        return self._loop.time() - self.begin

    async def connect(self, count: int) -> None:
        """Open the first connections to the server. Raises: OSError."""
        for _ in range(count):
            await self._open()

    def go_on(self) -> None:
        """Take what is due, send what can be sent, and come back when the next is due."""
        now = self.now()
        while self.upcoming is not None and self.upcoming[0] <= now:
            self.sink.due(self.upcoming[0])
            self.waiting.append(self.upcoming)
            self.upcoming = next(self.arrivals, None)
        self.send()
        if self.upcoming is not None:
            self._loop.call_at(self.begin + self.upcoming[0], self.go_on)

    def send(self) -> None:
        """Send as many of the waiting requests as there are free connections."""
        while self.waiting and self.free:
            due_s, request = self.waiting.popleft()
            self.in_flight += 1
            self.free.popleft().send(due_s, self.now(), request)
        if self.upcoming is None and not self.waiting and not self.in_flight:
            self.done.set()

    def ended(self, connection: _Connection, problem: str | None) -> None:
        """Record the end of a connection's request, and free the connection if it is still open."""
        self.sink.ended(connection.due_s, connection.sent_s, self.now(), problem)
        self.in_flight -= 1
        if connection.open:
            self.free.append(connection)
        self.send()

    def lost(self, connection: _Connection) -> None:
        """Replace a connection that ended."""
        self.all.discard(connection)
        with contextlib.suppress(ValueError):
            self.free.remove(connection)
        if not self.done.is_set():
            task = self._loop.create_task(self._reconnect())
            self._reconnecting.add(task)
            task.add_done_callback(self._reconnecting.discard)

    async def sweep(self, patience_s: float | None, timeout_s: float | None) -> None:
        """Give up, again and again, what took too long: in a connection, and waiting for one."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = self.now()
            if timeout_s is not None:
                for each in [one for one in self.all if one.busy and now - one.sent_s > timeout_s]:
                    each.give_up(f"no answer in {timeout_s:g} s")
            if patience_s is not None:
                while self.waiting and now - self.waiting[0][0] > patience_s:
                    self.sink.dropped(self.waiting.popleft()[0])
                self.send()  # nothing may be left to wait for

    def close(self) -> None:
        """Close every connection, whatever it waits for."""
        self.done.set()
        for task in self._reconnecting:
            task.cancel()
        for connection in list(self.all):
            connection.transport.close()

    async def _open(self) -> None:
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self), self.address.host, self.address.port
        )
        self.all.add(connection)
        self.free.append(connection)

    async def _reconnect(self) -> None:
        while not self.done.is_set():
            try:
                await self._open()
            except OSError:
                await asyncio.sleep(_RECONNECT_S)
            else:
                self.send()
                return


class _Connection(asyncio.Protocol):
    """Persistent connection: a request, its answer, the next request."""

    def __init__(self, caller: _Caller) -> None:
        self._caller, self._got = caller, b""
        self.due_s = self.sent_s = 0.0
        self.busy, self.open = False, True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - a stream's is one
        self.transport = transport

    def send(self, due_s: float, sent_s: float, request: bytes) -> None:
        """Send one request on this connection."""
        self.due_s, self.sent_s, self._got, self.busy = due_s, sent_s, b"", True
        self.transport.write(request)

    def give_up(self, problem: str) -> None:
        """End the request with a problem, and the connection, whose answer may still come."""
        self._end(problem, reuse=False)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, end, rest = self._got.partition(b"\r\n\r\n")
        if not end or not self.busy:
            return
        whole, body = _body_of(head, rest)
        if whole:
            self._end(self._caller.check(head, body), reuse=b"connection: close" not in head.lower())

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.busy and not self._caller.done.is_set():
            self._end(f"the connection ended: {exc or 'closed by the server'}", reuse=False)
        self._caller.lost(self)

    def _end(self, problem: str | None, *, reuse: bool) -> None:
        self.busy = False
        if not reuse and self.open:
            self.open = False
            self.transport.abort()
        self._caller.ended(self, problem)


def _body_of(head: bytes, rest: bytes) -> tuple[bool, bytes]:
    """Whether an answer is whole, and its body as it came. Raises: ValueError if its head says no length."""
    lowered = head.lower()
    for line in lowered.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line[15:])
            return len(rest) >= length, rest[:length]
    if b"transfer-encoding: chunked" in lowered:
        return rest.endswith(b"0\r\n\r\n"), rest
    raise ValueError(f"an answer without Content-Length cannot be read: {head[:200]!r}")


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
    rng = np.random.default_rng(7)
    due_s = np.cumsum(rng.exponential(1 / rate, size=max(1, round(rate * seconds))))
    times, address = _Times(), Address.of(url)
    arrivals = zip(due_s.tolist(), repeat(address.request(body, headers)), strict=False)
    sending = send_arrivals(
        address, arrivals, times, connections=connections, patience_s=_PATIENCE_S, timeout_s=_PATIENCE_S
    )
    gc.collect()
    gc.freeze()  # what is imported here takes 80 ms to look through, in which nobody would be asked
    try:
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            runner.run(sending)
    finally:
        gc.unfreeze()
    _, latencies_s, late_s = np.array(sorted(times.rows)).T
    return OpenLoop(rate, latencies_s * 1e3, late_s * 1e3, times.failed)


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


class _Times:
    """Times of every request; one that waited in vain is a failure."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float, float]] = []  # due, latency, late; in seconds
        self.failed = 0

    def due(self, due_s: float) -> None:
        """Do nothing: every request ends in one of the other ways."""

    def dropped(self, due_s: float) -> None:
        """Count a request that found no connection."""
        self.rows.append((due_s, _PATIENCE_S, _PATIENCE_S))
        self.failed += 1

    def ended(self, due_s: float, sent_s: float, end_s: float, problem: str | None) -> None:
        """Keep the times of one request."""
        self.rows.append((due_s, end_s - due_s, sent_s - due_s))
        self.failed += problem is not None


__all__ = [
    "Address",
    "Ended",
    "OpenLoop",
    "ask_steadily",
    "at_once",
    "precise_loop",
    "send_arrivals",
    "status_problem",
]
