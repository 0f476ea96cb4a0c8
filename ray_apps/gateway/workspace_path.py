"""Paths below `/workspaces/{name}`: the gateway's own ones, in that workspace.

So a client that knows only a base URL, as those of the inference protocol do, works in one workspace by the base
`http://host/workspaces/payments`.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from toque.ray_apps.admission.guarded_route import WORKSPACE_HEADERS

_PREFIX: Final = "/workspaces/"
_HEADERS: Final = tuple(name.encode() for name in WORKSPACE_HEADERS)


class WorkspacePath:
    """ASGI middleware that takes the workspace from the path, which goes before the header.

    What comes after `/workspaces/{name}` is routed as if it stood alone; the path of the workspace itself stays.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the workspace of its path in its header."""
        if scope["type"] == "http":
            scope = _in_workspace(scope)
        await self._app(scope, receive, send)


def route_path(request: Request) -> str:
    """Path of a request without the prefix that names its workspace."""
    path = request.url.path
    root = str(request.scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _in_workspace(scope: Scope) -> Scope:
    root = scope.get("root_path", "")
    path = scope["path"].removeprefix(root)
    name, slash, rest = path.removeprefix(_PREFIX).partition("/")
    if not path.startswith(_PREFIX) or not name:
        return scope
    headers = [(key, value) for key, value in scope["headers"] if key not in _HEADERS]
    changed = {**scope, "headers": [*headers, (_HEADERS[0], name.encode("latin-1", "replace"))]}
    return changed | {"root_path": f"{root}{_PREFIX}{name}"} if slash and rest else changed
