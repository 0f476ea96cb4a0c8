"""ASGI middleware that answers HEAD as GET without the body, as HTTP has it: probes of balancers ask so."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["AnswersHead"]


class AnswersHead:
    """Hands a HEAD on as GET, and ends the answer once its headers are there; a stream hears that its reader has gone.

    Source: RFC 9110, 9.3.2.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def hear() -> Message:
            return {"type": "http.disconnect"} if has_begun else await receive()

        async def send_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        await self._app({**scope, "method": "GET"}, hear, send_headers)
