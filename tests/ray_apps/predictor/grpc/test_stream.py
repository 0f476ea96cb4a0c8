"""Inference by stream: one answer for each request, in order, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.ports import free_port
from tests.ray_apps.predictor.grpc.conftest import TYPED, Served, inputs, typed_request
from toque.ray_apps.admission import Admitted, Rule
from toque.ray_apps.predictor.grpc import GrpcServer, Limits
from toque.ray_apps.predictor.http.auth import INFER, NoAuthentication
from toque.ray_apps.predictor.protocol.errors import Denied


def test_tritonclients_stream_gets_an_answer_for_each_request_in_order(
    served: Served, client: triton.InferenceServerClient
):
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)), headers=served.login)
    for number in range(30):
        model = "nope" if number % 3 == 1 else "typed"
        client.async_stream_infer(model, inputs(TYPED), request_id=str(number))
    answers = [got.get(timeout=60) for _ in range(30)]
    client.stop_stream()
    assert got.empty()
    for number, (result, error) in enumerate(answers):
        if number % 3 == 1:
            assert result is None
            assert error.message() == "/v2/models/nope/infer is not served here"
        else:
            response = result.get_response()
            assert (response.id, response.model_version) == (str(number), "1")
            assert response.parameters["arm"].string_param == "champion"


def test_a_refused_request_of_a_stream_is_told_by_its_id(served: Served, stub: Any):
    bad = service_pb2.ModelInferRequest(model_name="typed", id="bad")
    asked = iter([typed_request(id="a"), bad, typed_request(id="c")])
    answers = list(stub.ModelStreamInfer(asked, metadata=tuple(served.login.items())))
    assert [answer.infer_response.id for answer in answers] == ["a", "bad", "c"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert "missing; the model takes" in answers[1].error_message


def test_a_stream_without_a_token_ends_before_a_message_is_read(served: Served, stub: Any):
    refused = threading.Event()

    def asked() -> Iterator[Any]:
        refused.wait(60)
        yield typed_request()

    with pytest.raises(grpc.RpcError) as raised:
        list(stub.ModelStreamInfer(asked(), timeout=60))
    refused.set()
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


class Echo:
    """Models that answer a message with its own id, or wait."""

    async def request(self, _method: str, _path: str, _headers: Any, body: bytes = b"") -> Any:
        request = service_pb2.ModelInferRequest.FromString(body)
        return 200, [], service_pb2.ModelInferResponse(id=request.id).SerializeToString()

    async def close(self) -> None: ...


async def stream_of(server: GrpcServer, address: str, requests: AsyncIterator[Any]) -> list[Any]:
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            return [answer async for answer in stub.ModelStreamInfer(requests)]
    finally:
        await server.stop(0)


async def test_a_stream_whose_token_is_revoked_takes_no_more():
    class Authenticator(NoAuthentication):
        times = 0

        async def admit(self, authorization: bytes | None, rule: Rule = INFER, **options: Any) -> Admitted:
            self.times += 1
            if self.times > 3:
                raise Denied("authorization: the token is unknown, expired or revoked")
            return await super().admit(authorization, rule, **options)

    async def requests() -> AsyncIterator[Any]:
        for number in range(5):
            yield service_pb2.ModelInferRequest(model_name="m", id=str(number))

    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream_of(GrpcServer(Echo(), Authenticator(), address), address, requests())
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_that_says_nothing_is_ended():
    async def requests() -> AsyncIterator[Any]:
        yield service_pb2.ModelInferRequest(model_name="m", id="0")
        await asyncio.sleep(90)

    address = f"127.0.0.1:{free_port()}"
    server = GrpcServer(Echo(), NoAuthentication(), address, Limits(idle_s=0.3))
    async with asyncio.timeout(60):
        with pytest.raises(grpc.aio.AioRpcError, match=r"none came within 0\.3 s"):
            await stream_of(server, address, requests())
