"""The service: calls in, one HTTP request each to the model's own door, answers and refusals out.

A refusal is a gRPC status with the words of the HTTP one. Bearer token, trace context and request id go through
both ways as metadata; what is left of a call's deadline goes along, and a call that is given up ends its request.
"""

from __future__ import annotations

import enum
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol
from urllib.parse import quote

import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it ships no types

from ray_apps.predictor.protocol.errors import BadRequest, Overloaded, PredictorError
from ray_apps.predictor.protocol.messages import (
    METHODS,
    SERVICE,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from ray_apps.predictor.protocol.protobuf import PROTOBUF, read_addressee
from ray_apps.predictor.rpc.heads import Head, write_status
from ray_apps.predictor.rpc.upstream import Answer, UpstreamError
from ray_apps.predictor.rpc.wire import NotServed, read_message, write_message

__all__ = ["Front", "HttpDoors"]

_log = logging.getLogger("ray.serve")


class Code(enum.IntEnum):
    """The statuses of gRPC that are answered."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


CODES: Mapping[int, Code] = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    405: Code.UNIMPLEMENTED,
    413: Code.RESOURCE_EXHAUSTED,
    429: Code.RESOURCE_EXHAUSTED,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}
"""gRPC's word for an HTTP status; any other refusal of a request is INVALID_ARGUMENT, of ours INTERNAL."""
PASSED_ON = (
    b"authorization",
    b"traceparent",
    b"tracestate",
    b"x-request-id",
    b"x-toque-arm",
    b"x-toque-priority",
)
PASSED_BACK = (b"traceparent", b"tracestate", b"x-request-id", b"retry-after")
VERSION_DIGITS: Final = 9
DONE = write_status(Code.OK)
_OK, _NOT_FOUND, _UNAVAILABLE, _FAULT = 200, 404, 503, 500


class HttpDoors(Protocol):
    """The HTTP doors of all models."""

    async def ask(
        self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes = b"", /
    ) -> Answer:
        """Their answer to a request; path: quoted. Raises: UpstreamError if there is none."""
        ...

    def close(self) -> None:
        """End what is kept for asking."""
        ...


@dataclass(slots=True)
class _Call:
    """One call: what it says of itself, its message, and the metadata that its answer gets."""

    head: Head
    message: bytes = b""
    trailing: list[tuple[bytes, bytes]] = field(default_factory=list)


Method = Callable[[Any, _Call], Awaitable[Any]]


class _Refused(Exception):  # noqa: N818 - an answer, as those of `errors`
    """The HTTP door refused."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_words(answer))
        self.answer = answer


class Front:
    """GRPCInferenceService before the HTTP doors of all models.

    max_message_bytes: of one request. max_calls: beyond them calls are refused with RESOURCE_EXHAUSTED.
    """

    def __init__(
        self, doors: HttpDoors, *, max_message_bytes: int = 64 << 20, max_calls: int = 1_280
    ) -> None:
        self._doors, self.max_message_bytes, self._max_calls = doors, max_message_bytes, max_calls
        self._calls = 0
        methods: dict[str, Method] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model,
            "ModelInfer": self._infer,
        }
        readers = {name: request.FromString for name, request in METHODS.items()}
        readers["ModelInfer"] = read_addressee
        self._methods = {f"/{SERVICE}/{name}": (read, methods[name]) for name, read in readers.items()}

    async def serve(self, head: Head, body: bytes) -> tuple[bytes, bytes]:
        """The answer to a call and its trailers; a refusal has trailers alone, with their status."""
        call = _Call(head)
        self._calls += 1
        try:
            answer = await self._answer(call, body)
            return write_message(answer), _trailers(call)
        except _Refused as refusal:
            _give_back(call, refusal.answer)
            status, words = refusal.answer.status, str(refusal)
        except PredictorError as refusal:
            status, words = refusal.status, str(refusal)
        except UpstreamError as error:
            status, words = _UNAVAILABLE, f"the models cannot be reached: {error}"
        except Exception:  # noqa: BLE001 - the caller gets the incident, the log the rest
            incident = uuid.uuid4().hex
            _log.exception("a gRPC call failed, incident %s", incident)
            status, words = _FAULT, f"internal error, incident {incident}"
        finally:
            self._calls -= 1
        code = CODES.get(status, Code.INVALID_ARGUMENT if status < _FAULT else Code.INTERNAL)
        return b"", write_status(code, words, call.trailing)

    def too_large(self) -> bytes:
        """The trailers for a request of more bytes than are taken."""
        return write_status(
            Code.RESOURCE_EXHAUSTED,
            f"message: more than {self.max_message_bytes} bytes; send smaller batches",
        )

    def too_late(self) -> bytes:
        """The trailers for a call whose deadline has passed."""
        return write_status(Code.DEADLINE_EXCEEDED, "deadline: it passed before the answer was there")

    def close(self) -> None:
        """End the connections to the HTTP doors."""
        self._doors.close()

    async def _answer(self, call: _Call, body: bytes) -> bytes:
        if self._calls > self._max_calls:
            raise Overloaded(f"{self._calls} calls are in flight here; send again after a moment")
        read, method = self._methods.get(call.head.path, (None, None))
        if read is None or method is None:
            raise NotServed(f"method: {call.head.path:.200} is not served; {SERVICE} is, without streams")
        encoding = call.head.fields.get(b"grpc-encoding", b"identity")
        call.message = read_message(body, encoding, max_bytes=self.max_message_bytes)
        try:
            request = read(call.message)
        except DecodeError as error:
            raise BadRequest(f"message: not what {call.head.path} takes: {error}") from None
        answer: bytes | Any = await method(request, call)
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    async def _ask(self, call: _Call, path: str) -> Answer:
        return await self._doors.ask("GET", path, _headers(call.head))

    async def _live(self, _request: Any, _call: _Call) -> Any:
        return ServerLiveResponse(live=True)

    async def _ready(self, _request: Any, call: _Call) -> Any:
        try:
            answer = await self._ask(call, "/v2/health/ready")
        except UpstreamError:
            return ServerReadyResponse(ready=False)
        return ServerReadyResponse(ready=answer.status == _OK)

    async def _server(self, _request: Any, call: _Call) -> Any:
        document = orjson.loads(_granted(await self._ask(call, "/v2")).body)
        return ServerMetadataResponse(
            name=document["name"], version=document["version"], extensions=document["extensions"]
        )

    async def _model_ready(self, request: Any, call: _Call) -> Any:
        answer = await self._ask(call, f"{_path(request.name, request.version)}/ready")
        if answer.status not in {_OK, _NOT_FOUND, _UNAVAILABLE}:
            raise _Refused(answer)
        return ModelReadyResponse(ready=answer.status == _OK)

    async def _model(self, request: Any, call: _Call) -> Any:
        return _metadata(_granted(await self._ask(call, _path(request.name, request.version))).body)

    async def _infer(self, request: Any, call: _Call) -> bytes:
        """The model's own door answers the message; here it is read for the model's name alone."""
        path = f"{_path(request.model_name, request.model_version)}/infer"
        answer = _granted(await self._doors.ask("POST", path, _message_headers(call.head), call.message))
        _give_back(call, answer)
        return answer.body


def _headers(head: Head) -> dict[bytes, bytes]:
    """What goes along: some metadata, and the milliseconds that are left."""
    fields = head.fields
    headers = {name: _header(name, fields[name]) for name in PASSED_ON if name in fields}
    if head.timeout_s is not None:
        headers[b"x-request-timeout-ms"] = b"%d" % max(1, int(head.timeout_s * 1e3))
    return headers


@lru_cache(maxsize=256)  # a client's heads are the same object call after call
def _message_headers(head: Head) -> Mapping[bytes, bytes]:
    """The same for a message."""
    return _headers(head) | {b"content-type": PROTOBUF}


def _header(name: bytes, value: bytes) -> bytes:
    if b"\r" in value or b"\n" in value:
        raise BadRequest(f"metadata {name.decode()}: holds a line break")
    return value


def _trailers(call: _Call) -> bytes:
    return write_status(Code.OK, fields=call.trailing) if call.trailing else DONE


def _granted(answer: Answer) -> Answer:
    if answer.status != _OK:
        raise _Refused(answer)
    return answer


def _give_back(call: _Call, answer: Answer) -> None:
    call.trailing += [(name, answer.headers[name]) for name in PASSED_BACK if name in answer.headers]


def _words(answer: Answer) -> str:
    """The message of an HTTP refusal: its `error`, or `detail`, or the text itself."""
    try:
        document = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict):
        for name in ("error", "detail"):
            if isinstance(document.get(name), str):
                words: str = document[name]
                return words
    return f"HTTP {answer.status}: {answer.body[:200].decode('utf-8', 'replace')}"


@lru_cache(maxsize=1_024)
def _path(name: str, version: str) -> str:
    """The HTTP path of a model, or of one version of it.

    version: "" leaves it to the traffic policy. Raises: BadRequest naming the field.
    """
    if not name:
        raise BadRequest("model_name: missing; name the model")
    path = f"/v2/models/{quote(name, safe='')}"
    if not version:
        return path
    if not (version.isascii() and version.isdigit() and len(version) <= VERSION_DIGITS):
        raise BadRequest(
            f"model_version: versions are numbers, got {version!r:.80}; leave it out for the policy's"
        )
    return f"{path}/versions/{version}"


def _metadata(body: bytes) -> Any:
    """The HTTP description of a model as a ModelMetadataResponse."""
    document = orjson.loads(body)
    answer = ModelMetadataResponse(
        name=document["name"], versions=document["versions"], platform=document["platform"]
    )
    for side in ("inputs", "outputs"):
        for tensor in document[side]:
            getattr(answer, side).add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
    return answer
