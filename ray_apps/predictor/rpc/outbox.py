"""What goes out on one connection, held back where the client has no room for it."""

from __future__ import annotations

import asyncio
from typing import Final

from ray_apps.predictor.rpc.frames import (
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    HEADERS,
    MAX_FRAME,
    MAX_WINDOW,
    FaultError,
    header,
)
from ray_apps.predictor.rpc.heads import Head, write_fields
from ray_apps.predictor.rpc.wire import ENCODINGS
from ray_apps.predictor.write_coalescing import Gathered

__all__ = ["Outbox", "Port", "Stream"]

BEGUN: Final = b"\x88" + write_fields(
    [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", ENCODINGS)]
)
"""The fields of every answer; 0x88 is `:status 200`."""


class Port:
    """What is open at one port: so many calls that have no answer yet."""

    def __init__(self) -> None:
        self.calls = 0


class Stream:
    """One call.

    chunks, size: of its request, as long as that is not `whole`. unread: bytes of it that the client was not told of
    as taken. credit: what may be sent on it beyond the client's initial window. rest, trailers: of its answer, what
    there was no room for yet. since: when what it waits for began, on the loop's clock.
    """

    __slots__ = ("chunks", "credit", "head", "number", "rest", "since", "size", "task", "timer", "trailers", "unread",
                 "whole")  # fmt: skip

    def __init__(self, number: int, head: Head, since: float) -> None:
        self.number, self.head, self.since = number, head, since
        self.chunks: list[bytes] = []
        self.size = self.unread = self.credit = 0
        self.whole = False
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.rest: memoryview | None = None
        self.trailers = b""


class Outbox:
    """The frames to one client, through `transport`."""

    def __init__(self, transport: Gathered) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._window = self._initial_window = DEFAULT_WINDOW
        self._blocked: dict[int, Stream] = {}  # by the window of the connection, not by their own

    def send(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Send a frame that no window bounds."""
        self._transport.write(header(len(payload), kind, flags, number) + payload)

    def answer(self, stream: Stream, data: bytes, trailers: bytes) -> bool:
        """Send a call's answer; False if the client has no room for all of it yet."""
        size, number = len(data), stream.number
        if not data:
            self.send(HEADERS, END_HEADERS | END_STREAM, number, BEGUN + trailers)
            return True
        if size > min(self._window, self._initial_window + stream.credit, MAX_FRAME):
            self.send(HEADERS, END_HEADERS, number, BEGUN)
            stream.rest, stream.trailers = memoryview(data), trailers
            return self.push(stream)
        self._window -= size
        self._transport.write(
            b"".join((
                header(len(BEGUN), HEADERS, END_HEADERS, number), BEGUN,
                header(size, DATA, 0, number), data,
                header(len(trailers), HEADERS, END_HEADERS | END_STREAM, number), trailers,
            ))
        )  # fmt: skip
        return True

    def push(self, stream: Stream) -> bool:
        """Send what there is room for of an answer that waits; whether that was all."""
        self._blocked.pop(stream.number, None)
        parts: list[bytes | memoryview] = []
        while stream.rest is not None:
            own = self._initial_window + stream.credit
            room = min(self._window, own, MAX_FRAME)
            if room <= 0:
                if own > 0:
                    self._blocked[stream.number] = stream
                break
            chunk, stream.rest = stream.rest[:room], stream.rest[room:] or None
            self._window -= len(chunk)
            stream.credit -= len(chunk)
            parts += (header(len(chunk), DATA, 0, stream.number), chunk)
        if parts:
            stream.since = self._loop.time()
            self._transport.write(b"".join(parts))
        if stream.rest is not None:
            return False
        self.send(HEADERS, END_HEADERS | END_STREAM, stream.number, stream.trailers)
        return True

    def widen(self, more: int, stream: Stream | None) -> list[Stream]:
        """The client has room for `more` bytes, on a call or on all; returns the calls that are answered by that.

        Raises: FaultError.
        """
        window = more + (self._window if stream is None else self._initial_window + stream.credit)
        if more == 0 or window > MAX_WINDOW:
            raise FaultError(FLOW_CONTROL_ERROR, f"a window of {window} bytes, after {more} more")
        if stream is not None:
            stream.credit += more
            return [stream] if stream.rest is not None and self.push(stream) else []
        self._window = window
        return [
            waiting for waiting in list(self._blocked.values()) if self._window > 0 and self.push(waiting)
        ]

    def resize(self, window: int) -> None:
        """The client's initial window for each call; who was waiting is to be pushed. Raises: FaultError."""
        if window > MAX_WINDOW:
            raise FaultError(FLOW_CONTROL_ERROR, f"an initial window of {window} bytes")
        self._initial_window = window

    def drop(self, stream: Stream) -> None:
        """Send no more of a call's answer."""
        self._blocked.pop(stream.number, None)
