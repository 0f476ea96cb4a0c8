"""Limits of the gRPC server: message, metadata, calls, connections and time, with and without a token."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

from tests.ports import free_port
from toque.ray_apps.admission import Admitted, Rule
from toque.ray_apps.predictor.grpc import GrpcServer, Limits
from toque.ray_apps.predictor.http.auth import INFER as INFER_RULE
from toque.ray_apps.predictor.http.auth import NoAuthentication
from toque.ray_apps.predictor.protocol import protobuf
from toque.ray_apps.predictor.protocol.errors import Denied

INFER = f"/{protobuf.SERVICE}/ModelInfer"
LOGIN = (("authorization", "Bearer known"),)
GOOD = service_pb2.ModelInferRequest(model_name="m").SerializeToString()
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
channel_to = grpc.aio.insecure_channel
SETTINGS = bytes.fromhex("000000040000000000")


class Authenticator(NoAuthentication):
    """Accepts two tokens."""

    async def admit(self, authorization: bytes | None, rule: Rule = INFER_RULE, **options: Any) -> Admitted:
        if authorization not in {b"Bearer known", b"Bearer another"}:
            raise Denied("authorization: the token is unknown")
        return await super().admit(authorization, rule, **options)


@dataclass
class FakeModels:
    """Models that answer at once, or once they are released; they count requests, and those that were cancelled."""

    release: asyncio.Event | None = None
    asked: int = 0
    given_up: int = 0
    headers: list[Mapping[bytes, bytes]] = field(default_factory=list)

    async def request(
        self, _method: str, _path: str, headers: Mapping[bytes, bytes], _body: bytes = b""
    ) -> Any:
        self.asked += 1
        self.headers.append(headers)
        try:
            if self.release is not None:
                await self.release.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return 200, [], b""

    async def close(self) -> None: ...


@contextlib.asynccontextmanager
async def serving(models: FakeModels, limits: Limits) -> AsyncIterator[str]:
    address = f"127.0.0.1:{free_port()}"
    server = GrpcServer(models, Authenticator(), address, limits)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()


async def until(condition: Any, within_s: float = 60) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a library
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("metadata", [None, (("authorization", "Bearer other"),)], ids=["none", "wrong"])
async def test_a_token_is_asked_for_before_a_message_is_read(metadata: Any):
    models = FakeModels()
    async with serving(models, Limits(max_message_bytes=1 << 10)) as address, channel_to(address) as channel:
        call = channel.unary_unary(INFER)
        broken, too_large = b"\xff\xff", bytes(1 << 22)
        for message in (broken, too_large):
            code, _ = await refusal(call(message, metadata=metadata))
            assert code == grpc.StatusCode.UNAUTHENTICATED
        code, words = await refusal(call(broken, metadata=LOGIN))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert words.startswith("message: not a ModelInferRequest:")
    assert models.asked == 0


async def test_every_method_but_health_asks_for_a_token():
    async with serving(FakeModels(), Limits()) as address, channel_to(address) as channel:
        codes = {}
        for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name:
            call = channel.unary_unary(f"/{protobuf.SERVICE}/{method}")(b"")
            codes[method] = await call.code()
    open_to_all = {method for method, code in codes.items() if code == grpc.StatusCode.OK}
    assert open_to_all == {"ServerLive", "ServerReady"}
    assert {*codes.values()} == {grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED}


async def test_health_leaves_messages_unread():
    async with (
        serving(FakeModels(), Limits(max_message_bytes=1 << 10)) as address,
        channel_to(address) as channel,
    ):
        call = channel.unary_unary(f"/{protobuf.SERVICE}/ServerLive")
        assert await call(bytes(1 << 22)) == b"\x08\x01"


async def test_messages_are_bounded_packed_and_unpacked():
    models = FakeModels()
    async with serving(models, Limits(max_message_bytes=1 << 16)) as address, channel_to(address) as channel:
        call = channel.unary_unary(INFER)
        code, _ = await refusal(call(bytes((1 << 16) + 1), metadata=LOGIN))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        bomb = bytes(1 << 26)
        assert len(gzip.compress(bomb)) < 1 << 17
        for packing in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            code, words = await refusal(call(bomb, metadata=LOGIN, compression=packing))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "larger than max" in words
        assert models.asked == 0
        assert await call(GOOD, metadata=LOGIN) == b""


async def test_a_small_packed_message_that_unpacks_to_a_large_one_is_refused():
    """The packed form is within the bound, so that it is unpacking which is bounded."""
    bomb = bytes(1 << 22)
    assert len(gzip.compress(bomb)) < 1 << 13
    async with (
        serving(FakeModels(), Limits(max_message_bytes=1 << 16)) as address,
        channel_to(address) as channel,
    ):
        call = channel.unary_unary(INFER)
        code, words = await refusal(call(bomb, metadata=LOGIN, compression=grpc.Compression.Gzip))
    assert (code, words) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "Decompressed message larger than max")


async def test_metadata_is_bounded():
    async with (
        serving(FakeModels(), Limits(max_metadata_bytes=4 << 10)) as address,
        channel_to(address) as channel,
    ):
        call = channel.unary_unary(INFER)
        code, _ = await refusal(call(GOOD, metadata=(*LOGIN, ("x-large", "a" * (8 << 10)))))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(GOOD, metadata=(*LOGIN, ("x-small", "a" * (1 << 10)))) == b""


async def test_calls_beyond_the_bound_are_refused():
    models = FakeModels(asyncio.Event())
    async with serving(models, Limits(max_calls=2)) as address, channel_to(address) as channel:
        call = channel.unary_unary(INFER)
        waiting = [asyncio.ensure_future(call(GOOD, metadata=LOGIN)) for _ in range(2)]
        await until(lambda: models.asked == 2)
        code, _ = await refusal(call(GOOD, metadata=LOGIN))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        models.release.set()
        assert await asyncio.gather(*waiting) == [b"", b""]
        assert await call(GOOD, metadata=LOGIN) == b""


async def test_one_connection_does_not_take_all_calls():
    models = FakeModels(asyncio.Event())
    async with serving(models, Limits(max_streams=2)) as address, channel_to(address) as channel:
        call = channel.unary_unary(INFER)
        waiting = [asyncio.ensure_future(call(GOOD, metadata=LOGIN)) for _ in range(5)]
        await until(lambda: models.asked == 2)
        await asyncio.sleep(0.1)
        assert models.asked == 2  # the others wait at the caller
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(address, options=options) as another:
            other = asyncio.ensure_future(another.unary_unary(INFER)(GOOD, metadata=LOGIN))
            await until(lambda: models.asked == 3)
            models.release.set()
            assert await other == b""
        # Near the bound grpc core refuses some streams, a protection against those who reset them.
        await asyncio.gather(*waiting, return_exceptions=True)


async def is_ended(reader: asyncio.StreamReader, within_s: float) -> bool:
    """Whether the server closes a connection in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while await reader.read(1 << 16):
                pass
            return True
    return False


@contextlib.asynccontextmanager
async def connection(address: str, said: bytes) -> AsyncIterator[asyncio.StreamReader]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    try:
        yield reader
    finally:
        writer.close()


@pytest.mark.parametrize("said", [b"", PREFACE[:10], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"])
async def test_a_stranger_who_does_not_begin_is_shown_out(said: bytes):
    async with serving(FakeModels(), Limits(handshake_s=0.5)) as address, connection(address, said) as reader:
        assert await is_ended(reader, 60)


async def test_an_idle_connection_is_closed():
    async with (
        serving(FakeModels(), Limits(idle_s=0.5)) as address,
        connection(address, PREFACE + SETTINGS) as reader,
    ):
        assert await is_ended(reader, 60)


async def test_an_old_connection_is_closed_and_its_calls_are_answered():
    models = FakeModels(asyncio.Event())
    async with serving(models, Limits(age_s=0.5, age_grace_s=20)) as address, channel_to(address) as channel:
        call = asyncio.ensure_future(channel.unary_unary(INFER)(GOOD, metadata=LOGIN))
        await asyncio.sleep(1.5)
        models.release.set()
        assert await call == b""
        assert await channel.unary_unary(INFER)(GOOD, metadata=LOGIN) == b""  # by a new connection


async def test_a_client_that_keeps_an_old_connection_open_is_shown_out():
    async with (
        serving(FakeModels(), Limits(age_s=0.3, age_grace_s=0.3)) as address,
        connection(address, PREFACE + SETTINGS) as reader,
    ):  # it answers no ping
        assert await is_ended(reader, 60)


async def test_a_caller_that_vanished_is_noticed():
    async with (
        serving(FakeModels(), Limits(keepalive_s=0.3, keepalive_timeout_s=0.3)) as address,
        connection(address, PREFACE + SETTINGS) as reader,
    ):
        assert await is_ended(reader, 60)


async def test_connections_beyond_the_bound_are_refused():
    async with (
        serving(FakeModels(), Limits(max_connections=2)) as address,
        contextlib.AsyncExitStack() as stack,
    ):
        held = [await stack.enter_async_context(connection(address, PREFACE + SETTINGS)) for _ in range(2)]
        for reader in held:
            assert await reader.readexactly(9)
        third = await stack.enter_async_context(connection(address, PREFACE + SETTINGS))
        assert await is_ended(third, 60)


async def test_a_message_that_does_not_come_is_not_waited_for():
    async def requests() -> AsyncIterator[bytes]:
        await asyncio.sleep(90)
        yield GOOD

    async with serving(FakeModels(), Limits(message_s=0.3)) as address, channel_to(address) as channel:
        code, words = await refusal(channel.stream_unary(INFER)(requests(), metadata=LOGIN))
    assert (code, words[:22]) == (grpc.StatusCode.DEADLINE_EXCEEDED, "message: none came wit")


async def test_a_deadline_goes_along_and_drops_the_work():
    models = FakeModels(asyncio.Event())
    async with serving(models, Limits()) as address, channel_to(address) as channel:
        call = channel.unary_unary(INFER)
        for timeout_s in (0.3, 3, 30):  # on a busy machine a call may be over before it comes to the models
            code, _ = await refusal(call(GOOD, metadata=LOGIN, timeout=timeout_s))
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
            if models.asked:
                break
        await until(lambda: models.given_up == models.asked)
        assert 0 < int(models.headers[-1][b"x-request-timeout-ms"]) <= 1000 * timeout_s
        assert models.given_up >= 1


async def test_a_cancelled_call_drops_its_work():
    models = FakeModels(asyncio.Event())
    async with serving(models, Limits()) as address, channel_to(address) as channel:
        call = channel.unary_unary(INFER)(GOOD, metadata=LOGIN)
        waiting = asyncio.ensure_future(call)
        await until(lambda: models.asked == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: models.given_up == 1)
        assert b"x-request-timeout-ms" not in models.headers[0]


async def test_messages_are_received_a_few_at_a_time_by_one_caller():
    """The rest waits unread, so that memory is bounded by what is read and not by what is sent."""
    models = FakeModels()
    limits = Limits(max_reads=4, max_reads_of_caller=2, message_s=20)
    begun = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await begun.wait()
        yield GOOD

    async with serving(models, limits) as address, channel_to(address) as channel:
        held = [
            asyncio.ensure_future(wait_for(channel.stream_unary(INFER)(slow(), metadata=LOGIN)))
            for _ in range(2)
        ]
        await asyncio.sleep(0.3)
        third = asyncio.ensure_future(wait_for(channel.unary_unary(INFER)(GOOD, metadata=LOGIN)))
        other = channel.unary_unary(INFER)(GOOD, metadata=(("authorization", "Bearer another"),))
        assert await other == b""
        assert not third.done()
        begun.set()
        assert await asyncio.gather(*held, third) == [b"", b"", b""]


async def wait_for(call: Any) -> Any:
    return await call


async def test_streams_beyond_a_callers_part_are_refused():
    limits = Limits(max_open_streams=3, max_open_streams_of_caller=2)
    method = f"/{protobuf.SERVICE}/ModelStreamInfer"
    async with serving(FakeModels(), limits) as address, channel_to(address) as channel:
        opened = [channel.stream_stream(method)(metadata=LOGIN) for _ in range(2)]
        for stream in opened:
            await stream.write(GOOD)
            assert await stream.read()
        third = channel.stream_stream(method)(metadata=LOGIN)
        assert await third.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "2 are open by this token" in await third.details()
        await opened[0].done_writing()
        assert await opened[0].code() == grpc.StatusCode.OK
        again = channel.stream_stream(method)(metadata=LOGIN)
        await again.write(GOOD)
        assert await again.read()


async def test_large_messages_that_wait_for_an_answer_have_a_budget():
    models = FakeModels(asyncio.Event())
    large = service_pb2.ModelInferRequest(
        model_name="m", raw_input_contents=[bytes(1 << 20)]
    ).SerializeToString()
    async with (
        serving(models, Limits(max_held_bytes=5 << 19)) as address,
        channel_to(address) as channel,
    ):
        call = channel.unary_unary(INFER)
        waiting = [asyncio.ensure_future(wait_for(call(large, metadata=LOGIN))) for _ in range(2)]
        await until(lambda: models.asked == 2)
        code, words = await refusal(call(large, metadata=LOGIN))
        assert (code, "send again" in words) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        models.release.set()
        assert await asyncio.gather(*waiting) == [b"", b""]
        assert await call(large, metadata=LOGIN) == b""


async def test_a_message_of_many_fields_is_refused_without_being_parsed():
    async with serving(FakeModels(), Limits()) as address, channel_to(address) as channel:
        code, words = await refusal(channel.unary_unary(INFER)(b"\x2a\x00" * (1 << 20), metadata=LOGIN))
        assert (code, words[:21]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "message: more than 40")
        code, _ = await refusal(channel.unary_unary(INFER)(b"\x2f" * (1 << 20), metadata=LOGIN))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        ready = channel.unary_unary(f"/{protobuf.SERVICE}/ModelReady")
        code, words = await refusal(ready(b"\x0a\x80\x80\x08" + bytes(1 << 17), metadata=LOGIN))
        assert (code, words[:16]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "message: 131076 ")
