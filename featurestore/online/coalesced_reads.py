"""Coalescing of Redis reads in one event loop: reads that arrive during a read go together in the next one.

A read costs the loop some fifty microseconds in redis-py, for four keys as for sixty: sixteen requests that each read
alone pay them sixteen times. A single read goes at once, so no read waits for others to arrive.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

Values = list[bytes | None]
KEYS_AT_ONCE = 4_096  # more keys are left for the next read: a few milliseconds of Redis each


class CoalescedReads:
    """Coalesces reads through one asynchronous client; belongs to one event loop.

    fetch: reads the values of keys, None where absent, in their order.
    """

    def __init__(self, fetch: Callable[[Sequence[bytes]], Awaitable[Values]]) -> None:
        self._fetch = fetch
        self._waiting: deque[tuple[Sequence[bytes], asyncio.Future[Values]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def read(self, keys: Sequence[bytes]) -> Values:
        """Read the values of some keys. Raises: what `fetch` raises, for all reads of the batch."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Values] = loop.create_future()
        self._waiting.append((keys, answer))
        if self._task is None:
            self._task = loop.create_task(self._drain())
        return await answer

    async def _drain(self) -> None:
        try:
            while batch := self._next_batch():
                await self._read_batch(batch)
        finally:
            self._task = None

    def _next_batch(self) -> list[tuple[Sequence[bytes], asyncio.Future[Values]]]:
        """Take the oldest reads that are still awaited, up to the limit of keys."""
        batch: list[tuple[Sequence[bytes], asyncio.Future[Values]]] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0][0]) <= KEYS_AT_ONCE):
            keys, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((keys, answer))
                size += len(keys)
        return batch

    async def _read_batch(self, batch: Sequence[tuple[Sequence[bytes], asyncio.Future[Values]]]) -> None:
        try:
            values = await self._fetch([key for keys, _ in batch for key in keys])
        except Exception as error:  # noqa: BLE001 - every error goes to the readers
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        at = 0
        for keys, answer in batch:
            if not answer.done():
                answer.set_result(values[at : at + len(keys)])
            at += len(keys)
