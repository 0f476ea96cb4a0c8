"""One gRPC call: the headers of its HTTP request, its messages and its trailing metadata, and the limits on calls.

Refusals, which are HTTP answers or errors of the predictor, become gRPC statuses. The limits bound what callers may
take of a gRPC server, with or without a token.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from grpc import StatusCode

from toque.clusters.telemetry.tracing import RequestTrace, begin_request, is_tracing
from toque.ray_apps.predictor.http.endpoint import Answer
from toque.ray_apps.predictor.protocol.errors import DeadlineExceeded, PredictorError

FORWARDED_METADATA: Final = (
    "authorization",
    "traceparent",
    "tracestate",
    "x-request-id",
    "x-toque-arm",
    "x-toque-priority",
    "x-toque-workspace",
)
"""Metadata of a call that is forwarded as headers of its HTTP request."""
_TRACEPARENT: Final = b"traceparent"
MAX_TIMEOUT_MS: Final = 999_999_999
"""The longest deadline that an HTTP endpoint reads, eleven days."""
CODES: Final[Mapping[int, StatusCode]] = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    501: StatusCode.UNIMPLEMENTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC code by HTTP status; any other refusal of a request is INVALID_ARGUMENT, a fault of the server INTERNAL."""
RETURNED_HEADERS: Final = frozenset({b"traceparent", b"tracestate", b"x-request-id", b"retry-after"})
"""Headers of an HTTP answer that a caller gets as trailing metadata."""
MAX_MESSAGE: Final = 2_000
"""Characters of a refusal's message: even escaped, it fits into 8 KiB of metadata, which every client takes."""
_FAULT: Final = 500
_UNREACHABLE: Final = 503
Metadata = tuple[tuple[str, str], ...]
_log = logging.getLogger("ray.serve")


class Call:
    """A gRPC call as the HTTP endpoints see it.

    requests: its messages, as bytes. context: grpc.aio's. held_bytes: of a large message that is not answered yet. trace:
    of a call that is traced here.
    """

    def __init__(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self._requests, self._context = aiter(requests), context
        self.held_bytes = 0
        self.trace: RequestTrace | None = None
        metadata = dict(context.invocation_metadata())
        self._forwarded = {
            name.encode(): value.strip().encode("latin-1")  # perf_analyzer sends " Bearer …"
            for name in FORWARDED_METADATA
            if isinstance(value := metadata.get(name), str)
        }

    @property
    def authorization(self) -> bytes | None:
        """The call's Authorization header, or None."""
        return self._forwarded.get(b"authorization")

    @property
    def workspace(self) -> bytes | None:
        """The workspace that the call names, or None."""
        return self._forwarded.get(b"x-toque-workspace")

    @property
    def client(self) -> str:
        """Address that the call comes from."""
        peer: str = self._context.peer()  # as in ipv4:127.0.0.1:40000
        return peer.partition(":")[2].rpartition(":")[0]

    def headers(self) -> dict[bytes, bytes]:
        """Headers of an HTTP request for this call: forwarded metadata, and the milliseconds until the deadline."""
        headers = dict(self._forwarded)
        if self.trace is not None:
            headers[_TRACEPARENT] = str(self.trace.context()).encode()
        left_s = self._context.time_remaining()
        if left_s is not None:
            headers[b"x-request-timeout-ms"] = b"%d" % min(max(1, int(left_s * 1e3)), MAX_TIMEOUT_MS)
        return headers

    def begin_trace(self) -> RequestTrace:
        """Begin the trace of this call; with tracing switched on, its HTTP request lies below it."""
        trace = begin_request(self._forwarded)
        self.trace = trace if is_tracing() else None
        return trace

    async def next_message(self, within_s: float) -> bytes | None:
        """Wait for the next message; None after the last. Raises: DeadlineExceeded."""
        try:
            async with asyncio.timeout(within_s):
                return await anext(self._requests, None)
        except TimeoutError:
            raise DeadlineExceeded(f"message: none came within {within_s:.3g} s; call again") from None

    def as_sent(self, metadata: Metadata) -> Metadata:
        """Give an answer's metadata with the position in the trace that the caller sent, or without any."""
        sent = self._forwarded.get(_TRACEPARENT)
        if self.trace is None:
            return metadata
        name = _TRACEPARENT.decode()
        rest = tuple(pair for pair in metadata if pair[0] != name)
        return rest if sent is None else (*rest, (name, sent.decode("latin-1")))

    def return_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Send the trace and request id of an HTTP answer to the caller, as trailing metadata."""
        metadata = self.as_sent(trailing_metadata(headers))
        if metadata:
            self._context.set_trailing_metadata(metadata)


class UnreachableError(Exception):
    """The models' HTTP endpoints cannot be reached, or did not answer."""


class HttpRefusal(Exception):  # noqa: N818 - an answer, as those of `errors`
    """A model's endpoint refused a request, with the HTTP answer `answer`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_message(answer))
        self.answer = answer


class Refusal(NamedTuple):
    """How a call ends without an answer: its status, the message for the caller, trailing metadata."""

    code: StatusCode
    message: str
    metadata: Metadata = ()


def refusal_of(error: Exception) -> Refusal:
    """The refusal for an error; an internal fault is logged, and the caller gets only its incident number."""
    message = str(error)[:MAX_MESSAGE]
    if isinstance(error, HttpRefusal):
        status, headers, _ = error.answer
        return Refusal(_code(status), message, trailing_metadata(headers))
    if isinstance(error, PredictorError):
        return Refusal(_code(error.status), message)
    if isinstance(error, UnreachableError):
        return Refusal(StatusCode.UNAVAILABLE, f"the models cannot be reached: {error}")
    incident = uuid.uuid4().hex
    _log.error("a gRPC call failed, incident %s", incident, exc_info=error)
    return Refusal(StatusCode.INTERNAL, f"internal error, incident {incident}")


def http_status_of(error: Exception) -> int:
    """HTTP status that stands for an error: of the answer that a call got, or what the HTTP endpoints would say."""
    if isinstance(error, HttpRefusal):
        return error.answer[0]
    if isinstance(error, PredictorError):
        return error.status
    return _UNREACHABLE if isinstance(error, UnreachableError) else _FAULT


def trailing_metadata(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """The headers of an HTTP answer that a caller gets, as trailing metadata."""
    return tuple(
        (name.decode(), value.decode("latin-1")) for name, value in headers if name in RETURNED_HEADERS
    )


def _code(status: int) -> StatusCode:
    return CODES.get(status, StatusCode.INVALID_ARGUMENT if status < _FAULT else StatusCode.INTERNAL)


def _message(answer: Answer) -> str:
    """The message of an HTTP refusal: its `error`, or `detail`, or the body itself."""
    status, _, body = answer
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict):
        for name in ("error", "detail"):
            if isinstance(document.get(name), str):
                message: str = document[name]
                return message
    return f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one gRPC server; the defaults fit one process on one node.

    max_message_bytes: of a request, unpacked; the HTTP endpoints' bound, so that both protocols accept the same.
    max_calls: calls at once on all connections; the endpoints refuse more than that in flight anyway.
    max_streams: calls at once on one connection; one caller must not hold all of `max_calls`.
    max_reads, max_reads_of_caller: messages that are being received at once, for all and for one token; further calls
    wait, at most `message_s`. max_open_streams, max_open_streams_of_caller: streams of messages, which are refused beyond.
    max_held_bytes: of large messages that wait for their answer; beyond it calls are refused.
    unread_bytes: of a message that are taken before it is read.
    max_connections: of all callers; each costs a file descriptor and some 100 KB, with or without a token.
    max_metadata_bytes: of a call's metadata; a large OIDC token and trace headers fit into it.
    handshake_s: from the connection to the client's first settings.
    message_s: from a call's headers to its whole message, as long as an endpoint waits for slow bodies.
    idle_s: without a call, after which a connection is closed, and without a message, after which a stream is.
    age_s: of a connection, so that callers spread over servers that started after they connected.
    age_grace_s: for the calls of a connection that is too old, which may be long streams.
    keepalive_s, keepalive_timeout_s: how often a silent caller is pinged, and how long its answer is waited for, so
    that callers which vanished are noticed.
    min_ping_interval_s: between a client's own pings; a client that pings more often is disconnected.
    """

    max_message_bytes: int = 64 << 20
    max_calls: int = 1_280
    max_streams: int = 1_024
    max_reads: int = 32
    max_reads_of_caller: int = 16
    max_open_streams: int = 256
    max_open_streams_of_caller: int = 64
    max_held_bytes: int = 256 << 20
    unread_bytes: int = 16 << 10
    max_connections: int = 4_096
    max_metadata_bytes: int = 16 << 10
    handshake_s: float = 10.0
    message_s: float = 60.0
    idle_s: float = 600.0
    age_s: float = 3_600.0
    age_grace_s: float = 300.0
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    min_ping_interval_s: float = 10.0

    def channel_arguments(self) -> list[tuple[str, Any]]:
        """The limits as options of gRPC core; the service enforces those without an option."""
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),  # after unpacking, too
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            # else core raises how much of an unread message it takes to megabytes a call
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", self.unread_bytes),
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),  # else some in between are taken
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_s)),
            ("grpc.max_connection_idle_ms", _ms(self.idle_s)),
            ("grpc.max_connection_age_ms", _ms(self.age_s)),
            ("grpc.max_connection_age_grace_ms", _ms(self.age_grace_s)),
            ("grpc.keepalive_time_ms", _ms(self.keepalive_s)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout_s)),
            # a minute by default, which would override the keepalive timeout
            ("grpc.http2.ping_timeout_ms", _ms(self.keepalive_timeout_s)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.min_ping_interval_s)),
            ("grpc.so_reuseport", 1),  # the next server listens before the last one ends
        ]


def _ms(seconds: float) -> int:
    return int(seconds * 1e3)


__all__ = [
    "RETURNED_HEADERS",
    "Call",
    "HttpRefusal",
    "Limits",
    "Metadata",
    "Refusal",
    "UnreachableError",
    "http_status_of",
    "refusal_of",
    "trailing_metadata",
]
