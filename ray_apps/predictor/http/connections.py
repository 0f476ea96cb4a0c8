"""HTTP connections with deadlines: a caller that sends or reads too slowly is disconnected.

uvicorn closes idle connections between two requests only. Here each connection has a timer, which looks every few
seconds at what the connection waits for; requests themselves pay for a timestamp.
"""

from __future__ import annotations

import asyncio
from typing import Final

from toque.ray_apps.predictor.write_coalescing import CoalescingProtocol

__all__ = ["BYTES_PER_S", "HEAD_S", "MAX_CONNECTIONS", "MAX_HEAD_BYTES", "TimedProtocol"]

HEAD_S: Final = 10.0
"""For the first request after the connection, and for the headers of any."""
GRACE_S: Final = 10.0
"""For a body or response before its rate counts."""
BYTES_PER_S: Final = 128 << 10
"""Lowest average rate at which a caller may send a body or read a response, after the grace."""
MAX_HEAD_BYTES: Final = 64 << 10
"""Of a request's headers, in a request that comes in more than one piece."""
MAX_CONNECTIONS: Final = 4_096
"""Of one process; each costs a file descriptor and some 20 KB."""
_PERIOD_S: Final = 5.0
_REFUSAL = b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class TimedProtocol(CoalescingProtocol):
    """HTTP/1.1 of uvicorn whose callers have deadlines and whose headers are bounded."""

    _since: float | None = None  # when the request that is being read began; None: none is
    _received = 0  # bytes of it
    _drain_by: float | None = None  # when the response that waits to be read must be gone
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the connection's timer, or close it if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.abort()
            return
        self._since = self.loop.time()
        self._timer = self.loop.call_later(HEAD_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a connection that has ended."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it makes the headers too long."""
        super().data_received(data)
        self._received += len(data)
        if self._since is not None and self._received > MAX_HEAD_BYTES and self._in_head:
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Note when a request began."""
        self._since, self._received = self.loop.time(), 0
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Note that a request is whole."""
        self._since = None
        super().on_message_complete()

    @property
    def _in_head(self) -> bool:
        """Whether the headers of the request that is being read are not whole."""
        return self.cycle is None or self.cycle.scope is not self.scope

    @property
    def _can_answer(self) -> bool:
        """Whether a response may be written now, without breaking into another one."""
        return self.cycle.response_complete if self._in_head else not self.cycle.response_started

    def _check(self) -> None:
        """Close the connection if its caller is too slow, or look again later."""
        if self.transport.get_protocol() is not self:  # it has become a websocket
            return
        now = self.loop.time()
        if self._is_reader_late(now):
            self.transport.abort()
            return
        if self._since is not None and now >= self._since + self._allowed_s:
            self._refuse(b"408 Request Timeout")
        self._timer = self.loop.call_later(_PERIOD_S, self._check)

    @property
    def _allowed_s(self) -> float:
        return HEAD_S if self._in_head else GRACE_S + self._received / BYTES_PER_S

    def _is_reader_late(self, now: float) -> bool:
        """Whether the caller has not read, in time, what waited for it when this was first asked."""
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            self._drain_by = None
        elif self._drain_by is None:
            self._drain_by = now + GRACE_S + waiting / BYTES_PER_S
        return self._drain_by is not None and now >= self._drain_by

    def _refuse(self, status: bytes) -> None:
        """End the connection, with a response if none has begun."""
        self._since = None
        if self._received and (self.cycle is None or self._can_answer):
            self.transport.write(_REFUSAL % status)
        self.transport.close()
