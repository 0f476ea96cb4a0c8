"""One gRPC call: what its HTTP request takes along, and what the caller gets back beside the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from ray_apps.predictor.grpc.status import trailing_metadata
from ray_apps.predictor.protocol.errors import DeadlineExceeded

__all__ = ["Call"]

FORWARDED_METADATA: Final = (
    "authorization",
    "traceparent",
    "tracestate",
    "x-request-id",
    "x-toque-arm",
    "x-toque-priority",
)
"""Metadata of a call that its HTTP request gets as headers."""
MAX_TIMEOUT_MS: Final = 999_999_999
"""The longest deadline that an HTTP door reads, eleven days."""


class Call:
    """A call in the words of the HTTP doors.

    requests: its messages, as bytes. context: grpc.aio's.
    """

    def __init__(self, requests: AsyncIterator[bytes], context: Any) -> None:
        self._requests, self._context = aiter(requests), context
        metadata = dict(context.invocation_metadata())
        self._forwarded = {
            name.encode(): value.strip().encode("latin-1")  # perf_analyzer sends " Bearer …"
            for name in FORWARDED_METADATA
            if isinstance(value := metadata.get(name), str)
        }

    @property
    def authorization(self) -> bytes | None:
        """The header that says who calls."""
        return self._forwarded.get(b"authorization")

    def headers(self) -> dict[bytes, bytes]:
        """What an HTTP request takes along: some metadata, and the milliseconds that are left."""
        left_s = self._context.time_remaining()
        if left_s is None:
            return self._forwarded
        left_ms = min(max(1, int(left_s * 1e3)), MAX_TIMEOUT_MS)
        return {**self._forwarded, b"x-request-timeout-ms": b"%d" % left_ms}

    async def next_message(self, within_s: float) -> bytes | None:
        """The next message, None after the last. Raises: DeadlineExceeded."""
        try:
            async with asyncio.timeout(within_s):
                return await anext(self._requests, None)
        except TimeoutError:
            raise DeadlineExceeded(f"message: none came within {within_s:g} s; call again") from None

    def return_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Let the caller have an HTTP answer's trace and request id, as trailing metadata."""
        metadata = trailing_metadata(headers)
        if metadata:
            self._context.set_trailing_metadata(metadata)
