"""A middleware that lets predictions bypass Serve's accounting in a replica's HTTP server.

Serve's accounting of a request (metadata, context, tasks that watch for timeouts and disconnects, metrics) costs
about as much as a small model's prediction. A middleware stands before it, in the replica's own process; this one
hands requests for predictions straight to the endpoint of that replica. Other requests, health checks and draining
included, take Serve's path; the endpoint bounds and counts its requests in flight itself. The variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH switches it on where the cluster starts; without it all works, slower.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS

from toque.ray_apps.deployment.deregistration import answer_until_deregistered, note_request
from toque.ray_apps.deployment.proxy_class import load_proxy_class_here
from toque.ray_apps.loopback import bind_to_loopback
from toque.ray_apps.predictor.http.connections import TimedProtocol
from toque.ray_apps.predictor.http.unanswered import App, answered

__all__ = ["BypassMiddleware", "middlewares", "register_bypass", "unregister_bypass"]

DIRECT = "toque.direct"
"""Mark in the scope of a request that came by this replica's own port, and not by Serve's Python proxy."""
_endpoints: dict[str, App] = {}  # route prefix -> application, of the one replica in this process


def register_bypass(prefix: str, endpoint: App) -> None:
    """Hand requests for predictions below `prefix` straight to `endpoint`, in this process."""
    _endpoints[prefix] = endpoint


def unregister_bypass(prefix: str) -> None:
    """Let requests below `prefix` take Serve's path again; an unknown prefix is fine."""
    _endpoints.pop(prefix, None)


class BypassMiddleware:
    """ASGI middleware that routes predictions to this process's endpoint, and all else to Serve."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Pass one request to the endpoint or to Serve."""
        note_request()
        if scope["type"] == "http" and scope["path"].endswith("/infer"):
            scope[DIRECT] = True
            for prefix, endpoint in _endpoints.items():
                if scope["path"].startswith(f"{prefix}/"):
                    scope["root_path"] = prefix
                    await endpoint(scope, receive, send)
                    return
        await answered(self._app, scope, receive, send)


def middlewares() -> list[Middleware]:
    """The middlewares of Serve's HTTP servers, which Serve asks for before it makes them.

    Serve leaves the choice of the HTTP protocol to uvicorn, so uvicorn's default is set here too. It asks in each
    replica that listens, before its other server is made, whose address is set here for the same reason, and so are how
    the replica ends and where it has the class of Serve's proxy from.
    """
    bind_to_loopback(os.environ)
    answer_until_deregistered()
    load_proxy_class_here()
    HTTP_PROTOCOLS["auto"] = f"{TimedProtocol.__module__}:{TimedProtocol.__qualname__}"
    return [Middleware(BypassMiddleware)]
