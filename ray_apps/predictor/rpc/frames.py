"""HTTP/2's frames between bytes and themselves, the client's preface before them.

Source: RFC 9113 (HTTP/2); the names are its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

__all__ = [
    "ACK",
    "CALM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONTINUATION",
    "DATA",
    "DEFAULT_WINDOW",
    "END_HEADERS",
    "END_STREAM",
    "FLOW_CONTROL_ERROR",
    "FRAME_SIZE_ERROR",
    "GOAWAY",
    "HEADERS",
    "INITIAL_WINDOW_SIZE",
    "MAX_CONCURRENT_STREAMS",
    "MAX_FRAME",
    "MAX_HEADER_LIST_SIZE",
    "MAX_WINDOW",
    "NO_ERROR",
    "PADDED",
    "PING",
    "PROTOCOL_ERROR",
    "PUSH_PROMISE",
    "REFUSED_STREAM",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "WITH_PRIORITY",
    "FaultError",
    "Frames",
    "check_size",
    "header",
    "number_of",
    "read_settings",
    "unpadded",
    "write_numbers",
    "write_settings",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_HEADER_LIST_SIZE = 0x3, 0x4, 0x6
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 0x0, 0x1, 0x3, 0x6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CALM = 0x7, 0x8, 0x9, 0xB
MAX_FRAME: Final = 16_384
"""Bytes; the default of both sides, which nobody has to ask for."""
DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = (1 << 31) - 1
_NUMBER: Final = 0x7FFF_FFFF
_head = struct.Struct(">HBBBI")
_setting = struct.Struct(">HI")
_word = struct.Struct(">I")


class FaultError(Exception):
    """What the other side sent ends the connection, with an error's `code`."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class Frames:
    """The frames that come on one connection. greeted: whether the client's preface was read."""

    def __init__(self) -> None:
        self.greeted = False
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """The whole frames of what has come, as kind, flags, stream and payload; to be taken to its end.

        Raises: FaultError for what is no HTTP/2, and for a frame that is too large.
        """
        if self._rest:
            data = self._rest + data
        at, size = 0 if self.greeted else self._greet(data), len(data)
        while size - at >= _head.size and self.greeted:
            high, low, kind, flags, number = _head.unpack_from(data, at)
            length = high << 8 | low
            if length > MAX_FRAME:
                raise FaultError(
                    FRAME_SIZE_ERROR, f"a frame of {length} bytes; at most {MAX_FRAME} are accepted"
                )
            end = at + _head.size + length
            if end > size:
                break
            payload = data[at + _head.size : end]
            at = end
            yield kind, flags, number & _NUMBER, payload
        self._rest = data[at:]

    def _greet(self, data: bytes) -> int:
        if not data.startswith(PREFACE[: len(data)]):
            raise FaultError(PROTOCOL_ERROR, "no HTTP/2")
        self.greeted = len(data) >= len(PREFACE)
        return len(PREFACE) if self.greeted else 0


def header(length: int, kind: int, flags: int, number: int) -> bytes:
    """What stands before a payload of `length` bytes."""
    return _head.pack(length >> 8, length & 0xFF, kind, flags, number)


def unpadded(payload: bytes) -> bytes:
    """A payload without its padding. Raises: FaultError."""
    if not payload or payload[0] >= len(payload):
        raise FaultError(PROTOCOL_ERROR, "more padding than there is of the frame")
    return payload[1 : len(payload) - payload[0]]


def check_size(payload: bytes, size: int, what: str) -> None:
    """Raises: FaultError unless the payload has so many bytes."""
    if len(payload) != size:
        raise FaultError(FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes; it has {size}")


def number_of(payload: bytes, what: str) -> int:
    """The number of 31 bits that is a whole payload. Raises: FaultError."""
    check_size(payload, _word.size, what)
    number: int = _word.unpack(payload)[0] & _NUMBER
    return number


def write_numbers(*numbers: int) -> bytes:
    """Numbers of 32 bits as a payload."""
    return b"".join(map(_word.pack, numbers))


def read_settings(payload: bytes) -> dict[int, int]:
    """Settings by name, the last of each. Raises: FaultError."""
    if len(payload) % _setting.size:
        raise FaultError(FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
    return dict(_setting.iter_unpack(payload))


def write_settings(settings: dict[int, int]) -> bytes:
    """Settings as a payload."""
    return b"".join(_setting.pack(*setting) for setting in settings.items())
