"""An ASGI application of the same process, asked as the HTTP server before it would ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from ray_apps.predictor.rpc.upstream import Answer

__all__ = ["Inside"]


class Inside:
    """Requests to `app`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def ask(self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes = b"") -> Answer:
        """What the application answers.

        path: quoted. A caller that gives up cancels this, so the application is never told that it went away.
        """
        answer = Answer()
        whole = False

        async def receive() -> dict[str, Any]:
            nonlocal whole
            if whole:
                await asyncio.get_running_loop().create_future()
            whole = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], dict(message["headers"])
            else:
                answer.body += message.get("body", b"")

        scope = {"type": "http", "method": method, "path": unquote(path), "root_path": "",
                 "headers": list(headers.items())}  # fmt: skip
        await self._app(scope, receive, send)
        return answer

    def close(self) -> None:
        """Nothing is kept."""
