"""What the gRPC front passes on and back, and what it is without a server behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ray_apps.predictor.rpc import Front, messages, open_front
from tests.ray_apps.predictor.rpc.conftest import TYPED, Counter, free_port, typed_request


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
        front = Front(f"http://127.0.0.1:{free_port()}")
        address = f"127.0.0.1:{free_port()}"
        server = open_front(front, address, max_message_bytes=1 << 20, max_calls=8)
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
        server = open_front(Front("http://127.0.0.1:1"), address, max_message_bytes=1 << 20, max_calls=8)
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
