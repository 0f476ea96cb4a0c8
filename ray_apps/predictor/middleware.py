"""A middleware for Serve's HTTP servers that spares short requests what only long ones need.

Serve watches every request for its client going away, with a task of its own for each; a prediction is over
before that could matter. Serve reads a header that says so; this adds it to requests for predictions. It is
switched on where the cluster starts: `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.middleware import Middleware

__all__ = ["CALLBACK", "NoDisconnectWatch", "middlewares"]

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ray_apps.predictor.middleware.middlewares"}
"""The environment variable that switches it on."""
_HEADER = (b"x-request-disconnect-disabled", b"?1")


class NoDisconnectWatch:
    """Marks requests for predictions as not to be watched."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, marked if it is one for a prediction."""
        if scope["type"] == "http" and scope["path"].endswith("/infer"):
            scope["headers"] = [*scope["headers"], _HEADER]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve calls to learn the middlewares of its HTTP servers."""
    return [Middleware(NoDisconnectWatch)]
