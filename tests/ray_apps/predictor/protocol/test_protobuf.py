"""The protocol's messages over HTTP: what gRPC carries, without gRPC."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tests.ray_apps.predictor.conftest import ServedModel
from toque.ray_apps.predictor.protocol.datatypes import pack
from toque.ray_apps.predictor.protocol.json import InferRequest, InferResponse
from toque.ray_apps.predictor.protocol.protobuf import encode_message

HEADERS = {"Content-Type": "application/x-protobuf"}


def message(**fields: object) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(**fields)
    request.inputs.add(name="numeric", datatype="FP32", shape=[1, 2])
    request.inputs.add(name="categorical", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(np.array([[1, 2]], np.float32).tobytes())
    request.raw_input_contents.append(pack(np.array([[b"UA"]], object)))
    return request


async def test_a_message_is_answered_with_a_message(served_model: ServedModel):
    request = message(id="flight-7")
    response = await served_model.client.post("/infer", content=request.SerializeToString(), headers=HEADERS)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-protobuf")
    answer = service_pb2.ModelInferResponse.FromString(response.content)
    assert (answer.model_name, answer.model_version, answer.id) == ("late", "1", "flight-7")
    assert answer.parameters["arm"].string_param == "champion"
    assert np.frombuffer(answer.raw_output_contents[0], np.float32) == pytest.approx([0.253])


async def test_outputs_are_chosen_by_name_and_refused_by_name(served_model: ServedModel):
    request = message()
    request.outputs.add(name="nope")
    response = await served_model.client.post("/infer", content=request.SerializeToString(), headers=HEADERS)
    assert response.status_code == 400
    assert "outputs.nope: no such output" in response.json()["error"]
    request = message()
    request.outputs.add(name="probability").parameters["classification"].int64_param = 3
    response = await served_model.client.post("/infer", content=request.SerializeToString(), headers=HEADERS)
    assert "classification: not served" in response.json()["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": [{"name": "numeric"}]}, "raw_input_contents: 2 for 3"),
        ({"id": "x" * 300}, "id: expected a string of at most 256"),
        ({"outputs": [{"name": f"o{i}"} for i in range(300)]}, "outputs: 300 outputs; at most 256"),
    ],
)
async def test_a_bad_message_is_refused_by_its_field(
    served_model: ServedModel, change: dict[str, object], words: str
):
    request = message()
    request.MergeFrom(service_pb2.ModelInferRequest(**change))
    response = await served_model.client.post("/infer", content=request.SerializeToString(), headers=HEADERS)
    assert response.status_code == 400
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("holder", "name", "near"),
    [
        ("parameters", "unti", "unit"),
        ("inputs", "binary_data_sise", "binary_data_size"),
        ("outputs", "clasification", "classification"),
    ],
)
async def test_a_parameter_that_nobody_knows_is_refused_with_the_nearest(
    served_model: ServedModel, holder: str, name: str, near: str
):
    for sent, status in ((name, 400), ("triton_new", 200), ("priority", 200)):
        request = message()
        request.outputs.add(name="probability")
        places = {"parameters": request, "inputs": request.inputs[0], "outputs": request.outputs[0]}
        places[holder].parameters[sent].string_param = "a"
        response = await served_model.client.post(
            "/infer", content=request.SerializeToString(), headers=HEADERS
        )
        assert response.status_code == status, response.text
        assert (
            status == 200
            or f"parameters.{name}: no such name; did you mean {near!r}?" in response.json()["error"]
        )


async def test_a_tensor_twice_is_refused(served_model: ServedModel):
    request = message()
    request.inputs.add(name="numeric", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(request.raw_input_contents[0])
    response = await served_model.client.post("/infer", content=request.SerializeToString(), headers=HEADERS)
    assert "inputs[2].name: 'numeric' is given twice" in response.json()["error"]


async def test_an_explanation_is_a_text(served_model: ServedModel):
    request = message()
    request.parameters["explain"].string_param = '{"samples": 2}'
    response = await served_model.client.post("/infer", content=request.SerializeToString(), headers=HEADERS)
    assert response.status_code == 200, response.text
    answer = service_pb2.ModelInferResponse.FromString(response.content)
    (explained,) = orjson.loads(answer.parameters["explanation"].string_param)
    assert explained


@pytest.mark.parametrize("typed", [True, False])
def test_each_answer_tells_of_itself_alone(*, typed: bool):
    one = {"y": np.arange(2, dtype=np.float32), "z": np.zeros((1, 3), np.int64)}
    two = {"y": np.arange(3, dtype=np.float64)}
    for version, arm, outputs, name in [
        (1, "champion", one, "a"),
        (2, "canary", two, None),
        (1, "canary", two, "b"),
        (1, None, one, None),
    ]:
        parameters = {"arm": arm} if arm else {}
        response = InferResponse("m", version, outputs, name, parameters)
        answer = service_pb2.ModelInferResponse.FromString(
            encode_message(response, InferRequest(inputs={}), typed=typed)
        )
        assert (answer.model_name, answer.model_version, answer.id) == ("m", str(version), name or "")
        assert {name: value.string_param for name, value in answer.parameters.items()} == parameters
        assert [(each.name, tuple(each.shape)) for each in answer.outputs] == [
            (name, array.shape) for name, array in outputs.items()
        ]
        if not typed:
            assert list(answer.raw_output_contents) == [array.tobytes() for array in outputs.values()]


@pytest.mark.parametrize("typed", [True, False])
def test_texts_of_a_users_class_go_out_as_bytes(*, typed: bool):
    outputs = {"word": np.array([["ü", b"b"]], object)}
    response = InferResponse("m", 1, outputs, parameters={"ranks": np.array([1, 2]), "cut": 0.5, "ok": True})
    answer = service_pb2.ModelInferResponse.FromString(
        encode_message(response, InferRequest(inputs={}), typed=typed)
    )
    if typed:
        assert list(answer.outputs[0].contents.bytes_contents) == ["ü".encode(), b"b"]
    else:
        assert answer.raw_output_contents[0] == pack(outputs["word"])
    assert answer.parameters["ranks"].string_param == "[1,2]"
    assert (answer.parameters["cut"].double_param, answer.parameters["ok"].bool_param) == (0.5, True)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 100), junk=st.binary(max_size=12), cut=st.integers(0, 100))
async def test_no_bytes_are_our_fault(served_model: ServedModel, at: int, junk: bytes, cut: int):
    good = message().SerializeToString()
    body = good[:at] + junk + good[at + cut :]
    response = await served_model.client.post("/infer", content=body, headers=HEADERS)
    assert response.status_code < 500, response.text
