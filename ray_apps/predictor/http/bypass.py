"""A replica's HTTP server: predictions bypass Serve's accounting, and callers that are too slow are disconnected.

Serve's accounting of a request (metadata, context, tasks that watch for timeouts and disconnects, metrics) costs about as
much as a small model's prediction, so predictions go straight to the replica's endpoint, which bounds and counts its
requests in flight itself. Other requests, health checks and draining included, take Serve's path. The variable
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH switches it on where the cluster starts; without it all works, slower.

Requests that Serve leaves without a response, because a replica ended or an application failed, get the answer that
HAProxy has then (`clusters/*.http`); that of language models has the shape that OpenAI's clients read. uvicorn closes
idle connections between two requests only; here each has a timer, and requests themselves pay for a timestamp.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS

from toque import clusters
from toque.ray_apps.predictor.write_coalescing import CoalescingProtocol
from toque.ray_apps.serve.deregistration import (
    answer_until_deregistered,
    load_proxy_class_here,
    note_request,
)
from toque.ray_apps.serve.settings import bind_to_loopback

App = Callable[[Any, Any, Any], Awaitable[None]]
_LANGUAGE_MODELS: Final = "/v1/"
_log = logging.getLogger("ray.serve")
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
    headers = [(key.lower(), value) for key, _, value in (field.partition(b": ") for field in fields)]
    headers.append((b"content-length", b"%d" % len(body)))
    start = {"type": "http.response.start", "status": int(line.split()[1]), "headers": headers}
    return start, {"type": "http.response.body", "body": body}


_UNKNOWN, _OPENAI = _page("502.http"), _page("openai.http")


HEAD_S: Final = 10.0
"""For the first request after the connection, and for the headers of any."""
GRACE_S: Final = 10.0
"""For a body or response before its rate counts."""
BYTES_PER_S: Final = 128 << 10
"""Lowest average rate at which a caller may send a body or read a response, after the grace."""
MAX_HEAD_BYTES: Final = 64 << 10
"""Of a request's headers, in a request that comes in more than one piece."""
MAX_CONNECTIONS: Final = 4_096
"""Of one process; each costs a file descriptor and some 20 KB."""
_PERIOD_S: Final = 5.0
_REFUSAL = b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class TimedProtocol(CoalescingProtocol):
    """HTTP/1.1 of uvicorn whose callers have deadlines and whose headers are bounded."""

    _since: float | None = None  # when the request that is being read began; None: none is
    _received = 0  # bytes of it
    _drain_by: float | None = None  # when the response that waits to be read must be gone
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection's timer, or close it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.abort()
            return
        self._since = self.loop.time()
        self._timer = self.loop.call_later(HEAD_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a connection that has ended."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it makes the headers too long."""
        super().data_received(data)
        self._received += len(data)
        if self._since is not None and self._received > MAX_HEAD_BYTES and self._in_head:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Note when a request began."""
        self._since, self._received = self.loop.time(), 0
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Note that a request is whole."""
        self._since = None
        super().on_message_complete()

    @property
    def _in_head(self) -> bool:
        """Whether the headers of the request that is being read are not whole."""
        return self.cycle is None or self.cycle.scope is not self.scope

    @property
    def _can_answer(self) -> bool:
        """Whether a response may be written now, without breaking into another one."""
        return self.cycle.response_complete if self._in_head else not self.cycle.response_started

    def _check(self) -> None:
        """Close the connection if its caller is too slow, or look again later."""
        if self.transport.get_protocol() is not self:  # it has become a websocket
            return
        now = self.loop.time()
        if self._is_reader_late(now):
            self.transport.abort()
            return
        if self._since is not None and now >= self._since + self._allowed_s:
            self._refuse(b"408 Request Timeout")
        self._timer = self.loop.call_later(_PERIOD_S, self._check)

    @property
    def _allowed_s(self) -> float:
        return HEAD_S if self._in_head else GRACE_S + self._received / BYTES_PER_S

    def _is_reader_late(self, now: float) -> bool:
        """Whether the caller has not read, in time, what waited for it when this was first asked."""
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            self._drain_by = None
        elif self._drain_by is None:
            self._drain_by = now + GRACE_S + waiting / BYTES_PER_S
        return self._drain_by is not None and now >= self._drain_by

    def _refuse(self, status: bytes) -> None:
        """End the connection, with a response if none has begun."""
        self._since = None
        if self._received and (self.cycle is None or self._can_answer):
            self.transport.write(_REFUSAL % status)
        self.transport.close()


__all__ = [
    "BYTES_PER_S",
    "HEAD_S",
    "MAX_CONNECTIONS",
    "MAX_HEAD_BYTES",
    "App",
    "BypassMiddleware",
    "TimedProtocol",
    "answered",
    "middlewares",
    "register_bypass",
    "unregister_bypass",
]
