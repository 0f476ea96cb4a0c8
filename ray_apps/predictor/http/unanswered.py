"""Answers requests that Serve leaves without a response, which uvicorn would answer with a plain 500 that says nothing.

Serve's Python proxy leaves those whose replica ended before it answered, or failed; a replica those whose application failed. The
answer is that which HAProxy has in such a case (`clusters/*.http`), and that of language models has the shape that OpenAI's
clients read.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from toque import clusters

__all__ = ["App", "answered"]

App = Callable[[Any, Any, Any], Awaitable[None]]
_LANGUAGE_MODELS: Final = "/v1/"
_log = logging.getLogger("ray.serve")


async def answered(app: App, scope: Any, receive: Any, send: Any) -> None:
    """Pass a request on to an ASGI application, and answer it if that ends without having begun to."""
    if scope["type"] != "http":
        await app(scope, receive, send)
        return
    has_begun = False

    async def noted(message: Any) -> None:
        nonlocal has_begun
        has_begun = True
        await send(message)

    try:
        await app(scope, receive, noted)
    except Exception:
        if has_begun:
            raise
        _log.exception(
            "%s %s failed", scope["method"], scope["path"]
        )  # the caller gets an answer all the same
    if not has_begun:
        page = _OPENAI if scope["path"].startswith(_LANGUAGE_MODELS) else _UNKNOWN
        for message in page:
            await send(dict(message))


def _page(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the messages of a response from a file as HAProxy reads it."""
    head, _, body = (Path(clusters.__file__).parent / name).read_bytes().partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    headers = [(key.lower(), value) for key, _, value in (each.partition(b": ") for each in fields)]
    headers.append((b"content-length", b"%d" % len(body)))
    start = {"type": "http.response.start", "status": int(line.split()[1]), "headers": headers}
    return start, {"type": "http.response.body", "body": body}


_UNKNOWN, _OPENAI = _page("502.http"), _page("openai.http")
