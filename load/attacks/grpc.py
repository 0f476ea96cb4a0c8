"""Attacks by gRPC: large messages on many streams, compressed ones, resets, idle connections, many metadata names.

They are sent without a token, except where one is needed to reach what is attacked; the client's own bounds are lifted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc

from toque.load.attacks.target import Attacks, Outcome, Target

ATTACKS: Final = Attacks(by_grpc=True)
_SERVICE: Final = "/inference.GRPCInferenceService"
_INFER, _LIVE = f"{_SERVICE}/ModelInfer", f"{_SERVICE}/ServerLive"
MESSAGE_BYTES: Final = 64 << 20
PATIENCE_S: Final = 90.0
"""Time within which every call has to be refused."""
LONGEST_WAIT_S: Final = 10.0
"""For an honest caller beside an attack."""
_REFUSED: Final = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
}
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = bytes.fromhex("000000040000000000")
_OPTIONS: Final = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 1 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


class Codes(Counter[str]):
    """How calls ended, by the names of their statuses, and since when they were made."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = time.monotonic()

    def judged(self, sent: str, *, expected: Iterable[Any] = _REFUSED) -> Outcome:
        """Judge an attack by how its calls ended."""
        bounded = bool(self) and set(self) <= {code.name for code in expected}
        return bounded, f"sent {sent}; ended as {dict(self)} in {time.monotonic() - self.begin:.1f} s"


def _channel(target: Target) -> Any:
    return grpc.aio.insecure_channel(target.grpc_address, options=_OPTIONS)


async def _code_of(call: Any) -> str:
    """How a call ends: the name of its status, or "unanswered" if it does not end in time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            code = await call.code()
    except TimeoutError:
        call.cancel()
        return "unanswered"
    return str(code.name)


@ATTACKS
async def large_messages(target: Target) -> Outcome:
    """Send 64 messages of 64 MiB without a token, and 1,000 of 1 MiB at once; none may be read."""
    codes = Codes()
    async with _channel(target) as channel:
        infer = channel.unary_unary(_INFER)
        for size, waves, at_once in ((MESSAGE_BYTES, 16, 4), (1 << 20, 1, 1_000)):
            message = bytes(size)
            for _ in range(waves):
                calls = [infer(message) for _ in range(at_once)]
                codes.update(await asyncio.gather(*map(_code_of, calls)))
    return codes.judged("64 × 64 MiB and 1,000 × 1 MiB without a token")


@ATTACKS
async def gzip_bombs(target: Target) -> Outcome:
    """Send messages that unpack to 64 and 256 MiB, without a token and with one; none may be unpacked past the limit."""
    login = (("authorization", f"Bearer {await target.token_of('caller')}"),)
    codes = Codes()
    for size, metadata, count in (
        (MESSAGE_BYTES, None, 4),
        (4 * MESSAGE_BYTES, None, 1),
        (4 * MESSAGE_BYTES, login, 1),
    ):
        message = bytes(size)
        async with _channel(target) as channel:
            for _ in range(count):  # one by one: packing them takes this side's memory
                call = channel.unary_unary(_INFER)(
                    message, metadata=metadata, compression=grpc.Compression.Gzip
                )
                codes[await _code_of(call)] += 1
    return codes.judged("6 bombs of 64 and 256 MiB")


@ATTACKS
async def resets_by_deadline(target: Target) -> Outcome:
    """Open and abandon 20,000 calls by deadlines of a millisecond; honest health checks have to be answered."""
    codes, slowest = Codes(), 0.0
    async with _channel(target) as channel, _channel(target) as honest:
        call = channel.unary_unary(_INFER)
        for _ in range(20):
            ended = [_code_of(call(b"\xff" * 1_000, timeout=0.001)) for _ in range(1_000)]
            codes.update(await asyncio.gather(*ended))
            asked = time.monotonic()
            await honest.unary_unary(_LIVE)(b"", timeout=PATIENCE_S)
            slowest = max(slowest, time.monotonic() - asked)
    expected = [*_REFUSED, grpc.StatusCode.DEADLINE_EXCEEDED]
    bounded, details = codes.judged("20,000 calls of a millisecond", expected=expected)
    return bounded and slowest < LONGEST_WAIT_S, f"{details}; honest calls took up to {slowest:.2f} s"


@ATTACKS
async def idle_connections(target: Target) -> Outcome:
    """Open 200 connections that say nothing, and 200 that only begin; each has to be closed by the server."""
    begin = time.monotonic()
    said = [b"", _PREFACE[:10]] * 100 + [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"] * 200
    ended = await asyncio.gather(*(_is_closed(target, each) for each in said))
    took_s = time.monotonic() - begin
    return all(ended), f"opened {len(said)} connections; {sum(ended)} were closed in {took_s:.1f} s"


@ATTACKS
async def many_connections(target: Target) -> Outcome:
    """Open up to 6,000 connections that speak HTTP/2 and stay; once half of them leave, an honest call has to be answered."""
    codes = Codes()
    async with contextlib.AsyncExitStack() as stack:
        opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        for _ in range(60):
            made = await asyncio.gather(*(_connect(target) for _ in range(100)), return_exceptions=True)
            for each in made:
                if not isinstance(each, BaseException):
                    opened.append(each)
                    stack.callback(each[1].close)
                    each[1].write(_PREFACE + _SETTINGS)
        for _, writer in opened[::2]:  # they leave room again, as those do that are closed for their age
            writer.close()
        async with _channel(target) as channel:
            codes[await _code_of(channel.unary_unary(_LIVE)(b"", wait_for_ready=True))] += 1
    return codes.judged(f"{len(opened)} connections at once", expected=[grpc.StatusCode.OK])


@ATTACKS
async def metadata_names(target: Target) -> Outcome:
    """Send 2,000 calls with names of metadata that are new each time, and one with 900 KiB of metadata."""
    codes = Codes()
    async with _channel(target) as channel:
        call = channel.unary_unary(_INFER)
        for _ in range(20):
            names = [[(f"x-{os.urandom(8).hex()}", "a") for _ in range(20)] for _ in range(100)]
            calls = [call(b"", metadata=tuple(each)) for each in names]
            codes.update(await asyncio.gather(*map(_code_of, calls)))
        large = tuple((f"x-{i}", "a" * 9_000) for i in range(100))
        codes[await _code_of(call(b"", metadata=large))] += 1
    return codes.judged("40,000 names, and 900 KiB of metadata")


@ATTACKS
async def messages_that_do_not_come(target: Target) -> Outcome:
    """Begin 64 calls with a token and send no message; an honest caller with another token has to be answered."""
    silent = (("authorization", f"Bearer {await target.token_of('caller')}"),)
    begin = time.monotonic()

    async def silence() -> AsyncIterator[bytes]:
        await asyncio.sleep(10 * PATIENCE_S)
        yield b""

    async with _channel(target) as channel, _channel(target) as honest:
        infer = channel.stream_unary(_INFER)
        calls = [asyncio.ensure_future(_code_of(infer(silence(), metadata=silent))) for _ in range(64)]
        await asyncio.sleep(1)
        asked = time.monotonic()
        login = (("authorization", f"Bearer {target.token}"),)
        code = await _code_of(honest.unary_unary(_INFER)(b"", metadata=login))
        waited_s = time.monotonic() - asked
        codes = Counter(await asyncio.gather(*calls))
    ended = {grpc.StatusCode.DEADLINE_EXCEEDED.name, grpc.StatusCode.RESOURCE_EXHAUSTED.name}
    is_answered = code == grpc.StatusCode.INVALID_ARGUMENT.name and waited_s < LONGEST_WAIT_S
    details = f"{dict(codes)} in {time.monotonic() - begin:.0f} s; an honest call was answered after {waited_s:.2f} s"
    return set(codes) <= ended and is_answered, details


async def _connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = (target.grpc_address or "").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _is_closed(target: Target, said: bytes) -> bool:
    """Whether the server closes a connection that says so much and no more."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await _connect(target)
            writer.write(said)
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass
    except TimeoutError:
        return False
    writer.close()
    return True
