"""Watchdog of an event loop: the longest time that nothing else on it could run."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

MAX_MS = 50.0
ATTEMPTS = 5


class Gaps:
    """Longest gap between two turns of a loop, in milliseconds: by the clock, and of CPU of the loop's own thread.

    By the clock, without the time in which the loop's thread or the main one, which may hold the interpreter, was ready and the
    machine ran others: what the work computes, what it waits for, and what other threads of ours keep from the loop remains.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.wall_ms = 0.0
        self.cpu_ms = 0.0

    @property
    def longest_ms(self) -> float:
        return max(self.wall_ms, self.cpu_ms)


def queued_s() -> tuple[float, ...]:
    """Seconds that this thread and the main one have waited for a processor."""
    threads = (threading.get_native_id(), threading.main_thread().native_id)
    return tuple(
        1e-9 * int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) for thread in threads
    )


async def tick(gaps: Gaps) -> None:
    """Measure the gaps of the running loop until cancelled."""
    wall, cpu, queued = time.perf_counter(), time.thread_time(), queued_s()
    while True:
        await asyncio.sleep(0.001)
        now, spent = time.perf_counter(), time.thread_time()
        gap_s = now - wall - 0.001
        gaps.cpu_ms = max(gaps.cpu_ms, 1e3 * (spent - cpu))
        if 1e3 * gap_s > gaps.wall_ms:
            waits = (after - before for before, after in zip(queued, queued_s(), strict=True))
            gaps.wall_ms = max(gaps.wall_ms, 1e3 * (gap_s - max(waits)))
        queued = queued_s()
        wall, cpu = time.perf_counter(), time.thread_time()


@asynccontextmanager
async def watched() -> AsyncIterator[Gaps]:
    """Measure the gaps of the running loop within the block."""
    gaps = Gaps()
    ticking = asyncio.create_task(tick(gaps))
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
