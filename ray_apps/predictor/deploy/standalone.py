"""The predictor without Ray: some models in one process, behind one port, with gRPC beside it if wanted.

For trying a model, and for measuring what a replica does, without a cluster around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

import orjson
import uvicorn

from toque.functions.prediction_log import close_writers
from toque.ray_apps.admission.admission import ANY_MODEL
from toque.ray_apps.model_paths import models_path
from toque.ray_apps.predictor.grpc import GrpcServer
from toque.ray_apps.predictor.http.auth import READ, WORKSPACE, Authenticator
from toque.ray_apps.predictor.http.bypass import TimedProtocol
from toque.ray_apps.predictor.http.endpoint import (
    JSON,
    Answer,
    Endpoint,
    Message,
    Receive,
    Request,
    Send,
    echoed_headers,
)
from toque.ray_apps.predictor.protocol.errors import BadRequest
from toque.registry.access import DEFAULT_WORKSPACE

__all__ = ["EndpointRouter", "serve_standalone"]

MAX_INDEXING = 64
"""Requests for the repository index at once, which is cheap and seldom needed."""
INDEX = "/v2/repository/index"
_EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
_SERVER = {"name": "toque", "version": "standalone", "extensions": _EXTENSIONS}
_SERVER_DOCUMENTS = {"/v2": _SERVER, "/v2/health/live": {"live": True}, "/v2/health/ready": {"ready": True}}


class EndpointRouter:
    """Routes requests to the models' endpoints below the workspace's path, and answers the server's own routes.

    An ASGI application, which can be called without ASGI too, by `request`. The endpoint named "" is a pool's: it has
    every model without an endpoint of its own. auth: decides who may see which models there are. workspace: whose
    models they are.
    """

    def __init__(
        self, endpoints: Mapping[str, Endpoint], auth: Authenticator, workspace: str = DEFAULT_WORKSPACE
    ) -> None:
        self._root = models_path(workspace)
        self._endpoints, self._pool = endpoints, endpoints.get("")
        self._index = _IndexEndpoint(endpoints.values(), auth)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one ASGI request by the endpoint of its path."""
        endpoint, root = self._find(scope["path"])
        if endpoint is not None:
            scope["root_path"] = root
            await endpoint(scope, receive, send)
            return
        status, body = _server_document(scope["path"])
        headers = [JSON, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def request(
        self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes = b"", /
    ) -> Answer:
        """The response to a request with a whole body; path: quoted.

        A caller that gives up cancels this, so the endpoint is never told of a disconnect.
        """
        path = unquote(path)
        endpoint, root = self._find(path)
        if endpoint is None:
            status, document = _server_document(path)
            return status, [JSON], document
        request = Request(method, path.removeprefix(root), headers, _BufferedBody(body).receive, mount=root)
        status, answered, response = await endpoint.respond(request)
        return status, answered + echoed_headers(headers.items()), response

    async def close(self) -> None:
        """Do nothing: there are no connections to close."""

    def _find(self, path: str) -> tuple[Endpoint | None, str]:
        """The endpoint that a path leads to, and where it is mounted."""
        if path == INDEX:
            return self._index, INDEX
        root = self._root
        if not path.startswith(f"{root}/"):
            return None, ""
        name = path[len(root) + 1 :].partition("/")[0]
        endpoint = self._endpoints.get(name)
        return (self._pool, root) if endpoint is None else (endpoint, f"{root}/{name}")


class _IndexEndpoint(Endpoint):
    """The repository index: every model version that answers in this process."""

    def __init__(self, endpoints: Iterable[Endpoint], auth: Authenticator) -> None:
        super().__init__(max_in_flight=MAX_INDEXING)
        self._endpoints, self._auth = tuple(endpoints), auth

    async def answer(self, request: Request) -> Answer:
        """List the versions of all endpoints. Raises: Denied, BadRequest."""
        authorization = request.headers.get(b"authorization")
        admitted = await self._auth.admit(
            authorization, READ, model=ANY_MODEL, what=f"POST {INDEX}", client=request.client,
            workspace=request.headers.get(WORKSPACE),
        )  # fmt: skip
        admitted.release()
        if request.method != "POST":
            refusal = BadRequest(f"method: {INDEX} takes POST, not {request.method}")
            refusal.status = 405
            raise refusal
        entries = [entry for endpoint in self._endpoints for entry in endpoint.index()]
        return 200, [JSON], orjson.dumps(entries)

    async def close(self) -> None:
        """Do nothing: the endpoints are closed by their owner."""


class _BufferedBody:
    """A whole body, given out as ASGI gives it: in one message, after which nothing comes."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": body}


def _server_document(path: str) -> tuple[int, bytes]:
    status, document = (
        (200, _SERVER_DOCUMENTS[path])
        if path in _SERVER_DOCUMENTS
        else (404, {"error": f"{path} is not served here"})
    )
    return status, orjson.dumps(document)


async def serve_standalone(
    endpoints: Mapping[str, Endpoint],
    auth: Authenticator,
    *,
    workspace: str = DEFAULT_WORKSPACE,
    port: int,
    grpc_port: int | None,
    ready: Callable[[], None],
) -> None:
    """Serve on loopback until SIGINT or SIGTERM.

    auth: for what no endpoint admits itself, the index and gRPC. workspace: whose models they are. ready: called once callers can connect.
    """
    app = EndpointRouter(endpoints, auth, workspace)
    config = uvicorn.Config(
        app, port=port, http=TimedProtocol, ws="none", lifespan="off", log_level="warning",
        access_log=False, proxy_headers=False,
    )  # fmt: skip
    listening = config.bind_socket()
    listening.listen()  # a client that connects from now on waits for the loop, and is not refused
    server = None
    if grpc_port is not None:
        server = GrpcServer(app, auth, f"127.0.0.1:{grpc_port}")
        await server.start()
    for endpoint in endpoints.values():
        endpoint.on_startup()
    ready()
    try:
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        if server is not None:
            await server.stop(1)
        await asyncio.gather(*(endpoint.close() for endpoint in endpoints.values()))
        await asyncio.get_running_loop().run_in_executor(None, close_writers)
