"""gRPC statuses for refusals that are HTTP answers or errors of our own."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import orjson
from grpc import StatusCode

from ray_apps.predictor.http.endpoint import Answer
from ray_apps.predictor.protocol.errors import PredictorError

__all__ = [
    "RETURNED_HEADERS",
    "HttpRefusal",
    "Refusal",
    "UnreachableError",
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
"""The code for an HTTP status; any other refusal of a request is INVALID_ARGUMENT, a fault of ours INTERNAL."""
RETURNED_HEADERS: Final = frozenset({b"traceparent", b"tracestate", b"x-request-id", b"retry-after"})
"""Headers of an HTTP answer that a caller gets as trailing metadata."""
MAX_WORDS: Final = 2_000
"""Characters of a refusal: a client that takes 8 KiB of metadata can read it, whatever has to be escaped."""
_FAULT: Final = 500
_log = logging.getLogger("ray.serve")

Metadata = tuple[tuple[str, str], ...]


class UnreachableError(Exception):
    """The models' HTTP doors cannot be reached, or did not answer."""


class HttpRefusal(Exception):  # noqa: N818 - an answer, as those of `errors`
    """A model's door refused, by the HTTP answer `answer`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(_words(answer))
        self.answer = answer


class Refusal(NamedTuple):
    """How a call ends without an answer: its status, the words for the caller, trailing metadata."""

    code: StatusCode
    words: str
    metadata: Metadata = ()


def refusal_of(error: Exception) -> Refusal:
    """The refusal for an error; a fault of ours is logged, and the caller told its incident only."""
    words = str(error)[:MAX_WORDS]
    if isinstance(error, HttpRefusal):
        status, headers, _ = error.answer
        return Refusal(_code(status), words, trailing_metadata(headers))
    if isinstance(error, PredictorError):
        return Refusal(_code(error.status), words)
    if isinstance(error, UnreachableError):
        return Refusal(StatusCode.UNAVAILABLE, f"the models cannot be reached: {error}")
    incident = uuid.uuid4().hex
    _log.error("a gRPC call failed, incident %s", incident, exc_info=error)
    return Refusal(StatusCode.INTERNAL, f"internal error, incident {incident}")


def trailing_metadata(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """What of an HTTP answer's headers a caller gets as trailing metadata."""
    return tuple(
        (name.decode(), value.decode("latin-1")) for name, value in headers if name in RETURNED_HEADERS
    )


def _code(status: int) -> StatusCode:
    return CODES.get(status, StatusCode.INVALID_ARGUMENT if status < _FAULT else StatusCode.INTERNAL)


def _words(answer: Answer) -> str:
    """The message of an HTTP refusal: its `error`, or `detail`, or the body itself."""
    status, _, body = answer
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict):
        for name in ("error", "detail"):
            if isinstance(document.get(name), str):
                words: str = document[name]
                return words
    return f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}"
