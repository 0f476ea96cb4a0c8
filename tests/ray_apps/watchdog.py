"""Watchdog of an event loop: the longest time that nothing else on it could run."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

MAX_MS = 50.0
ATTEMPTS = 5


class Gaps:
    """Longest gap between two turns of a loop, in milliseconds: by the clock, and of CPU of the loop's own thread."""

    def __init__(self) -> None:
        self.wall_ms = 0.0
        self.cpu_ms = 0.0


@asynccontextmanager
async def watched() -> AsyncIterator[Gaps]:
    """Measure the gaps of the running loop within the block."""
    gaps = Gaps()

    async def tick() -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now, spent = time.perf_counter(), time.thread_time()
            gaps.wall_ms = max(gaps.wall_ms, 1e3 * (now - wall) - 1)
            gaps.cpu_ms = max(gaps.cpu_ms, 1e3 * (spent - cpu))
            wall, cpu = now, spent

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.005)
    try:
        yield gaps
        await asyncio.sleep(0.005)
    finally:
        ticking.cancel()


async def longest_gap_ms(work: Callable[[], Awaitable[object]]) -> float:
    """Longest gap that `work` leaves on the loop, at its best of several times: the rest is the machine's."""
    best = float("inf")
    for _ in range(ATTEMPTS):
        async with watched() as gaps:
            await work()
        best = min(best, max(gaps.cpu_ms, gaps.wall_ms))
        if best < MAX_MS:
            break
    return best
