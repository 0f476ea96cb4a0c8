"""Bodies: their size, their budget in one replica, and how they are unpacked."""

from __future__ import annotations

import gzip
import zlib

import pytest

from toque.ray_apps.predictor.http.body import LargeBodies, read_body
from toque.ray_apps.predictor.http.endpoint import Message, Request
from toque.ray_apps.predictor.protocol.errors import BadRequest, Overloaded, TooLarge

KIB = 1 << 10


def request(*pieces: bytes, gone: bool = False, **headers: bytes) -> Request:
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": gone or i < len(pieces)}
        for i, piece in enumerate(pieces, 1)
    ]
    messages += [{"type": "http.disconnect"}] * gone
    left = iter(messages)

    async def receive() -> Message:
        return next(left)

    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return Request("POST", "/infer", named, receive)


async def test_a_body_in_pieces_is_whole():
    large = LargeBodies()
    pieces = [bytes([i]) * 40 * KIB for i in range(5)]
    asked = request(*pieces)
    assert await read_body(asked, 200 * KIB, large) == b"".join(pieces)
    assert asked.held_bytes == large.held_bytes == 200 * KIB
    large.release(asked)
    large.release(asked)
    assert large.held_bytes == 0


async def test_small_bodies_cost_nothing_of_the_budget():
    large = LargeBodies(1)
    for asked in (
        request(b"a" * 64 * KIB),
        request(b"a", b"b"),
        request(zlib.compress(b"a" * 60 * KIB), content_encoding=b"deflate"),
    ):
        assert await read_body(asked, 100 * KIB, large)
        assert asked.held_bytes == 0


async def test_bodies_beyond_the_budget_are_refused_until_others_are_answered():
    large = LargeBodies(300 * KIB)
    first, second = request(b"a" * 200 * KIB), request(*[b"b" * 50 * KIB] * 4)
    await read_body(first, 200 * KIB, large)
    with pytest.raises(Overloaded, match=f"hold {300 * KIB} bytes, of at most {300 * KIB}; send again"):
        await read_body(second, 200 * KIB, large)
    large.release(second)
    large.release(first)
    assert await read_body(request(*[b"b" * 50 * KIB] * 4), 200 * KIB, large) == b"b" * 200 * KIB


async def test_unpacked_bytes_are_of_the_budget_too():
    packed = gzip.compress(bytes(400 * KIB))
    with pytest.raises(Overloaded):
        await read_body(request(packed, content_encoding=b"gzip"), 500 * KIB, LargeBodies(300 * KIB))
    asked, large = request(packed, content_encoding=b"gzip"), LargeBodies()
    assert await read_body(asked, 400 * KIB, large) == bytes(400 * KIB)
    assert large.held_bytes == 400 * KIB


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_what_unpacks_to_too_much_is_refused_when_it_is_too_much(encoding: str):
    raw = bytes(64 << 20)
    packed = gzip.compress(raw, 1) if encoding == "gzip" else zlib.compress(raw, 1)
    asked, large = request(packed, content_encoding=encoding.encode()), LargeBodies()
    with pytest.raises(TooLarge, match="unpacks to more than 1048576 bytes"):
        await read_body(asked, 1 << 20, large)
    assert large.held_bytes < 3 << 20


async def test_broken_bodies_are_refused():
    cut = gzip.compress(bytes(range(256)) * KIB)[:-20]
    for body, encoding, words in (
        (cut, b"gzip", "cut off"),
        (b"nonsense", b"gzip", "not gzip"),
        (b"a", b"br", "is not served"),
    ):
        with pytest.raises(BadRequest, match=words):
            await read_body(request(body, content_encoding=encoding), 1 << 20, LargeBodies())
    with pytest.raises(BadRequest, match="went away"):
        await read_body(request(b"a" * 10, gone=True), 1 << 20, LargeBodies())
    with pytest.raises(TooLarge, match="2000000 bytes; at most 1048576"):
        await read_body(request(b"a", content_length=b"2000000"), 1 << 20, LargeBodies())
