"""Open loop of one process that is precise to a tenth of a millisecond, at rates that locust does not reach in one process.

A request of locust takes 200 µs of a core, so that 70 % of what a predictor answers, some 6,000 requests/s, would be locust's own
latency. The moments are drawn beforehand, as of many callers who do not know of each other (a Poisson process, seeded), and an answer is
timed from when its request was due: a caller that waits for an answer before it asks again is silent while a server stalls, and never sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import selectors
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

_PATIENCE_S = 30.0  # for the last answers; what has none then has failed
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
    lines = [f"POST {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"]
    request = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
    due_s = np.cumsum(np.random.default_rng(7).exponential(1 / rate, size=max(1, round(rate * seconds))))
    sending = _send(parts.hostname or "", parts.port or 80, request.encode() + body, due_s, connections)
    gc.collect()
    gc.freeze()  # what is imported here takes 80 ms to look through, in which nobody would be asked
    try:
        # select() waits for microseconds, epoll and uvloop for milliseconds.
        with asyncio.Runner(
            loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
        ) as runner:
            rows = runner.run(sending)
    finally:
        gc.unfreeze()
    _, latencies_s, late_s, answered = np.array(sorted(rows)).T
    return OpenLoop(rate, latencies_s * 1e3, late_s * 1e3, len(due_s) - int(answered.sum()))


async def _send(
    host: str, port: int, request: bytes, due_s: Floats, connections: int
) -> list[tuple[float, float, float, bool]]:
    """Send a request at each moment; returns when each was due, its latency, how late it was sent, and whether the answer was good."""
    loop, arrivals = asyncio.get_running_loop(), iter(due_s.tolist())
    rows: list[tuple[float, float, float, bool]] = []

    async def opened() -> _Connection:
        return (await loop.create_connection(_Connection, host, port))[1]

    async def call(connection: _Connection) -> None:
        for due in arrivals:
            await asyncio.sleep(begin + due - loop.time())
            if connection.transport.is_closing():
                connection = await opened()
            late_s = loop.time() - begin - due
            answered = await connection.ask(request)
            rows.append((due, loop.time() - begin - due, late_s, answered))
        connection.transport.close()

    callers = [await opened() for _ in range(connections)]
    begin = loop.time()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(due_s[-1] + _PATIENCE_S):
            await asyncio.gather(*map(call, callers))
    return rows


class _Connection(asyncio.Protocol):
    """Persistent connection: a request, its answer, the next request."""

    transport: asyncio.WriteTransport

    def __init__(self) -> None:
        self._received, self._answer = b"", asyncio.get_running_loop().create_future()

    def ask(self, request: bytes) -> asyncio.Future[bool]:
        """Send a request; the result is whether it was answered by 200."""
        self._received, self._answer = b"", asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101 - a stream's is one
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        if not end or self._answer.done():
            return
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        if len(rest) >= length:
            if b"connection: close" in lines:
                self.transport.close()
            self._answer.set_result(b" 200 " in head[:13])

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        if not self._answer.done():
            self._answer.set_result(False)
