"""Every method of the service for an unmodified tritonclient, and what passes through with a call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.ports import free_port
from tests.ray_apps.predictor.grpc.conftest import (
    TYPED,
    Served,
    inputs,
    typed_request,
    values,
)
from toque.ray_apps.predictor.grpc import GrpcServer, HttpModels, Limits
from toque.ray_apps.predictor.grpc.service import DOCUMENTS, UNSERVED
from toque.ray_apps.predictor.http.auth import NoAuthentication
from toque.ray_apps.predictor.http.endpoint import JSON, Answer
from toque.ray_apps.predictor.protocol import protobuf


def test_health_readiness_and_metadata(served: Served, client: triton.InferenceServerClient):
    login = served.login
    assert client.is_server_live()
    assert client.is_server_ready(headers=login)
    assert client.get_server_metadata(headers=login).extensions == [
        "binary_tensor_data", "model_configuration", "statistics",
    ]  # fmt: skip
    assert client.is_model_ready("every", headers=login)
    assert client.is_model_ready("every", "1", headers=login)
    assert not client.is_model_ready("every", "9", headers=login)
    assert not client.is_model_ready("nope", headers=login)
    described = client.get_model_metadata("typed", headers=login)
    assert (described.name, described.platform, list(described.versions)) == ("typed", "toque", ["1"])
    assert [(x.name, x.datatype, list(x.shape)) for x in described.inputs] == [(n, n, [-1, 2]) for n in TYPED]


def test_entities_travel_as_json_text(served: Served, stub: Any):
    request = service_pb2.ModelInferRequest(model_name="typed")
    request.parameters["entities"].string_param = '[{"carrier": "UA"}]'
    with pytest.raises(grpc.RpcError, match="no online store"):
        stub.ModelInfer(request, metadata=tuple(served.login.items()))
    request.parameters["entities"].string_param = "[{"
    with pytest.raises(grpc.RpcError, match=r"parameters.entities: expected JSON"):
        stub.ModelInfer(request, metadata=tuple(served.login.items()))


def test_attributes_travel_as_json_text(served: Served, stub: Any):
    request = typed_request()
    request.parameters["attributes"].string_param = '{"country": "NL"}'
    answer = stub.ModelInfer(request, metadata=tuple(served.login.items()))
    assert answer.parameters["arm"].string_param == "rule:dutch"
    request.parameters["attributes"].string_param = '{"country": 31}'
    with pytest.raises(grpc.RpcError, match=r"parameters.attributes.country: expected a text"):
        stub.ModelInfer(request, metadata=tuple(served.login.items()))


def test_trace_context_and_request_id_come_back_as_metadata(served: Served, stub: Any):
    sent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1",
            "x-request-id": "q-1"}  # fmt: skip
    _, call = stub.ModelInfer.with_call(typed_request(), metadata=tuple((served.login | sent).items()))
    assert sent.items() <= dict(call.trailing_metadata()).items()


def test_our_messages_are_tritonclients():
    theirs = {
        **service_pb2.DESCRIPTOR.message_types_by_name,
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
    }
    ours = protobuf.ModelInferRequest.DESCRIPTOR.file
    for name, message in ours.message_types_by_name.items():
        for field in message.fields:
            other = theirs[name].fields_by_name[field.name]
            assert (field.number, field.type, field.label) == (other.number, other.type, other.label), (
                field.full_name
            )
    for name, enum in ours.enum_types_by_name.items():
        other = model_config_pb2.DESCRIPTOR.enum_types_by_name[name]
        assert [(v.name, v.number) for v in enum.values] == [(v.name, v.number) for v in other.values]


def test_every_method_of_tritonclient_is_served_or_refused_with_a_reason():
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert {*protobuf.METHODS, *UNSERVED} == {*theirs}
    for name in protobuf.METHODS:
        ours = protobuf.METHODS[name].DESCRIPTOR
        assert ours.name == theirs[name].input_type.name
    assert {*DOCUMENTS} < {*protobuf.METHODS}


def test_statistics_count_what_was_asked(served: Served, client: triton.InferenceServerClient):
    login = served.login

    def counts() -> tuple[Any, Any]:
        (found,) = client.get_inference_statistics("typed", headers=login).model_stats
        assert (found.name, found.version) == ("typed", "1")
        return found, client.get_inference_statistics("typed", "1", headers=login).model_stats[0]

    before, _ = counts()
    for _ in range(3):
        client.infer("typed", inputs(TYPED), headers=login)
    with pytest.raises(InferenceServerException):
        client.infer("typed", inputs(TYPED[:1]), headers=login)
    after, same = counts()
    assert after == same
    assert after.inference_count - before.inference_count == 6  # of two rows each
    assert after.execution_count - before.execution_count == 3
    ours, then = after.inference_stats, before.inference_stats
    assert ours.success.count - then.success.count == 3
    assert ours.fail.count - then.fail.count == 1
    assert ours.fail.ns > then.fail.ns
    assert ours.success.ns == pytest.approx(ours.compute_input.ns + ours.compute_infer.ns, abs=2)
    assert ours.compute_infer.ns > then.compute_infer.ns
    assert 0 <= time.time() * 1e3 - after.last_inference < 60_000
    with triton_http.InferenceServerClient(served.http) as http:
        (by_http,) = http.get_inference_statistics("typed", headers=login)["model_stats"]
    assert json_format.ParseDict(by_http, service_pb2.ModelStatistics()) == after
    with pytest.raises(InferenceServerException, match="no version 9"):
        client.get_inference_statistics("typed", "9", headers=login)


def test_a_cancelled_call_is_given_up_by_the_model(served: Served, client: triton.InferenceServerClient):
    endpoint = served.endpoints["typed"]
    version = endpoint.predictor.engine.routes.champion
    slow = [tensor for tensor in inputs(TYPED) if tensor.name() != "INT64"]
    wait = triton.InferInput("INT64", [2, 2], "INT64")
    wait.set_data_from_numpy(np.full((2, 2), -77))

    def failures() -> int:
        (found,) = client.get_inference_statistics("typed", headers=served.login).model_stats
        return int(found.inference_stats.fail.count)

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    before = failures()
    version.example_ms = 100.0  # off the event loop, as a slow model's answers are
    try:
        call = client.async_infer("typed", [*slow, wait], lambda *_: None, headers=served.login)
        until(lambda: endpoint.in_flight == 1)
        call.cancel()
        until(lambda: failures() == before + 1)
        assert not served.release.is_set()
        until(lambda: endpoint.in_flight == 0)
    finally:
        served.release.set()
        version.example_ms = 0.1


def test_the_configuration_is_what_a_client_makes_requests_of(
    served: Served, client: triton.InferenceServerClient
):
    config = client.get_model_config("typed", headers=served.login).config
    assert (config.name, config.max_batch_size) == ("typed", 16_777_216 // 2)
    types = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in config.input}
    assert types["FP32"] == (model_config_pb2.TYPE_FP32, [2])
    assert types["BYTES"] == (model_config_pb2.TYPE_STRING, [2])
    assert [tensor.name for tensor in config.output] == [f"out_{name}" for name in TYPED]
    with triton_http.InferenceServerClient(served.http) as http:
        by_http = http.get_model_config("typed", "1", headers=served.login)
    assert json_format.ParseDict(by_http, model_config_pb2.ModelConfig()) == config


def test_the_repository_index_lists_what_is_served(served: Served, client: triton.InferenceServerClient):
    found = client.get_model_repository_index(headers=served.login).models
    assert {(one.name, one.version, one.state) for one in found} == {
        ("every", "1", "READY"),
        ("typed", "1", "READY"),
    }
    with triton_http.InferenceServerClient(served.http) as http:
        assert {one["name"] for one in http.get_model_repository_index(headers=served.login)} == {
            "every",
            "typed",
        }
        with pytest.raises(InferenceServerException, match="missing"):
            http.get_model_repository_index()


async def test_an_asynchronous_client_reaches_every_method(served: Served):
    login = served.login
    async with triton_aio.InferenceServerClient(served.grpc) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("typed", headers=login)
        assert (await client.get_server_metadata(headers=login)).name == "toque"
        assert (await client.get_model_metadata("typed", headers=login)).name == "typed"
        assert (await client.get_model_config("typed", headers=login)).config.name == "typed"
        assert (await client.get_inference_statistics("typed", headers=login)).model_stats[0].name == "typed"
        assert len((await client.get_model_repository_index(headers=login)).models) == 2
        answers = await asyncio.gather(
            *(client.infer("typed", inputs(TYPED), request_id=str(n), headers=login) for n in range(20))
        )
    assert [answer.get_response().id for answer in answers] == [str(n) for n in range(20)]


def test_no_server_behind_the_proxy_is_unavailable():
    async def ask() -> Any:
        address = f"127.0.0.1:{free_port()}"
        server = GrpcServer(HttpModels(f"http://127.0.0.1:{free_port()}"), NoAuthentication(), address)
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


async def test_a_second_server_takes_over_the_port_of_one_that_ends():
    address = f"127.0.0.1:{free_port()}"
    request = service_pb2.ServerLiveRequest()

    async def start() -> GrpcServer:
        server = GrpcServer(HttpModels("http://127.0.0.1:1"), NoAuthentication(), address)
        await server.start()
        return server

    first = await start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(request)).live
        second = await start()
        await first.stop(1)
        assert (await stub.ServerLive(request, wait_for_ready=True, timeout=60)).live
    await second.stop(0)


@pytest.mark.parametrize("packed", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_messages_may_come_packed(served: Served, packed: grpc.Compression):
    with grpc.insecure_channel(served.grpc, compression=packed) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(typed_request(), metadata=tuple(served.login.items()))
    assert answer.model_name == "typed"


def test_large_messages_go_both_ways(served: Served, client: triton.InferenceServerClient):
    tensors = []
    for name in TYPED:
        tensor = triton.InferInput(name, [2_000, 2], name)
        tensor.set_data_from_numpy(np.tile(values(name), (1_000, 1)))
        tensors.append(tensor)
    answer = client.infer("typed", tensors, headers=served.login)
    assert answer.get_response().ByteSize() > 400_000
    assert answer.as_numpy("out_FP64").tolist() == np.tile(values("FP64"), (1_000, 1)).tolist()


@pytest.mark.parametrize("method", UNSERVED)
def test_what_is_not_served_is_unimplemented(served: Served, stub: Any, method: str):
    request = getattr(service_pb2, f"{method}Request")()
    with pytest.raises(grpc.RpcError) as raised:
        getattr(stub, method)(request, metadata=tuple(served.login.items()))
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert raised.value.details() == f"{method} is not served: {UNSERVED[method]}"


async def test_calls_in_flight_are_answered_before_the_server_ends():
    asked, release = asyncio.Event(), asyncio.Event()

    class Slow:
        async def request(self, *_: Any) -> Answer:
            asked.set()
            await release.wait()
            return 200, [JSON], b"{}"

        async def close(self) -> None: ...

    address = f"127.0.0.1:{free_port()}"
    server = GrpcServer(Slow(), NoAuthentication(), address, Limits())
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = asyncio.ensure_future(stub.ServerReady(service_pb2.ServerReadyRequest()))
        await asked.wait()
        stopping = asyncio.create_task(server.stop(10))
        await asyncio.sleep(0)
        release.set()
        assert (await call).ready
        await stopping


async def test_an_address_that_cannot_be_had_is_said():
    with pytest.raises(RuntimeError, match=r"gRPC cannot listen at 192\.0\.2\.1:9"):
        GrpcServer(HttpModels("http://127.0.0.1:1"), NoAuthentication(), "192.0.2.1:9")
