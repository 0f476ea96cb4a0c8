"""Frames of the log: number, length, checksum, payload; the same bytes on disk and in the stream.

A write that a crash cut short leaves a torn last frame. Reading stops there: that record had not been
acknowledged, because the acknowledgement comes after the write.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import adler32, crc32

__all__ = ["HEADER_BYTES", "Frame", "encode_frame", "intact_frames", "read_frames", "whole_frames"]

_HEADER = struct.Struct("<QII")
HEADER_BYTES = _HEADER.size
_DAMAGED_AT_MOST = 1_024  # records in a row that may be damaged for those behind them to be found
_NUMBERS = 65_520  # start values of Adler-32, beside 0


class Frame(NamedTuple):
    """Frame of one record: `number` counts the writer's records from 1, `end` is the offset behind it."""

    number: int
    payload: bytes
    end: int


def encode_frame(number: int, payload: bytes) -> bytes:
    """Encode one record as a frame.

    Its checksum is Adler-32, begun with the number: CRC-32 has tables of 8 KiB, which are in no cache where an answer has just
    been made. A record that a crash cut short ends in zeros, so its sum is another one; that of a header of zeros is not 0.
    """
    return _HEADER.pack(number, len(payload), adler32(payload, 1 + number % _NUMBERS)) + payload


def read_frames(data: bytes) -> Iterator[Frame]:
    """Read the whole, undamaged frames at the start of `data`, up to the first that is torn or damaged."""
    view = memoryview(data)
    at = 0
    while at + HEADER_BYTES <= len(data):
        number, length, checksum = _HEADER.unpack_from(data, at)
        end = at + HEADER_BYTES + length
        if end > len(data):
            return
        payload = view[at + HEADER_BYTES : end]
        if checksum != adler32(payload, 1 + number % _NUMBERS) and checksum != _before(number, payload):
            return
        yield Frame(number, bytes(payload), end)
        at = end


def intact_frames(data: bytes, first: int) -> Iterator[Frame]:
    """Read every undamaged frame of `data`, which begins with record `first`; damaged ones are passed over."""
    at: int | None = 0
    while at is not None:
        end = at
        for frame in read_frames(data[at:]):
            end, first = at + frame.end, frame.number + 1
            yield frame._replace(end=end)
        at = _next_intact(data, end, first)


def _next_intact(data: bytes, at: int, damaged: int) -> int | None:
    """Find the frame behind record `damaged`, which begins at `at`; its length may be damaged, too, so numbers are looked for."""
    until = len(data.rstrip(b"\0"))  # the rest is room that was never written to
    for number in range(damaged + 1, damaged + 1 + _DAMAGED_AT_MOST if until > at else damaged):
        start = at
        while (start := data.find(number.to_bytes(8, "little"), start + 1, until)) != -1:
            frame = next(read_frames(data[start:]), None)
            if frame is not None and frame.number == number:
                return start
    return None


def _before(number: int, payload: bytes | memoryview) -> int:
    """Compute the CRC-32 checksum of older frames, some of which may be under way during a deployment."""
    return crc32(payload, crc32(number.to_bytes(8, "little")))


def whole_frames(data: bytes, *, after: int = 0) -> tuple[int, int, int, int]:
    """Locate the whole frames of `data` with a number above `after`, without checksums; zeros are no frames.

    Returns (start offset, end offset, first number, last number); first and last are 0 if there are none.
    """
    at = start = first = last = 0
    while at + HEADER_BYTES <= len(data):
        number, length, _ = _HEADER.unpack_from(data, at)
        end = at + HEADER_BYTES + length
        if number == 0 or end > len(data):
            break
        if number <= after:
            start = end
        else:
            first, last = first or number, number
        at = end
    return start, (at if last else start), first, last
