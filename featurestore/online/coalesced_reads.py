"""Reads of one event loop that go to Redis together: what comes while a read is on its way waits for the next.

A read takes the loop some fifty microseconds of redis-py, for four keys as for sixty: sixteen requests that each read alone
pay them sixteen times. A read that is the only one goes at once, so nothing waits for more to come.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

Values = list[bytes | None]
KEYS_AT_ONCE = 4_096  # beyond it, the rest is for the next read: a few milliseconds of Redis each


class CoalescedReads:
    """Reads through one asynchronous client. Belongs to one event loop.

    fetch: reads the values of keys, None where there is none, in their order.
    """

    def __init__(self, fetch: Callable[[Sequence[bytes]], Awaitable[Values]]) -> None:
        self._fetch = fetch
        self._waiting: deque[tuple[Sequence[bytes], asyncio.Future[Values]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def read(self, keys: Sequence[bytes]) -> Values:
        """The values of some keys. Raises: what `fetch` raises for those that were read together."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Values] = loop.create_future()
        self._waiting.append((keys, answer))
        if self._task is None:
            self._task = loop.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        try:
            while batch := self._take():
                await self._answer(batch)
        finally:
            self._task = None

    def _take(self) -> list[tuple[Sequence[bytes], asyncio.Future[Values]]]:
        """Those who came first and still wait."""
        batch: list[tuple[Sequence[bytes], asyncio.Future[Values]]] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0][0]) <= KEYS_AT_ONCE):
            keys, answer = self._waiting.popleft()
            if not answer.done():
                batch.append((keys, answer))
                size += len(keys)
        return batch

    async def _answer(self, batch: Sequence[tuple[Sequence[bytes], asyncio.Future[Values]]]) -> None:
        try:
            values = await self._fetch([key for keys, _ in batch for key in keys])
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the readers' to see
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        at = 0
        for keys, answer in batch:
            if not answer.done():
                answer.set_result(values[at : at + len(keys)])
            at += len(keys)
