"""What the gRPC front passes on and back, and what it is without a server behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ray_apps.predictor.protocol import messages
from ray_apps.predictor.rpc import Front, Listener, Upstream
from ray_apps.predictor.rpc.upstream import Answer
from tests.ports import free_port
from tests.ray_apps.predictor.rpc.conftest import (
    TYPED,
    Counter,
    typed_request,
    values,
)


def test_health_readiness_and_metadata(counter: Counter, client: triton.InferenceServerClient):
    login = counter.login
    assert client.is_server_live()
    assert client.is_server_ready(headers=login)
    assert client.get_server_metadata(headers=login).extensions == ["binary_tensor_data"]
    assert client.is_model_ready("every", headers=login)
    assert client.is_model_ready("every", "1", headers=login)
    assert not client.is_model_ready("every", "9", headers=login)
    assert not client.is_model_ready("nope", headers=login)
    described = client.get_model_metadata("typed", headers=login)
    assert (described.name, described.platform, list(described.versions)) == ("typed", "toque", ["1"])
    assert [(x.name, x.datatype, list(x.shape)) for x in described.inputs] == [(n, n, [-1, 2]) for n in TYPED]


def test_entities_travel_as_json_text(counter: Counter, stub: Any):
    request = service_pb2.ModelInferRequest(model_name="typed")
    request.parameters["entities"].string_param = '[{"carrier": "UA"}]'
    with pytest.raises(grpc.RpcError, match="no online store"):
        stub.ModelInfer(request, metadata=tuple(counter.login.items()))
    request.parameters["entities"].string_param = "[{"
    with pytest.raises(grpc.RpcError, match=r"parameters.entities: expected JSON"):
        stub.ModelInfer(request, metadata=tuple(counter.login.items()))


def test_attributes_travel_as_json_text(counter: Counter, stub: Any):
    request = typed_request()
    request.parameters["attributes"].string_param = '{"country": "NL"}'
    answer = stub.ModelInfer(request, metadata=tuple(counter.login.items()))
    assert answer.parameters["arm"].string_param == "rule:dutch"
    request.parameters["attributes"].string_param = '{"country": 31}'
    with pytest.raises(grpc.RpcError, match=r"parameters.attributes.country: expected a text"):
        stub.ModelInfer(request, metadata=tuple(counter.login.items()))


def test_trace_context_and_request_id_come_back_as_metadata(counter: Counter, stub: Any):
    sent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1",
            "x-request-id": "q-1"}  # fmt: skip
    _, call = stub.ModelInfer.with_call(typed_request(), metadata=tuple((counter.login | sent).items()))
    assert sent.items() <= dict(call.trailing_metadata()).items()


def test_our_messages_have_the_fields_of_tritonclients():
    theirs = service_pb2.DESCRIPTOR.message_types_by_name
    ours = messages.ModelInferRequest.DESCRIPTOR.file.message_types_by_name
    for name, message in ours.items():
        for field in message.fields:
            other = theirs[name].fields_by_name[field.name]
            assert (field.number, field.type, field.label) == (other.number, other.type, other.label), (
                field.full_name
            )
    assert set(messages.METHODS) == {
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
    }  # fmt: skip


def test_no_server_behind_the_front_is_unavailable():
    async def ask() -> Any:
        front = Front(Upstream(f"http://127.0.0.1:{free_port()}"))
        address = f"127.0.0.1:{free_port()}"
        server = Listener(front, address)
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live
            assert not (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.ModelInfer(typed_request())
        await server.stop(0)
        return raised.value.code()

    assert asyncio.run(ask()) == grpc.StatusCode.UNAVAILABLE


async def test_a_second_front_takes_over_the_port_of_one_that_ends():
    address = f"127.0.0.1:{free_port()}"
    request = service_pb2.ServerLiveRequest()

    async def start() -> Any:
        server = Listener(Front(Upstream("http://127.0.0.1:1")), address)
        await server.start()
        return server

    first = await start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(request)).live
        second = await start()
        await first.stop(1)
        assert (await stub.ServerLive(request, wait_for_ready=True, timeout=10)).live
    await second.stop(0)


@pytest.mark.parametrize("packed", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_messages_may_come_packed(counter: Counter, packed: grpc.Compression):
    with grpc.insecure_channel(counter.grpc, compression=packed) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(typed_request(), metadata=tuple(counter.login.items()))
    assert answer.model_name == "typed"


def test_large_messages_go_both_ways(counter: Counter, client: triton.InferenceServerClient):
    tensors = []
    for name in TYPED:
        tensor = triton.InferInput(name, [2_000, 2], name)
        tensor.set_data_from_numpy(np.tile(values(name), (1_000, 1)))
        tensors.append(tensor)
    answer = client.infer("typed", tensors, headers=counter.login)
    assert answer.get_response().ByteSize() > 400_000
    assert answer.as_numpy("out_FP64").tolist() == np.tile(values("FP64"), (1_000, 1)).tolist()


def test_what_is_not_served_is_unimplemented(counter: Counter):
    with grpc.insecure_channel(counter.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.RepositoryIndex(service_pb2.RepositoryIndexRequest())
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.ModelStreamInfer(iter([typed_request()])))
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
        broken = channel.unary_unary(f"/{messages.SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError, match="message: not what") as raised:
            broken(b"\xff\xff")
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_calls_beyond_the_bound_are_refused():
    release = asyncio.Event()

    class Slow:
        async def ask(self, *_: Any) -> Answer:
            await release.wait()
            return Answer(200, b"{}")

        def close(self) -> None: ...

    address = f"127.0.0.1:{free_port()}"
    server = Listener(Front(Slow(), max_calls=2), address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ServerReady(service_pb2.ServerReadyRequest()) for _ in range(3)]
        done, waiting = await asyncio.wait(
            [asyncio.ensure_future(call) for call in calls], return_when=asyncio.FIRST_COMPLETED
        )
        (refused,) = done
        assert refused.exception().code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        release.set()
        assert [(await one).ready for one in waiting] == [True, True]
    await server.stop(0)


async def test_an_address_that_cannot_be_had_is_said():
    with pytest.raises(RuntimeError, match=r"gRPC cannot listen at 192\.0\.2\.1:9"):
        Listener(Front(Upstream("http://127.0.0.1:1")), "192.0.2.1:9")
