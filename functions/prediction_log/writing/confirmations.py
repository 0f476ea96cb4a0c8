"""Confirmations of records by Redis, for which answers wait in groups: one round trip serves all that wait.

The shipper reports how far Redis has the records, or that it does not answer. Once a wait was in vain, later ones
end at once until the shipper reaches Redis again, so that Redis away costs one wait and not one for each request.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["Confirmations"]


class Confirmations:
    """Waits for the records of one writer to be confirmed, ended by its shipper.

    wake: has the shipper begin its next round now. timeout_s: the longest wait.
    """

    def __init__(self, wake: Callable[[], object], *, timeout_s: float) -> None:
        self._wake, self._timeout_s = wake, timeout_s
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, _Wait]] = deque()
        self._reached = 0
        self._away = False

    @property
    def available(self) -> bool:
        """Whether a wait has a chance: False from a wait in vain until Redis was reached again."""
        return not self._away

    async def wait(self, number: int) -> bool:
        """Wait until a record is confirmed; False if it is not in time, or cannot be now."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        if not self._begin(number, _LoopWait(loop, future)):
            return number <= self._reached
        timer = loop.call_later(self._timeout_s, self._expire, future)
        try:
            return await future
        finally:
            timer.cancel()

    def wait_blocking(self, number: int) -> bool:
        """Wait as `wait` does, in a thread."""
        done = threading.Event()
        wait = _ThreadWait(done)
        if self._begin(number, wait) and not done.wait(self._timeout_s):
            self._away = True
        return number <= self._reached

    def advance(self, number: int) -> None:
        """Report that Redis was reached, and that it has the records up to `number`."""
        ended: list[_Wait] = []
        with self._lock:
            self._away = False
            self._reached = max(self._reached, number)
            while self._waiting and self._waiting[0][0] <= number:
                ended.append(self._waiting.popleft()[1])
        _end(ended, confirmed=True)

    def fail(self) -> None:
        """Report that Redis cannot confirm anything now: all waits end."""
        with self._lock:
            self._away = True
            ended = [wait for _, wait in self._waiting]
            self._waiting.clear()
        _end(ended, confirmed=False)

    def _begin(self, number: int, wait: _Wait) -> bool:
        """Have a wait ended later; False if the record is confirmed already, or cannot be now."""
        with self._lock:
            if self._away or number <= self._reached:
                return False
            self._waiting.append((number, wait))
        self._wake()
        return True

    def _expire(self, future: asyncio.Future[bool]) -> None:
        if not future.done():
            self._away = True
            future.set_result(False)


class _ThreadWait:
    """Wait of a thread, ended by setting its event."""

    loop = None

    def __init__(self, done: threading.Event) -> None:
        self._done = done

    def end(self, confirmed: bool) -> None:  # noqa: ARG002, FBT001  # as the other's
        self._done.set()


class _LoopWait:
    """Wait of a task on an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[bool]) -> None:
        self.loop, self._future = loop, future

    def end(self, confirmed: bool) -> None:  # noqa: FBT001  # called by position, for many
        if not self._future.done():  # its caller may have left
            self._future.set_result(confirmed)


_Wait = _ThreadWait | _LoopWait


def _end(waits: list[_Wait], *, confirmed: bool) -> None:
    """End waits: one call into each event loop for all of its tasks."""
    by_loop: dict[Any, list[_Wait]] = {}
    for wait in waits:
        by_loop.setdefault(wait.loop, []).append(wait)
    for loop, those in by_loop.items():
        if loop is None:
            _end_each(those, confirmed)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(_end_each, those, confirmed)


def _end_each(waits: list[_Wait], confirmed: bool) -> None:  # noqa: FBT001  # an event loop's callback
    for wait in waits:
        wait.end(confirmed)
