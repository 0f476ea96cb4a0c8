"""The prefix of a message, and the packings that a caller may choose."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.predictor.protocol.errors import BadRequest, TooLarge
from ray_apps.predictor.rpc.wire import NotServed, read_message, write_message


def prefixed(data: bytes, *, packed: int = 0) -> bytes:
    return bytes((packed,)) + len(data).to_bytes(4, "big") + data


@given(st.binary(max_size=2_000))
def test_a_message_comes_back_plain_and_packed(message: bytes):
    assert read_message(write_message(message), b"", max_bytes=2_000) == message
    for encoding, pack in ((b"gzip", gzip.compress), (b"deflate", zlib.compress)):
        assert read_message(prefixed(pack(message), packed=1), encoding, max_bytes=2_001) == message
        assert read_message(prefixed(message), encoding, max_bytes=2_000) == message


@pytest.mark.parametrize(
    "body", [b"", b"\0\0\0", prefixed(b"abc")[:-1], prefixed(b"abc") + prefixed(b"d"), b"\2\0\0\0\1x"]
)
def test_what_is_not_one_message_is_refused(body: bytes):
    with pytest.raises(BadRequest, match="message: expected one"):
        read_message(body, b"identity", max_bytes=100)


def test_packed_messages_are_bounded_whole_and_of_a_known_encoding():
    bomb = prefixed(gzip.compress(bytes(1 << 20)), packed=1)
    with pytest.raises(TooLarge, match="more than 1000 bytes"):
        read_message(bomb, b"gzip", max_bytes=1_000)
    with pytest.raises(BadRequest, match="not gzip"):
        read_message(prefixed(b"abc", packed=1), b"gzip", max_bytes=100)
    with pytest.raises(BadRequest, match="cut off"):
        read_message(prefixed(gzip.compress(b"abc" * 99)[:-4], packed=1), b"gzip", max_bytes=1_000)
    with pytest.raises(BadRequest, match="cut off, or goes on"):
        read_message(prefixed(gzip.compress(b"abc") + b"x", packed=1), b"gzip", max_bytes=1_000)
    with pytest.raises(NotServed, match="snappy"):
        read_message(prefixed(b"abc", packed=1), b"snappy", max_bytes=100)
