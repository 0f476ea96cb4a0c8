"""The base of all HTTP endpoints of the predictor: requests in flight are bounded, refusals and faults answered.

Written on ASGI itself, without a framework, because a framework's share of a small request is larger than the
model's. Every response that is not a prediction is JSON; every refusal is `{"error": "…"}`.
"""

from __future__ import annotations

import logging
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import orjson

from toque.clusters.telemetry.tracing import begin_request
from toque.ray_apps.admission.admission import Admitted
from toque.ray_apps.predictor.http.bypass import DIRECT
from toque.ray_apps.predictor.protocol.errors import BadRequest, Denied, Overloaded, PredictorError
from toque.ray_apps.predictor.write_coalescing import WRITE_BATCH, WriteBatch

__all__ = ["JSON", "Answer", "Endpoint", "Message", "Receive", "Request", "Send", "echoed_headers"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes | bytearray]
"""Status, headers and body."""

JSON = (b"content-type", b"application/json")
PRIORITY = b"x-toque-priority"
_SHARES = {b"low": 0.5, b"normal": 1.0, b"high": 1.125}
"""Share of `max_in_flight` that may be taken when a request of each priority is admitted."""
_REQUEST_ID = b"x-request-id"
_ECHOED = {b"traceparent", b"tracestate", _REQUEST_ID}
_REFUSED = 400
_log = logging.getLogger("ray.serve")


@dataclass(slots=True)
class Request:
    """One HTTP request to an endpoint.

    path: below where the endpoint is mounted. headers: the last of each name, in lower case. receive: ASGI's, for the
    body. write_batch: with which the response leaves; None if at once. client: address that it comes from. admitted:
    what the endpoint let it in with; None: it has not. held_bytes: of a large body, counted until it is answered. mount:
    where the endpoint is mounted. send: ASGI's, for an answer that leaves in pieces; streamed: whether one has begun.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    receive: Receive
    write_batch: WriteBatch | None = None
    client: str = ""
    admitted: Admitted | None = None
    held_bytes: int = 0
    mount: str = ""
    send: Send | None = None
    streamed: bool = False


def echoed_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request that its response repeats: trace and request id."""
    return [header for header in headers if header[0] in _ECHOED]


class Endpoint(ABC):
    """An ASGI application, which can be called without ASGI too, by `respond`; subclasses implement `answer`.

    max_in_flight: beyond it requests are refused with 429; those of low priority beyond half of it, those of high
    priority beyond an eighth more.
    """

    routes: tuple[()] = ()  # Serve names a request's route by these two: here there is one name, the mount
    router = SimpleNamespace(redirect_slashes=False)

    def __init__(self, *, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.statuses: Counter[int] = Counter()
        self.indirect = 0
        """Predictions that did not come by this replica's own port, while Serve runs it."""
        self.behind_serve = False

    @abstractmethod
    async def answer(self, request: Request) -> Answer:
        """Status, headers and body of the answer to one request. Raises: PredictorError."""

    def refusal(self, refusal: PredictorError) -> Answer:
        """Make the response that tells a refusal."""
        headers = [JSON]
        if isinstance(refusal, Denied) and refusal.status == 401:  # noqa: PLR2004 - HTTP
            headers.append((b"www-authenticate", b"Bearer"))
        if isinstance(refusal, Overloaded) or refusal.status == 503:  # noqa: PLR2004 - HTTP
            headers.append((b"retry-after", b"1"))
        return (
            refusal.status,
            headers,
            orjson.dumps({"error": str(refusal).encode(errors="replace").decode()}),
        )

    def on_startup(self) -> None:  # noqa: B027  # to be overridden or not
        """Hook that is called once the HTTP server is up, if the server reports it."""

    def index(self) -> list[dict[str, str]]:
        """The model versions that answer here: `name`, `version` and `state` of each."""
        return []

    def autoscaling_metrics(self) -> dict[str, float]:
        """Metrics by name that Serve scales by, beside the requests in flight; called once a second."""
        return {}

    @abstractmethod
    async def close(self) -> None:
        """Close what the endpoint holds: its predictor or pool."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one ASGI request or event."""
        if scope["type"] != "http":
            await self._handle_other(scope, receive, send)
            return
        mount = scope.get("root_path", "")
        path = scope["path"].removeprefix(mount)
        client = scope.get("client")
        is_head = scope["method"] == "HEAD"  # GET without the body
        request = Request(
            "GET" if is_head else scope["method"],
            path,
            dict(scope["headers"]),
            receive,
            _write_batch(scope),
            client[0] if client else "",
            mount=mount,
            send=send,
        )
        by_serve = self.behind_serve and DIRECT not in scope
        if by_serve and path.endswith("/infer"):
            self.indirect += 1
        status, headers, body = await self.respond(request)
        if request.streamed:
            return
        headers.append((b"content-length", b"%d" % len(body)))
        headers += echoed_headers(scope["headers"])
        if by_serve:  # which answers with the id of the request itself
            headers = [header for header in headers if header[0] != _REQUEST_ID]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if is_head else body})

    async def respond(self, request: Request) -> Answer:
        """The response to one request, with refusals and faults as responses too."""
        trace, path = begin_request(request.headers), request.mount + request.path
        self.in_flight += 1
        try:
            self._check_capacity(request.headers)
            answer = await self.answer(request)
        except PredictorError as refusal:
            answer = self.refusal(refusal)
        except Exception:  # noqa: BLE001 - the caller gets a 500 with its incident, the log the rest
            incident = uuid.uuid4().hex
            _log.exception("%s %s failed, incident %s", request.method, request.path, incident)
            answer = self.refusal(_Fault(f"internal error, incident {incident}"))
        finally:
            self.in_flight -= 1
            if request.admitted is not None:
                request.admitted.release()
        status, headers, _ = answer
        self.statuses[status] += 1
        if status >= _REFUSED and _REQUEST_ID not in request.headers:  # others say the id of their prediction
            headers.append((_REQUEST_ID, trace.identity()["request_id"].encode()))
        caller = "" if request.admitted is None else request.admitted.principal.name
        trace.finish(request.method, path, status, caller=caller)
        return answer

    def _check_capacity(self, headers: Mapping[bytes, bytes]) -> None:
        priority = headers.get(PRIORITY)
        share = 1.0 if priority is None else _SHARES.get(priority.lower())
        if share is None:
            raise BadRequest(
                f"X-Toque-Priority: expected low, normal or high, got {(priority or b'')[:40]!r}"
            )
        if self.in_flight > self.max_in_flight * share:
            raise Overloaded(f"{self.in_flight} requests are in flight here; send again after a moment")

    async def _handle_other(self, scope: Message, receive: Receive, send: Send) -> None:
        """Acknowledge lifespan events, and refuse websockets."""
        while scope["type"] == "lifespan":
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                self.on_startup()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
        await send({"type": "websocket.close", "code": 1003})


def _write_batch(scope: Message) -> WriteBatch | None:
    state = scope.get("state")
    batch: WriteBatch | None = state.get(WRITE_BATCH) if state else None
    return batch if batch is not None and batch.is_of_running_loop() else None


class _Fault(PredictorError):  # noqa: N818  # as the refusals beside it
    """An unforeseen error of the server: 500."""

    status = 500
