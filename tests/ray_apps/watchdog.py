"""Watchdog of an event loop: the longest time that nothing else on it could run."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

MAX_MS = 50.0
ATTEMPTS = 5


class Gaps:
    """Longest gap between two turns of a loop, in milliseconds, as far as this process was computing in it.

    What other processes take of the machine lengthens the clock's gaps and not this process's: a thread of ours that
    keeps the interpreter from the loop counts as the loop's own work does.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0


@asynccontextmanager
async def watched() -> AsyncIterator[Gaps]:
    """Measure the gaps of the running loop within the block."""
    gaps = Gaps()

    async def tick() -> None:
        clock, computing = time.perf_counter(), time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now, spent = time.perf_counter(), time.process_time()
            gaps.longest_ms = max(gaps.longest_ms, 1e3 * min(now - clock - 0.001, spent - computing))
            clock, computing = now, spent

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
        best = min(best, gaps.longest_ms)
        if best < MAX_MS:
            break
    return best
