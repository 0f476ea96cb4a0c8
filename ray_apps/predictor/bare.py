"""The predictor without Ray: some models in one process, behind one port, with gRPC beside it where asked.

To try a model, and to measure what a replica does, without a cluster around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import uvicorn

from ray_apps.predictor.door import Door
from ray_apps.predictor.gathering import GatheringProtocol
from ray_apps.predictor.rpc import Front, Inside, Listener

__all__ = ["by_prefix", "serve_bare"]

_SERVER = {"name": "toque", "version": "bare", "extensions": ["binary_tensor_data"]}
_KNOWN = {"/v2": _SERVER, "/v2/health/live": {"live": True}, "/v2/health/ready": {"ready": True}}


def by_prefix(doors: Mapping[str, Door]) -> Callable[[Any, Any, Any], Any]:
    """An ASGI application: each model's door below `/v2/models/{name}`, the server's own routes beside them.

    The door called "" is a pool's: it has every model that has no door of its own.
    """
    pool = doors.get("")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        name = path.removeprefix("/v2/models/").partition("/")[0]
        door = doors.get(name, pool) if path.startswith("/v2/models/") else None
        if door is not None:
            root = "/v2/models" if door is pool else f"/v2/models/{name}"
            await door({**scope, "root_path": root}, receive, send)
            return
        status, document = (
            (200, _KNOWN[path]) if path in _KNOWN else (404, {"error": f"{path} is not served here"})
        )
        body = orjson.dumps(document)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def serve_bare(
    doors: Mapping[str, Door], *, port: int, grpc_port: int | None, ready: Callable[[], None]
) -> None:
    """Serve on loopback until SIGINT or SIGTERM. ready: called once callers can connect."""
    app = by_prefix(doors)
    config = uvicorn.Config(
        app, port=port, http=GatheringProtocol, ws="none", lifespan="off", log_level="warning",
        access_log=False, proxy_headers=False,
    )  # fmt: skip
    listening = config.bind_socket()
    listening.listen()  # who connects from now on waits for the loop, and is not refused
    listener = None
    if grpc_port is not None:
        listener = Listener(Front(Inside(app)), f"127.0.0.1:{grpc_port}")
        await listener.start()
    for door in doors.values():
        door.opened()
    ready()
    try:
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        if listener is not None:
            await listener.stop(1)
        await asyncio.gather(*(door.close() for door in doors.values()))
