"""What every HTTP door of the predictor does around its answers: bound them, refuse, and never fall over.

It is written on ASGI itself, without a framework, because a framework's share of a small request is larger than
the model's. Every answer that is not a prediction is JSON; every refusal is `{"error": "…"}`.
"""

from __future__ import annotations

import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import orjson

from ray_apps.predictor.protocol.errors import BadRequest, Denied, Overloaded, PredictorError
from ray_apps.predictor.write_coalescing import STATE, Moment

__all__ = ["JSON", "Answer", "Door", "Message", "Receive", "Request", "Send", "echoed"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""

JSON = (b"content-type", b"application/json")
PRIORITY = b"x-toque-priority"
_ROOM = {b"low": 0.5, b"normal": 1.0, b"high": 1.125}
"""Of `max_in_flight`, what must not be taken yet for a request of each priority to come in."""
_ECHOED = {b"traceparent", b"tracestate", b"x-request-id"}
_log = logging.getLogger("ray.serve")


@dataclass(slots=True)
class Request:
    """One request.

    path: below where the door is mounted. headers: the last of each name, in lower case. receive: ASGI's, for its body.
    moment: at whose end its answer leaves; None if at once.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    receive: Receive
    moment: Moment | None = None


def echoed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What of a request's headers goes back with its answer."""
    return [header for header in headers if header[0] in _ECHOED]


class Door(ABC):
    """An ASGI application, or asked by `respond` without one; what it answers is a subclass's `answer`.

    max_in_flight: beyond it requests are refused with 429; those of low priority beyond half of it, those of high
    priority beyond an eighth more.
    """

    routes: tuple[()] = ()  # Serve names a request's route by these two: here there is one name, the mount
    router = SimpleNamespace(redirect_slashes=False)

    def __init__(self, *, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0

    @abstractmethod
    async def answer(self, request: Request) -> Answer:
        """Status, headers and body of the answer to one request. Raises: PredictorError."""

    def opened(self) -> None:  # noqa: B027  # to be overridden or not
        """Called once the server is up, where it says so."""

    def index(self) -> list[dict[str, str]]:
        """The model versions that answer here: `name`, `version` and `state` of each."""
        return []

    def figures(self) -> dict[str, float]:
        """What Serve is told to scale by, by name, beside the requests in flight; called once a second."""
        return {}

    @abstractmethod
    async def close(self) -> None:
        """End what stands behind the door."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        request = Request(scope["method"], path, dict(scope["headers"]), receive, _moment(scope))
        status, headers, body = await self.respond(request)
        headers.append((b"content-length", b"%d" % len(body)))
        headers += echoed(scope["headers"])
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def respond(self, request: Request) -> Answer:
        """The answer to one request, which a refusal or a fault is, too."""
        self.in_flight += 1
        try:
            self._check_room(request.headers)
            return await self.answer(request)
        except PredictorError as refusal:
            return _refusal(refusal)
        except Exception:  # noqa: BLE001 - the caller gets a 500 with its incident, the log the rest
            incident = uuid.uuid4().hex
            _log.exception("%s %s failed, incident %s", request.method, request.path, incident)
            return 500, [JSON], orjson.dumps({"error": f"internal error, incident {incident}"})
        finally:
            self.in_flight -= 1

    def _check_room(self, headers: Mapping[bytes, bytes]) -> None:
        priority = headers.get(PRIORITY, b"normal")
        room = _ROOM.get(priority.lower())
        if room is None:
            raise BadRequest(f"X-Toque-Priority: expected low, normal or high, got {priority[:40]!r}")
        if self.in_flight > self.max_in_flight * room:
            raise Overloaded(f"{self.in_flight} requests are in flight here; send again after a moment")

    async def _other(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lifespan events are acknowledged, websockets refused."""
        while scope["type"] == "lifespan":
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                self.opened()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
        await send({"type": "websocket.close", "code": 1003})


def _moment(scope: Message) -> Moment | None:
    state = scope.get("state")
    moment: Moment | None = state.get(STATE) if state else None
    return moment if moment is not None and moment.is_here() else None


def _refusal(refusal: PredictorError) -> Answer:
    headers = [JSON]
    if isinstance(refusal, Denied) and refusal.status == 401:  # noqa: PLR2004 - HTTP
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(refusal, Overloaded) or refusal.status == 503:  # noqa: PLR2004 - HTTP
        headers.append((b"retry-after", b"1"))
    return refusal.status, headers, orjson.dumps({"error": str(refusal).encode(errors="replace").decode()})
