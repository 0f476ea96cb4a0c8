"""The service: calls in, one HTTP request each to the model's own door, answers and refusals out.

A refusal is a gRPC status with the words of the HTTP one. Bearer token, trace context and request id go through
both ways as metadata; what is left of a call's deadline goes along, and a call that is given up ends its request.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]  # it ships no types
import orjson

from ray_apps.predictor.errors import BadRequest, PredictorError
from ray_apps.predictor.rpc.messages import (
    METHODS,
    SERVICE,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from ray_apps.predictor.rpc.translate import is_typed, model_path, read_answer, read_metadata, write_request
from ray_apps.predictor.rpc.upstream import Answer, Upstream, UpstreamError

__all__ = ["Front", "open_front"]

_log = logging.getLogger("ray.serve")
_Code = grpc.StatusCode
CODES: Mapping[int, Any] = {
    400: _Code.INVALID_ARGUMENT,
    401: _Code.UNAUTHENTICATED,
    403: _Code.PERMISSION_DENIED,
    404: _Code.NOT_FOUND,
    405: _Code.UNIMPLEMENTED,
    413: _Code.RESOURCE_EXHAUSTED,
    429: _Code.RESOURCE_EXHAUSTED,
    502: _Code.UNAVAILABLE,
    503: _Code.UNAVAILABLE,
    504: _Code.DEADLINE_EXCEEDED,
}
"""gRPC's word for an HTTP status; any other refusal of a request is INVALID_ARGUMENT, of ours INTERNAL."""
PASSED_ON = ("authorization", "traceparent", "tracestate", "x-request-id", "x-toque-arm", "x-toque-priority")
PASSED_BACK = (b"traceparent", b"tracestate", b"x-request-id", b"retry-after")
_OK, _NOT_FOUND, _UNAVAILABLE, _FAULT = 200, 404, 503, 500


class _Refused(Exception):  # noqa: N818 - an answer, as those of `errors`
    """The HTTP door refused."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_words(answer))
        self.answer = answer


class Front(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """GRPCInferenceService before the HTTP door at `url` ("http://host:port")."""

    def __init__(self, url: str) -> None:
        self._upstream = Upstream(url)
        methods: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model,
            "ModelInfer": self._infer,
        }
        self._handlers = {
            f"/{SERVICE}/{name}": grpc.unary_unary_rpc_method_handler(
                self._guarded(methods[name]),
                request_deserializer=request.FromString,
                response_serializer=_serialize,
            )
            for name, request in METHODS.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method, as grpc asks for it; None for one that is not served."""
        return self._handlers.get(handler_call_details.method)

    def close(self) -> None:
        """End the connections to the HTTP door."""
        self._upstream.close()

    def _guarded(self, method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        """A method whose refusals end the call with their status."""

        async def call(request: Any, context: Any) -> Any:
            try:
                return await method(request, context)
            except _Refused as refusal:
                _give_back(context, refusal.answer)
                status, words = refusal.answer.status, str(refusal)
            except PredictorError as refusal:
                status, words = refusal.status, str(refusal)
            except UpstreamError as error:
                status, words = _UNAVAILABLE, f"the models cannot be reached: {error}"
            except Exception:  # noqa: BLE001 - the caller gets the incident, the log the rest
                incident = uuid.uuid4().hex
                _log.exception("a gRPC call failed, incident %s", incident)
                status, words = _FAULT, f"internal error, incident {incident}"
            other = _Code.INVALID_ARGUMENT if status < _FAULT else _Code.INTERNAL
            return await context.abort(CODES.get(status, other), words)  # it raises

        return call

    async def _ask(
        self, context: Any, method: str, path: str, *, length: int = 0, body: bytes = b""
    ) -> Answer:
        headers = _headers(context)
        if body:
            headers[b"content-type"] = b"application/octet-stream"
            headers[b"inference-header-content-length"] = b"%d" % length
        return await self._upstream.ask(method, path, headers, body)

    async def _live(self, _request: Any, _context: Any) -> Any:
        return ServerLiveResponse(live=True)

    async def _ready(self, _request: Any, context: Any) -> Any:
        try:
            answer = await self._ask(context, "GET", "/v2/health/ready")
        except UpstreamError:
            return ServerReadyResponse(ready=False)
        return ServerReadyResponse(ready=answer.status == _OK)

    async def _server(self, _request: Any, context: Any) -> Any:
        document = orjson.loads(_granted(await self._ask(context, "GET", "/v2")).body)
        return ServerMetadataResponse(
            name=document["name"], version=document["version"], extensions=document["extensions"]
        )

    async def _model_ready(self, request: Any, context: Any) -> Any:
        answer = await self._ask(context, "GET", f"{model_path(request.name, request.version)}/ready")
        if answer.status not in {_OK, _NOT_FOUND, _UNAVAILABLE}:
            raise _Refused(answer)
        return ModelReadyResponse(ready=answer.status == _OK)

    async def _model(self, request: Any, context: Any) -> Any:
        answer = await self._ask(context, "GET", model_path(request.name, request.version))
        return read_metadata(_granted(answer).body)

    async def _infer(self, request: Any, context: Any) -> Any:
        path = f"{model_path(request.model_name, request.model_version)}/infer"
        body, length = write_request(request)
        answer = _granted(await self._ask(context, "POST", path, length=length, body=body))
        _give_back(context, answer)
        json_bytes = answer.headers.get(b"inference-header-content-length")
        return read_answer(
            answer.body, None if json_bytes is None else int(json_bytes), typed=is_typed(request)
        )


def open_front(front: Front, address: str, *, max_message_bytes: int, max_calls: int) -> Any:
    """A grpc.aio server with the front on it, listening at `address`; `await server.start()` begins.

    max_message_bytes: of one request. max_calls: beyond them calls are refused with RESOURCE_EXHAUSTED.
    Raises: RuntimeError if the address cannot be had.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 1),  # the next replica listens before the last one ends
        ],
        maximum_concurrent_rpcs=max_calls,
    )
    server.add_generic_rpc_handlers((front,))
    if server.add_insecure_port(address) == 0:
        raise RuntimeError(f"gRPC cannot listen at {address}; end what holds the port, or choose another")
    return server


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _headers(context: Any) -> dict[bytes, bytes]:
    """What goes along: some metadata, and the milliseconds that are left."""
    headers: dict[bytes, bytes] = {}
    for name, value in context.invocation_metadata() or ():
        if name in PASSED_ON:
            headers[name.encode()] = _header(name, value)
    left_s = context.time_remaining()
    if left_s is not None:
        headers[b"x-request-timeout-ms"] = b"%d" % max(1, int(left_s * 1e3))
    return headers


def _header(name: str, value: str | bytes) -> bytes:
    raw = value.encode("latin-1", "replace") if isinstance(value, str) else value
    if b"\r" in raw or b"\n" in raw:
        raise BadRequest(f"metadata {name}: holds a line break")
    return raw


def _granted(answer: Answer) -> Answer:
    if answer.status != _OK:
        raise _Refused(answer)
    return answer


def _give_back(context: Any, answer: Answer) -> None:
    found = [
        (name.decode(), answer.headers[name].decode("latin-1"))
        for name in PASSED_BACK
        if name in answer.headers
    ]
    if found:
        context.set_trailing_metadata(tuple(found))


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
