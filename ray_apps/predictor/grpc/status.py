"""Maps refusals, which are HTTP answers or errors of the predictor, to gRPC statuses."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import orjson
from grpc import StatusCode

from toque.ray_apps.predictor.http.endpoint import Answer
from toque.ray_apps.predictor.protocol.errors import PredictorError

__all__ = [
    "RETURNED_HEADERS",
    "HttpRefusal",
    "Metadata",
    "Refusal",
    "UnreachableError",
    "http_status_of",
    "refusal_of",
    "trailing_metadata",
]

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
_log = logging.getLogger("ray.serve")

Metadata = tuple[tuple[str, str], ...]


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
