"""ASGI middleware of the doors to functions and MLflow: traces requests, answers HEAD, and joins two applications.

HEAD is answered as GET without the body, as HTTP has it: probes of balancers ask so.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toque.clusters.telemetry.tracing import begin_request

NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False}
"""FastAPI's own spans are off: they leave out the share of requests that is kept, and have whole addresses with what is secret in them."""

_REQUEST_ID: Final = b"x-request-id"
_REFUSED: Final = 400


class TracedRequests:
    """Begins the trace of each HTTP request and ends it with its response; the request's id is returned with it.

    A response without an id of the caller's gets one if it is a refusal, so that the caller can name it. behind_serve: Ray Serve gives each
    request an id and returns it, so that a response has it once.
    """

    def __init__(self, app: ASGIApp, *, behind_serve: bool = False) -> None:
        self._app, self._behind_serve = app, behind_serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and end its trace with the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace, status = begin_request(dict(scope["headers"])), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if not self._behind_serve and (_REQUEST_ID in trace.headers or status >= _REFUSED):
                    found = trace.identity()["request_id"].encode("latin-1", "replace")
                    message["headers"] = [*message.get("headers", ()), (_REQUEST_ID, found)]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            trace.finish(scope["method"], scope["path"], status, route=_pattern(scope), caller=_caller(scope))


def _pattern(scope: Scope) -> str:
    """Path of the route that took a request, as it is declared; one word for all that no route took."""
    route = scope.get("route")
    return "unmatched" if route is None else str(getattr(route, "path", "unmatched"))


def _caller(scope: Scope) -> str:
    admitted: Any = scope.get("state", {}).get("admitted")
    return "" if admitted is None else str(admitted.principal.name)


class AnswersHead:
    """Hands a HEAD on as GET, and ends the answer once its headers are there; a stream hears that its reader has gone.

    Source: RFC 9110, 9.3.2.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, a HEAD by its headers alone."""
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


class Beside:
    """ASGI application that hands requests below a prefix to another one, as Serve does with one of its own process.

    own: gets everything else, the start and end of the process included. prefix: as `/api`.
    """

    def __init__(self, own: ASGIApp, prefix: str, other: ASGIApp) -> None:
        self._own, self._prefix, self._other = own, prefix, other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request to the application whose path it is."""
        if scope["type"] == "http":
            root = scope.get("root_path", "")
            if f"{scope['path'].removeprefix(root)}/".startswith(f"{self._prefix}/"):
                await self._other({**scope, "root_path": f"{root}{self._prefix}"}, receive, send)
                return
        await self._own(scope, receive, send)


__all__ = ["NO_TELEMETRY", "AnswersHead", "Beside", "TracedRequests"]
