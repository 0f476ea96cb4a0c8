"""Refuses request bodies above a size limit before anything reads them whole."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_apps.gateway.wire import MAX_BODY_BYTES


class BodyLimit:
    """ASGI middleware that refuses a body above `limit_bytes`, declared or streamed.

    Reading past the limit raises HTTPException 413, which becomes the response.
    """

    def __init__(self, app: ASGIApp, *, limit_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting the bytes of its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        read = int(declared) if declared.isdigit() else 0

        async def counted() -> Message:
            nonlocal read
            self._check(read)
            message = await receive()
            if declared == b"0":
                read += len(message.get("body", b""))
                self._check(read)
            return message

        await self._app(scope, counted, send)

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._limit_bytes:
            raise HTTPException(
                413, f"the body is larger than {self._limit_bytes} bytes; send less at a time"
            )
