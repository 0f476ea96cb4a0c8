"""Reads the bodies of requests within bounds on their size, on their number of bytes at once, and on a replica's memory."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from toque.ray_apps.predictor.protocol.datatypes import SMALL_BYTES
from toque.ray_apps.predictor.protocol.errors import BadRequest, Overloaded, TooLarge

if TYPE_CHECKING:
    from toque.ray_apps.predictor.http.endpoint import Request

__all__ = ["MAX_HELD_BYTES", "LargeBodies", "read_body"]

T = TypeVar("T")

MAX_HELD_BYTES: Final = 256 << 20
"""Of the bodies above `SMALL_BYTES` that a replica holds at once."""
_PIECE_BYTES: Final = 64 << 10
_WINDOW_BITS: Final = {b"gzip": 47, b"deflate": 15}


class Holder(Protocol):
    """Request or call that holds a large body; held_bytes: how much of the budget is its."""

    held_bytes: int


class LargeBodies:
    """Bodies above `SMALL_BYTES` in one process: a budget for their bytes, and threads that decode them.

    limit_bytes: of all such bodies at once, unpacked.
    """

    def __init__(self, limit_bytes: int = MAX_HELD_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="large-bodies")
        self.held_bytes = 0

    def take(self, request: Holder, size_bytes: int) -> None:
        """Count bytes that a request holds until it is answered. Raises: Overloaded beyond the limit."""
        with self._lock:
            if self.held_bytes + size_bytes > self._limit_bytes:
                raise Overloaded(
                    f"body: requests in flight here hold {self.held_bytes} bytes, of at most {self._limit_bytes}; "
                    "send again after a moment"
                )
            self.held_bytes += size_bytes
            request.held_bytes += size_bytes

    def release(self, request: Holder) -> None:
        """Give back what an answered request held."""
        if request.held_bytes:
            with self._lock:
                self.held_bytes -= request.held_bytes
                request.held_bytes = 0

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run work on a large body off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


async def read_body(request: Request, limit: int, large: LargeBodies) -> bytes | bytearray:
    """Read a request's body, bounded and unpacked.

    Raises: TooLarge beyond `limit` bytes; Overloaded beyond the budget of `large`; BadRequest.
    """
    headers = request.headers
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise TooLarge(f"body: {declared.decode()} bytes; at most {limit} are accepted")
    message = await request.receive()
    body: bytes | bytearray = message.get("body", b"")
    if message.get("more_body") or len(body) > SMALL_BYTES:
        body = await _read_on(request, message, limit, large)
    elif message["type"] == "http.disconnect":
        raise BadRequest(_GONE)
    if b"content-encoding" in headers:
        body = await _unpacked(request, body, limit, large)
    return body


_GONE: Final = "body: the client went away before it was whole"


async def _read_on(request: Request, message: Mapping[str, Any], limit: int, large: LargeBodies) -> bytearray:
    """Gather the pieces of a body; a bytearray grows without being copied as a whole."""
    body, counted = bytearray(), 0
    while True:
        if message["type"] == "http.disconnect":
            raise BadRequest(_GONE)
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(f"body: more than {limit} bytes; send smaller batches")
        if len(body) > SMALL_BYTES:
            large.take(request, len(body) - counted)
            counted = len(body)
        if not message.get("more_body"):
            return body
        message = await request.receive()


async def _unpacked(
    request: Request, body: bytes | bytearray, limit: int, large: LargeBodies
) -> bytes | bytearray:
    encoding = request.headers[b"content-encoding"]
    if encoding == b"identity":
        return body
    if encoding not in _WINDOW_BITS:
        raise BadRequest(f"Content-Encoding: {encoding[:40]!r} is not served; use gzip, deflate or none")

    if len(body) <= SMALL_BYTES and (small := _unpack_small(body, encoding)) is not None:
        return small

    def hold(size_bytes: int) -> None:
        large.take(request, size_bytes)

    return await large.run(_unpack, body, encoding, limit, hold)


def _unpack_small(body: bytes | bytearray, encoding: bytes) -> bytes | None:
    """Unpack a body at once; None if it is not whole, or has more than `SMALL_BYTES` unpacked."""
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        unpacked = unpacker.decompress(body, SMALL_BYTES)
    except zlib.error:
        return None
    return unpacked if unpacker.eof else None


def _unpack(body: bytes | bytearray, encoding: bytes, limit: int, hold: Callable[[int], None]) -> bytearray:
    """Unpack a body piece by piece; hold: called with the size of each piece before the next is unpacked."""
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    unpacked = bytearray()
    view = memoryview(body)
    at = 0
    try:
        while at < len(view) and not unpacker.eof:
            piece: bytes | memoryview = view[at : at + _PIECE_BYTES]
            at += _PIECE_BYTES
            while piece and not unpacker.eof:
                part = unpacker.decompress(piece, _PIECE_BYTES)
                hold(len(part))
                unpacked += part
                if len(unpacked) > limit:
                    raise TooLarge(f"body: unpacks to more than {limit} bytes; send smaller batches")
                piece = unpacker.unconsumed_tail
    except zlib.error as error:
        raise BadRequest(f"body: not {encoding.decode()}: {error}") from None
    while not unpacker.eof and (part := unpacker.decompress(b"", _PIECE_BYTES)):
        hold(len(part))
        unpacked += part
    if not unpacker.eof:
        raise BadRequest(f"body: the {encoding.decode()} data is cut off")
    return unpacked
