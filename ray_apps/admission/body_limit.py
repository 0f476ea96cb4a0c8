"""Refuses request bodies that are too large or come too slowly, before anything reads them whole."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 16 << 20
BODY_TIMEOUT_S: Final = 60.0
"""Time for a whole body below the limit, and between two pieces of one that has no limit."""


class BodyLimit:
    """ASGI middleware that refuses a body above `limit_bytes`, declared or streamed, or one that trickles.

    limit_bytes: None: any size, as long as pieces keep coming. timeout_s: for the whole body, without a limit for
    each piece of it. Reading past a limit raises HTTPException 413 or 408, which becomes the response.
    """

    def __init__(
        self, app: ASGIApp, *, limit_bytes: int | None = MAX_BODY_BYTES, timeout_s: float = BODY_TIMEOUT_S
    ) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting the bytes of its body and the time that they take."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        read = int(declared) if declared.isdigit() else 0
        deadline: float | None = None
        complete = False

        async def counted() -> Message:
            nonlocal read, deadline, complete
            if complete:  # what comes now is the disconnect, which may be awaited for long
                return await receive()
            self._check(read)
            now = asyncio.get_running_loop().time()
            if deadline is None or self._limit_bytes is None:
                deadline = now + self._timeout_s
            message = await self._within(receive, deadline)
            complete = not message.get("more_body", False)
            if declared == b"0":
                read += len(message.get("body", b""))
                self._check(read)
            return message

        await self._app(scope, counted, send)

    async def _within(self, receive: Receive, deadline: float) -> Message:
        try:
            async with asyncio.timeout_at(deadline):
                return await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"the body did not come within {self._timeout_s:g} s; send it faster, or in parts"
            ) from None

    def _check(self, size_bytes: int) -> None:
        if self._limit_bytes is not None and size_bytes > self._limit_bytes:
            raise HTTPException(
                413, f"the body is larger than {self._limit_bytes} bytes; send less at a time"
            )
