"""The caller of one request: work for a caller who has disconnected is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final, TypeVar

from toque.ray_apps.predictor.protocol.errors import CallerGone
from toque.ray_apps.predictor.write_coalescing import WriteBatch

__all__ = ["Caller"]

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]  # of ASGI
DISCONNECT: Final = "http.disconnect"


class Caller:
    """The caller of one request, as the HTTP server reports it.

    receive: ASGI's, of a request whose body was read, so that its next message can only be the disconnect.
    write_batch: with which the response leaves; None if at once.
    """

    __slots__ = ("_receive", "write_batch")

    def __init__(self, receive: Receive, write_batch: WriteBatch | None = None) -> None:
        self._receive, self.write_batch = receive, write_batch

    async def run_while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its result; worth it for work that takes longer than two tasks cost, some 40 µs.

        Raises: CallerGone if the caller disconnects first; `work` is cancelled then.
        """
        loop = asyncio.get_running_loop()
        working, leaving = loop.create_task(work), loop.create_task(self._disconnected())
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise CallerGone("the caller went away before the answer was there")
        finally:
            leaving.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})

    async def _disconnected(self) -> None:
        message = await self._receive()
        if message["type"] != DISCONNECT:  # such a server never reports the disconnect
            await asyncio.get_running_loop().create_future()
