"""One gRPC call: the headers of its HTTP request, its messages and its trailing metadata."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from toque.clusters.telemetry.tracing import RequestTrace, begin_request, is_tracing
from toque.ray_apps.predictor.grpc.status import Metadata, trailing_metadata
from toque.ray_apps.predictor.protocol.errors import DeadlineExceeded

__all__ = ["Call"]

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
