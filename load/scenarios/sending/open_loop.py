"""Open loop: one request so many times a second, independent of earlier answers, timed from when it was due.

A caller that waits for an answer before it asks again is silent while a server stalls, and never sees the stall. Here
the moments are drawn beforehand, as of many callers who do not know of each other (a Poisson process, seeded).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from toque.load.scenarios.sending.connections import Address, precise_loop, send_arrivals

__all__ = ["OpenLoop", "ask_steadily", "at_once"]

_PATIENCE_S = 30.0  # after which a request without a connection or an answer has failed


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
