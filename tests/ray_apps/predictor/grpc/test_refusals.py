"""Refusals of the gRPC server: their status and message, and that no message causes an internal error."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.ray_apps.predictor.grpc.conftest import TYPED, Served, inputs
from toque.ray_apps.predictor.protocol.datatypes import DTYPES


def refused(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as raised:
        call()
    return raised.value.status().removeprefix("StatusCode."), raised.value.message()


def test_refusals_are_statuses_with_the_words_of_the_http_door(
    served: Served, client: triton.InferenceServerClient
):
    login, good = served.login, inputs(TYPED)
    assert refused(lambda: client.infer("typed", good))[0] == "UNAUTHENTICATED"
    viewer = {"authorization": f"Bearer {served.viewer}"}
    assert refused(lambda: client.infer("typed", good, headers=viewer))[0] == "PERMISSION_DENIED"
    assert refused(lambda: client.is_model_ready("typed"))[0] == "UNAUTHENTICATED"
    code, words = refused(lambda: client.infer("nope", good, headers=login))
    assert (code, words) == ("NOT_FOUND", "/v2/models/nope/infer is not served here")
    code, words = refused(lambda: client.infer("typed", good[:1], headers=login))
    assert code == "INVALID_ARGUMENT"
    assert "missing; the model takes" in words
    code, words = refused(lambda: client.infer("typed", good, model_version="x", headers=login))
    assert (code, words[:14]) == ("INVALID_ARGUMENT", "model_version:")
    assert refused(lambda: client.infer("typed", good, model_version="77", headers=login))[0] == "NOT_FOUND"
    big = triton.InferInput("FP64", [1 << 18], "FP64")
    big.set_data_from_numpy(np.zeros(1 << 18))
    assert refused(lambda: client.infer("typed", [big], headers=login))[0] == "RESOURCE_EXHAUSTED"


BF16 = {"name": "x", "datatype": "BF16", "shape": [1]}
BAD: list[tuple[dict[str, Any], list[bytes], str]] = [
    (BF16, [b"\x00\x00"], "inputs.x.datatype"),
    (BF16, [], "inputs.x.datatype"),
    ({"name": "x", "datatype": "FP16", "shape": [1]}, [], "send raw_input_contents"),
    ({"name": "x", "datatype": "FP32", "shape": [-1]}, [b"\0\0\0\0"], "inputs.x.shape"),
    ({"name": "x", "datatype": "FP32", "shape": [2]}, [b"\0\0\0\0"], "is 8 bytes, got 4"),
    ({"name": "x", "datatype": "FP32", "shape": [1]}, [b"\0\0\0\0", b""], "raw_input_contents: 2 for 1"),
    ({"name": "x", "datatype": "FP32", "shape": [1], "contents": {"int_contents": [1]}}, [], "goes into fp32"),
    ({"name": "x", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [300]}}, [], "out of the range"),
    ({"name": "x", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1]}}, [b"\0" * 4], "one of both"),
    ({"name": "x", "datatype": "FP32", "shape": [1 << 40]}, [b""], "elements"),
]  # fmt: skip


@pytest.mark.parametrize(("tensor", "raw", "words"), BAD)
def test_bad_tensors_are_refused_by_name(
    served: Served, stub: Any, tensor: dict[str, Any], raw: list[bytes], words: str
):
    request = service_pb2.ModelInferRequest(model_name="typed", inputs=[tensor], raw_input_contents=raw)
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request, metadata=tuple(served.login.items()))
    assert raised.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert words in raised.value.details()


def test_a_deadline_ends_the_call_and_a_timeout_parameter_the_work(
    served: Served, client: triton.InferenceServerClient
):
    slow = [tensor for tensor in inputs(TYPED) if tensor.name() != "INT64"]
    wait = triton.InferInput("INT64", [2, 2], "INT64")
    wait.set_data_from_numpy(np.full((2, 2), -77))
    version = served.endpoints["typed"].predictor.engine.routes.champion
    version.example_ms = 100.0  # off the event loop, as a slow model's answers are
    try:
        login = served.login
        code, _ = refused(lambda: client.infer("typed", [*slow, wait], client_timeout=0.2, headers=login))
        assert code == "DEADLINE_EXCEEDED"
        code, words = refused(lambda: client.infer("typed", [*slow, wait], timeout=100_000, headers=login))
        assert (code, words[:9]) == ("DEADLINE_EXCEEDED", "deadline:")
    finally:
        served.release.set()
        version.example_ms = 0.1


ANY_TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["FP32", "BYTES", "", "ü"])},
    optional={
        "datatype": st.sampled_from([*DTYPES, "BF16", "", "fp32"]),
        "shape": st.lists(st.integers(-2, 3) | st.integers(-(2**63), 2**63 - 1), max_size=3),
        "contents": st.fixed_dictionaries(
            {},
            optional={
                "fp32_contents": st.lists(st.floats(width=32), max_size=3),
                "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
                "bytes_contents": st.lists(st.binary(max_size=3), max_size=3),
            },
        ),
    },
)
ANY_REQUEST = st.fixed_dictionaries(
    {"model_name": st.sampled_from(["typed", "typed", "typed", "", "../x", "a b"])},
    optional={
        "model_version": st.sampled_from(["1", "0", "-1", "x", "١"]),
        "id": st.text(max_size=3),
        "inputs": st.lists(ANY_TENSOR, max_size=2),
        "raw_input_contents": st.lists(st.binary(max_size=12), max_size=2),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["out_FP32", ""])}), max_size=2),
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ANY_REQUEST,
    st.sampled_from(["entities", "timeout", "unit", "request"]),
    st.text(max_size=4) | st.integers(-9, 9),
)
def test_no_message_is_our_fault(
    served: Served, stub: Any, fields: dict[str, Any], name: str, value: str | int
):
    request = service_pb2.ModelInferRequest(**fields)
    holder = request.parameters[name]
    if isinstance(value, str):
        holder.string_param = value
    else:
        holder.int64_param = value
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request, metadata=tuple(served.login.items()))
    theirs = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED}
    if name == "timeout":  # of a few microseconds
        theirs.add(grpc.StatusCode.DEADLINE_EXCEEDED)
    assert raised.value.code() in theirs, raised.value.details()
    assert raised.value.details()
