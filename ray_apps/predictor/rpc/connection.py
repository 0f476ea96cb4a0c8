"""One HTTP/2 connection of a gRPC client: frames in, whole requests to the service, its answers out.

Only what unary calls need, in Python that does little for each frame, because a general HTTP/2 library takes longer
for a small request than its model does. A connection holds no more than its streams, each bounded: who does not
read what is answered is not read from either.

Source: RFC 9113 (HTTP/2), and "gRPC over HTTP2".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from ray_apps.predictor.rpc.frames import (
    ACK,
    CALM,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_HEADER_LIST_SIZE,
    NO_ERROR,
    PADDED,
    PING,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    FaultError,
    Frames,
    check_size,
    number_of,
    read_settings,
    unpadded,
    write_numbers,
    write_settings,
)
from ray_apps.predictor.rpc.heads import MAX_BYTES, Head, HeadError, Heads, write_fields
from ray_apps.predictor.rpc.outbox import Outbox, Port, Stream
from ray_apps.predictor.write_coalescing import Gathered

__all__ = ["PATIENCE_S", "Connection", "Service"]

NO_HTTP2: Final = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nthis port speaks gRPC\n"
NO_GRPC: Final = write_fields([(b":status", b"415")])
OUR_WINDOW: Final = 4 << 20
MAX_STREAMS: Final = 1_280
MAX_PIECES: Final = 64
"""Frames that the fields of one call may come in."""
MAX_NUISANCES: Final = 1_000
"""Calls that a client may give up, and settings that it may send, beyond the calls that it lets us answer."""
PATIENCE_S: Final = 60.0
"""How long a request may take to come whole, or its answer to go."""


class Service(Protocol):
    """What answers a call."""

    max_message_bytes: int

    async def serve(self, head: Head, body: bytes) -> tuple[bytes, bytes]:
        """The data of the answer, if any, and its trailers; it raises nothing."""
        ...

    def too_large(self) -> bytes:
        """The trailers for a request of more bytes than are taken."""
        ...

    def too_late(self) -> bytes:
        """The trailers for a call whose deadline has passed."""
        ...


class Connection(asyncio.Protocol):
    """The server's side of one connection; it is in `connections` as long as it is open."""

    def __init__(self, service: Service, port: Port, connections: set[Connection]) -> None:
        self._service, self._port, self._connections = service, port, connections
        self._loop = asyncio.get_running_loop()
        self._transport: Gathered
        self._out: Outbox
        self._frames, self._heads = Frames(), Heads()
        self._pieces: tuple[int, int, list[bytes]] | None = None
        self._streams: dict[int, Stream] = {}
        self._last = self._nuisances = self._unread = 0
        self._leaving = False
        self._waits_since: float | None = self._loop.time()  # for the client's preface, or for it to read
        self._takers: dict[int, Callable[[int, int, bytes], None]] = {
            DATA: self._take_data,
            HEADERS: self._take_headers,
            RST_STREAM: self._take_reset,
            SETTINGS: self._take_settings,
            PUSH_PROMISE: self._take_push,
            PING: self._take_ping,
            WINDOW_UPDATE: self._take_window,
            CONTINUATION: self._take_continuation,
        }

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        port = self._port
        self._transport = Gathered(cast("asyncio.Transport", transport), lambda: port.calls > 0)
        self._out = Outbox(self._transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio passes it
        """It has ended: nobody waits for what is being answered."""
        self._connections.discard(self)
        self._give_up_all()

    def pause_writing(self) -> None:
        """The client does not read: it is not read from either."""
        self._waits_since = self._loop.time()
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        self._waits_since = None
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        greeted = self._frames.greeted
        try:
            for kind, flags, number, payload in self._frames.feed(data):
                if not greeted:
                    greeted = self._greet()
                self._take(kind, number, flags, payload)
        except FaultError as fault:
            self._end(fault.code, str(fault))
        except HeadError as error:
            self._end(COMPRESSION_ERROR, str(error))

    def leave(self) -> None:
        """Take no more calls, and end once those that are here are answered."""
        self._leaving = True
        if self._frames.greeted:
            self._say_goodbye(NO_ERROR, "")
        self._close_if_done()

    def abort(self) -> None:
        """End now."""
        self._transport.abort()

    def check(self) -> None:
        """Give up what has waited for the client for too long; to be called every few seconds."""
        limit = self._loop.time() - PATIENCE_S
        if self._waits_since is not None and self._waits_since < limit:
            self.abort()
        for stream in list(self._streams.values()):
            if stream.since < limit and (not stream.whole or stream.rest is not None):
                self._give_up(stream)
                self._reset(stream.number, CANCEL)
        self._close_if_done()

    # reading

    def _take(self, kind: int, number: int, flags: int, payload: bytes) -> None:
        """One frame; those of a kind that is not known are passed over."""
        if self._pieces is not None and kind != CONTINUATION:
            raise FaultError(PROTOCOL_ERROR, "another frame amid a block of fields")
        take = self._takers.get(kind)
        if take is not None:
            take(number, flags, payload)

    def _greet(self) -> bool:
        self._waits_since = None
        settings = {
            MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            INITIAL_WINDOW_SIZE: OUR_WINDOW,
            MAX_HEADER_LIST_SIZE: MAX_BYTES,
        }
        self._out.send(SETTINGS, 0, 0, write_settings(settings))
        self._out.send(WINDOW_UPDATE, 0, 0, write_numbers(OUR_WINDOW - DEFAULT_WINDOW))
        return True

    def _take_data(self, number: int, flags: int, payload: bytes) -> None:
        length = len(payload)
        self._unread = self._acknowledge(0, self._unread + length)
        if flags & PADDED:
            payload = unpadded(payload)
        stream = self._streams.get(number)
        if stream is None or stream.whole:
            if number > self._last or number == 0:
                raise FaultError(PROTOCOL_ERROR, f"data on stream {number}, which was not opened")
            return  # of a call that has ended
        stream.size += len(payload)
        if stream.size > self._service.max_message_bytes:
            self._finish(stream, b"", self._service.too_large())
            self._reset(number, NO_ERROR)
        elif flags & END_STREAM:
            self._begin(stream, b"".join((*stream.chunks, payload)) if stream.chunks else payload)
        elif payload:
            stream.chunks.append(payload)
            stream.unread = self._acknowledge(number, stream.unread + length)

    def _acknowledge(self, number: int, unread: int) -> int:
        """Let the client send on once half a window is taken; what it was not told of yet."""
        if unread < OUR_WINDOW // 2:
            return unread
        self._out.send(WINDOW_UPDATE, 0, number, write_numbers(unread))
        return 0

    def _take_headers(self, number: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & WITH_PRIORITY:
            payload = payload[5:]
        if flags & END_HEADERS:
            self._open(number, flags, payload)
        else:
            self._pieces = number, flags, [payload]

    def _take_continuation(self, number: int, flags: int, payload: bytes) -> None:
        if self._pieces is None or self._pieces[0] != number:
            raise FaultError(PROTOCOL_ERROR, f"a continuation on stream {number}, of nothing")
        _, first, pieces = self._pieces
        pieces.append(payload)
        if len(pieces) > MAX_PIECES or sum(map(len, pieces)) > MAX_BYTES:
            raise FaultError(CALM, f"fields of more than {MAX_BYTES} bytes, or {MAX_PIECES} frames")
        if flags & END_HEADERS:
            self._pieces = None
            self._open(number, first, b"".join(pieces))

    def _open(self, number: int, flags: int, block: bytes) -> None:
        """A call begins, or its trailers are there."""
        head = self._heads.read(block)
        stream = self._streams.get(number)
        if stream is not None and not stream.whole and flags & END_STREAM:
            self._begin(stream, b"".join(stream.chunks))
            return
        if stream is not None or number % 2 == 0:
            raise FaultError(PROTOCOL_ERROR, f"fields on stream {number}, where none may come")
        if number <= self._last:
            return  # the trailers of a call that has ended
        self._last = number
        if self._leaving or len(self._streams) >= MAX_STREAMS:
            self._reset(number, REFUSED_STREAM)
        elif not head.is_grpc:
            self._out.send(HEADERS, END_HEADERS | END_STREAM, number, NO_GRPC)
        else:
            self._streams[number] = stream = Stream(number, head, self._loop.time())
            self._port.calls += 1
            if flags & END_STREAM:
                self._begin(stream, b"")

    def _take_reset(self, number: int, _flags: int, payload: bytes) -> None:
        number_of(payload, "a reset")
        stream = self._streams.get(number)
        if stream is not None:
            self._bear()
            self._give_up(stream)
            self._close_if_done()

    def _take_settings(self, _number: int, flags: int, payload: bytes) -> None:
        if flags & ACK:
            return
        self._bear()
        window = read_settings(payload).get(INITIAL_WINDOW_SIZE)
        self._out.send(SETTINGS, ACK, 0, b"")
        if window is not None:
            self._out.resize(window)
            for stream in [waiting for waiting in self._streams.values() if waiting.rest is not None]:
                if self._out.push(stream):
                    self._forget(stream)
            self._close_if_done()

    def _take_ping(self, _number: int, flags: int, payload: bytes) -> None:
        check_size(payload, 8, "a ping")
        if not flags & ACK:
            self._out.send(PING, ACK, 0, payload)

    def _take_window(self, number: int, _flags: int, payload: bytes) -> None:
        more = number_of(payload, "a window update")
        stream = self._streams.get(number)
        if number == 0 or stream is not None:
            for answered in self._out.widen(more, stream):
                self._forget(answered)
            self._close_if_done()

    def _take_push(self, number: int, _flags: int, _payload: bytes) -> None:
        raise FaultError(PROTOCOL_ERROR, f"a push by a client, on stream {number}")

    def _bear(self) -> None:
        """Count what is cheap for the client and not for us."""
        self._nuisances += 1
        if self._nuisances > MAX_NUISANCES:
            raise FaultError(CALM, "too many calls that are given up, or settings")

    # answering

    def _begin(self, stream: Stream, body: bytes) -> None:
        """The request is whole."""
        stream.whole = True
        stream.chunks = []
        stream.task = self._loop.create_task(self._answer(stream, body))
        if stream.head.timeout_s is not None:
            stream.timer = self._loop.call_later(stream.head.timeout_s, self._expire, stream)

    async def _answer(self, stream: Stream, body: bytes) -> None:
        data, trailers = await self._service.serve(stream.head, body)
        if stream.number in self._streams:
            self._nuisances = max(0, self._nuisances - 1)
            self._finish(stream, data, trailers)

    def _expire(self, stream: Stream) -> None:
        """The deadline has passed: what has not begun to be answered is not any more."""
        if stream.rest is None and stream.number in self._streams:
            self._give_up(stream)
            self._finish(stream, b"", self._service.too_late())

    def _finish(self, stream: Stream, data: bytes, trailers: bytes) -> None:
        """Answer a call, or begin to."""
        stream.since = self._loop.time()
        self._forget(stream)
        if not self._out.answer(stream, data, trailers):
            self._streams[stream.number] = stream
            self._port.calls += 1
        self._transport.answered()
        self._close_if_done()

    # ending

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.number, None) is not None:
            self._port.calls -= 1
        if stream.timer is not None:
            stream.timer.cancel()

    def _give_up(self, stream: Stream) -> None:
        """Drop a call, and what is done for it."""
        self._forget(stream)
        self._out.drop(stream)
        if stream.task is not None:
            stream.task.cancel()

    def _give_up_all(self) -> None:
        for stream in list(self._streams.values()):
            self._give_up(stream)

    def _close_if_done(self) -> None:
        if self._leaving and not self._streams:
            self._transport.close()

    def _end(self, code: int, words: str) -> None:
        """End the connection for what the client did."""
        self._leaving = True
        self._give_up_all()
        if self._frames.greeted:
            self._say_goodbye(code, words)
        else:
            self._transport.write(NO_HTTP2)
        self._close_if_done()

    def _say_goodbye(self, code: int, words: str) -> None:
        self._out.send(GOAWAY, 0, 0, write_numbers(self._last, code) + words.encode())

    def _reset(self, number: int, code: int) -> None:
        self._out.send(RST_STREAM, 0, number, write_numbers(code))
