"""A lane of its own for predictions through the HTTP server of a Serve replica.

Serve's accounting of a request (metadata, context, tasks that watch for timeouts and disconnects, metrics) costs
about as much as a small model's prediction. A middleware stands before it, in the replica's own process; this one
hands requests for predictions straight to the predictor of that replica. All else takes Serve's way, health
checks and draining included; the predictor bounds and counts what it has in flight itself. It is switched on
where the cluster starts, by the variable RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH; without it all works, slower.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS

from ray_apps.predictor.write_coalescing import GatheringProtocol

__all__ = ["Lane", "close_lane", "middlewares", "open_lane"]

App = Callable[[Any, Any, Any], Awaitable[None]]
_doors: dict[str, App] = {}  # route prefix -> application, of the one replica in this process


def open_lane(prefix: str, door: App) -> None:
    """Let requests for predictions below `prefix` go straight to `door` in this process."""
    _doors[prefix] = door


def close_lane(prefix: str) -> None:
    """Send them Serve's way again; an unknown prefix is fine."""
    _doors.pop(prefix, None)


class Lane:
    """The middleware: predictions to the door of this process, all else onwards."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass one request on."""
        if scope["type"] == "http" and scope["path"].endswith("/infer"):
            for prefix, door in _doors.items():
                if scope["path"].startswith(f"{prefix}/"):
                    scope["root_path"] = prefix
                    await door(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve calls to learn the middlewares of its HTTP servers, before it makes them.

    Their protocol is not Serve's to choose but uvicorn's, so it is said here which one that is.
    """
    HTTP_PROTOCOLS["auto"] = f"{GatheringProtocol.__module__}:{GatheringProtocol.__qualname__}"
    return [Middleware(Lane)]
