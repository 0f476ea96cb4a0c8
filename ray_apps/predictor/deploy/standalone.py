"""The predictor without Ray: some models in one process, behind one port, with gRPC beside it where asked.

To try a model, and to measure what a replica does, without a cluster around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

import orjson
import uvicorn

from ray_apps.predictor.grpc import GrpcServer
from ray_apps.predictor.http.auth import Authenticator
from ray_apps.predictor.http.endpoint import JSON, Answer, Door, Message, Receive, Request, Send, echoed
from ray_apps.predictor.protocol.errors import BadRequest
from ray_apps.predictor.write_coalescing import GatheringProtocol

__all__ = ["Doors", "serve_bare"]

ROOT = "/v2/models"
MAX_INDEXING = 64
"""Requests for the repository index at once: it is cheap, and nobody needs many."""
INDEX = "/v2/repository/index"
_EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
_SERVER = {"name": "toque", "version": "bare", "extensions": _EXTENSIONS}
_KNOWN = {"/v2": _SERVER, "/v2/health/live": {"live": True}, "/v2/health/ready": {"ready": True}}


class Doors:
    """Each model's door below `/v2/models/{name}`, the server's own routes beside them: an ASGI application, or asked without one.

    The door called "" is a pool's: it has every model that has no door of its own. auth: decides who may see which models
    there are.
    """

    def __init__(self, doors: Mapping[str, Door], auth: Authenticator) -> None:
        self._doors, self._pool = doors, doors.get("")
        self._index = _Index(doors.values(), auth)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        door, root = self._find(scope["path"])
        if door is not None:
            scope["root_path"] = root
            await door(scope, receive, send)
            return
        status, body = _known(scope["path"])
        headers = [JSON, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def ask(self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes = b"") -> Answer:
        """What they answer to a request whose body is there; path: quoted.

        A caller that gives up cancels this, so the door is never told that it went away.
        """
        path = unquote(path)
        door, root = self._find(path)
        if door is None:
            status, known = _known(path)
            return status, [JSON], known
        request = Request(method, path.removeprefix(root), headers, _Given(body).receive)
        status, told, answered = await door.respond(request)
        return status, told + echoed(headers.items()), answered

    async def close(self) -> None:
        """Do nothing: no connection is kept for asking."""

    def _find(self, path: str) -> tuple[Door | None, str]:
        """The door that a path leads to, and where it is mounted."""
        if path == INDEX:
            return self._index, INDEX
        if not path.startswith(f"{ROOT}/"):
            return None, ""
        name = path[len(ROOT) + 1 :].partition("/")[0]
        door = self._doors.get(name)
        return (self._pool, ROOT) if door is None else (door, f"{ROOT}/{name}")


class _Index(Door):
    """The repository index: every model version that answers in this process."""

    def __init__(self, doors: Iterable[Door], auth: Authenticator) -> None:
        super().__init__(max_in_flight=MAX_INDEXING)
        self._of, self._auth = tuple(doors), auth

    async def answer(self, request: Request) -> Answer:
        """List the versions of all doors. Raises: Denied, BadRequest."""
        await self._auth.admit(request.headers.get(b"authorization"))
        if request.method != "POST":
            refusal = BadRequest(f"method: {INDEX} takes POST, not {request.method}")
            refusal.status = 405
            raise refusal
        found = [entry for door in self._of for entry in door.index()]
        return 200, [JSON], orjson.dumps(found)

    async def close(self) -> None:
        """Do nothing: the doors are closed by their owner."""


class _Given:
    """A body that is there, as ASGI gives it."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": body}


def _known(path: str) -> tuple[int, bytes]:
    status, document = (
        (200, _KNOWN[path]) if path in _KNOWN else (404, {"error": f"{path} is not served here"})
    )
    return status, orjson.dumps(document)


async def serve_bare(
    doors: Mapping[str, Door],
    auth: Authenticator,
    *,
    port: int,
    grpc_port: int | None,
    ready: Callable[[], None],
) -> None:
    """Serve on loopback until SIGINT or SIGTERM.

    auth: decides who may come in, for what no door decides itself. ready: called once callers can connect.
    """
    app = Doors(doors, auth)
    config = uvicorn.Config(
        app, port=port, http=GatheringProtocol, ws="none", lifespan="off", log_level="warning",
        access_log=False, proxy_headers=False,
    )  # fmt: skip
    listening = config.bind_socket()
    listening.listen()  # who connects from now on waits for the loop, and is not refused
    server = None
    if grpc_port is not None:
        server = GrpcServer(app, auth, f"127.0.0.1:{grpc_port}")
        await server.start()
    for door in doors.values():
        door.opened()
    ready()
    try:
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        if server is not None:
            await server.stop(1)
        await asyncio.gather(*(door.close() for door in doors.values()))
