"""A client of another implementation, h2, wired to one connection of the gRPC door, without a socket."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, TrailersReceived
from hyperframe.frame import Frame

from ray_apps.predictor.rpc.connection import Connection
from ray_apps.predictor.rpc.heads import Head, write_status
from ray_apps.predictor.rpc.outbox import Port

FIELDS = [
    (":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "x"),
    ("content-type", "application/grpc"), ("te", "trailers"),
]  # fmt: skip


@dataclass
class Echo:
    """Answers what it is sent; a body of b"wait" once it is released."""

    max_message_bytes: int = 8 << 20
    released: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    cancelled: int = 0

    async def serve(self, head: Head, body: bytes) -> tuple[bytes, bytes]:
        self.begun += 1
        if body == b"wait":
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return body, write_status(0, fields=[(b"path", head.path.encode())])

    def too_large(self) -> bytes:
        return write_status(8, "too large")

    def too_late(self) -> bytes:
        return write_status(4, "too late")


class Wire:
    """A client of h2, and the server's connection that gets its bytes: asyncio's transport for it."""

    def __init__(self, *, greet: bool = True, **config: Any) -> None:
        self.client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8", **config))
        self.service, self.port = Echo(), Port()
        self.events: list[Any] = []
        self.raw = b""
        self.writes = 0
        self.closed = self.paused = False
        self.open: set[Connection] = set()
        self.server = Connection(self.service, self.port, self.open)
        self.server.connection_made(self)  # type: ignore[arg-type]  # as much of one as is used
        if greet:
            self.client.initiate_connection()
            self.pass_on()

    # the transport

    def write(self, data: bytes) -> None:
        self.writes += 1
        self.raw += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    # the client

    def pass_on(self, piece: int = 1 << 20) -> None:
        """Give the server what the client has to say, and the client what came back."""
        said = self.client.data_to_send()
        for at in range(0, len(said), piece):
            self.server.data_received(said[at : at + piece])
        self.listen()

    def listen(self) -> None:
        raw, self.raw = self.raw, b""
        self.events += self.client.receive_data(raw)

    def frames(self) -> list[Any]:
        """What came back and was not listened to."""
        raw, found = self.raw, []
        while raw:
            frame, length = Frame.parse_frame_header(memoryview(raw[:9]))
            frame.parse_body(memoryview(raw[9 : 9 + length]))
            found.append(frame)
            raw = raw[9 + length :]
        return found

    def call(self, body: bytes = b"hi", fields: list[tuple[str, str]] = FIELDS, **end: Any) -> int:
        number = self.client.get_next_available_stream_id()
        self.client.send_headers(number, fields)
        self.client.send_data(number, body, end_stream=True, **end)
        return number

    async def settle(self) -> None:
        """Let both sides say what they have to say."""
        for _ in range(20):
            self.pass_on()
            await asyncio.sleep(0)
        self.listen()

    def answer(self, number: int) -> tuple[bytes, dict[str, str]]:
        """The data and the trailers of a call."""
        mine = [event for event in self.events if getattr(event, "stream_id", None) == number]
        heads = [event for event in mine if isinstance(event, ResponseReceived | TrailersReceived)]
        data = b"".join(event.data for event in mine if isinstance(event, DataReceived))
        return data, {name: value for event in heads for name, value in event.headers}

    def first(self, kind: type[Any]) -> Any:
        return next((event for event in self.events if isinstance(event, kind)), None)

    def ended_with(self) -> ErrorCodes | int | None:
        found = self.first(ConnectionTerminated)
        return None if found is None else found.error_code
