"""The message of a unary call between its bytes on the wire and itself: one prefix of five bytes, packed or not.

Source: "gRPC over HTTP2" and its "Compression".
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from ray_apps.predictor.protocol.errors import BadRequest, PredictorError, TooLarge

__all__ = ["ENCODINGS", "NotServed", "read_message", "write_message"]

_prefix = struct.Struct(">BI")
_WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}
ENCODINGS: Final = b"identity,deflate,gzip"


class NotServed(PredictorError):  # noqa: N818 - an answer, as those of `errors`
    """The call asks for what is not served: a method, or an encoding."""

    status = 501


def read_message(body: bytes, encoding: bytes, *, max_bytes: int) -> bytes:
    """The one message of a request.

    encoding: the call's `grpc-encoding`, for a message that is packed. Raises: BadRequest, TooLarge, NotServed.
    """
    size = _prefix.size
    packed, length = _prefix.unpack_from(body) if len(body) >= size else (0, -1)
    if length != len(body) - size or packed > 1:
        raise BadRequest(f"message: expected one with its prefix, got {len(body)} bytes that are none")
    if not packed:
        return body[size:]
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise NotServed(f"grpc-encoding: {encoding[:40]!r} is not served; {ENCODINGS.decode()} are")
    unpacking = zlib.decompressobj(bits)
    try:
        message = unpacking.decompress(body[size:], max_bytes)
    except zlib.error as error:
        raise BadRequest(f"message: not {encoding.decode()}: {error}") from None
    if unpacking.unconsumed_tail:
        raise TooLarge(f"message: more than {max_bytes} bytes when it is unpacked; send smaller batches")
    if not unpacking.eof or unpacking.unused_data:
        raise BadRequest(f"message: its {encoding.decode()} is cut off, or goes on after its end")
    return message


def write_message(message: bytes) -> bytes:
    """A message as it goes out, unpacked."""
    return _prefix.pack(0, len(message)) + message
