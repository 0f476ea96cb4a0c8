"""Two ASGI applications in one process: another one below its prefix, and the gateway for all else."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


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
