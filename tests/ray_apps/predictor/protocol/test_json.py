"""The codec against tritonclient's own (an independent implementation), and against nonsense."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toque.ray_apps.predictor.protocol.datatypes import DTYPES, cast, pack, unpack
from toque.ray_apps.predictor.protocol.errors import BadRequest, PredictorError, TooLarge
from toque.ray_apps.predictor.protocol.json import (
    InferRequest,
    InferResponse,
    decode_request,
    encode_response,
)

NUMERIC = [name for name in DTYPES if name != "BYTES"]
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, *, text: bool = False) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(list(DTYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        items = st.text(st.characters(codec="utf-8")).map(str.encode) if text else st.binary(max_size=8)
        size = int(np.prod(shape))
        array = np.empty(size, dtype=object)
        array[:] = draw(st.lists(items, min_size=size, max_size=size))
        return datatype, array.reshape(shape)
    elements = None
    if DTYPES[datatype].kind == "f":
        elements = {"allow_nan": False, "allow_infinity": False}
    return datatype, draw(hnp.arrays(DTYPES[datatype], shape, elements=elements))


def encode_by_triton(
    name: str, datatype: str, array: np.ndarray, *, binary: bool
) -> tuple[bytes, int | None]:
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return triton.InferenceServerClient.generate_request_body([tensor], request_id="r-1")


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tolist() == right.tolist()


@given(tensors())
def test_binary_tensors_written_by_tritonclient_are_read_exactly(case: tuple[str, np.ndarray]):
    datatype, array = case
    body, length = encode_by_triton("x", datatype, array, binary=True)
    request = decode_request(body, length)
    assert request.id == "r-1"
    assert same(request.inputs["x"], array)


@given(tensors(text=True).filter(lambda case: case[0] != "FP16"))  # tritonclient refuses FP16 as JSON
def test_json_tensors_written_by_tritonclient_are_read_exactly(case: tuple[str, np.ndarray]):
    datatype, array = case
    body, length = encode_by_triton("x", datatype, array, binary=False)
    assert same(decode_request(body, length).inputs["x"], array)


@given(st.dictionaries(st.sampled_from("abcd"), tensors(text=True), min_size=1), st.data())
def test_responses_are_read_exactly_by_tritonclient(
    cases: dict[str, tuple[str, np.ndarray]], data: st.DataObject
):
    outputs = {name: array for name, (_, array) in cases.items()}
    binary = {name: data.draw(st.booleans()) for name in outputs}
    request = InferRequest(inputs={}, outputs=tuple(outputs), binary=binary)
    body, length = encode_response(InferResponse("m", 3, outputs, id="r-9"), request)
    result = triton.InferenceServerClient.parse_response_body(body, header_length=length)
    assert result.get_response()["model_version"] == "3"
    for name, array in outputs.items():
        got = result.as_numpy(name)
        if array.dtype == object and not binary[name]:  # tritonclient gives text back as str
            got = np.vectorize(lambda text: text.encode(), otypes=[object])(got) if got.size else got
        assert got.tolist() == array.tolist()


@given(tensors())
def test_pack_and_unpack_are_inverse(case: tuple[str, np.ndarray]):
    datatype, array = case
    assert same(unpack(pack(array), datatype, array.shape, "x"), array)


@given(tensors(), st.data())
def test_truncated_binary_is_refused(case: tuple[str, np.ndarray], data: st.DataObject):
    datatype, array = case
    packed = pack(array)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(BadRequest, match="x"):
        unpack(packed[:cut], datatype, array.shape, "x")


def test_mixed_json_and_binary_inputs_keep_their_order():
    one, two, three = (triton.InferInput(name, [2], "INT32") for name in ("one", "two", "three"))
    for i, tensor in enumerate((one, two, three)):
        tensor.set_data_from_numpy(np.array([i, i], np.int32), binary_data=tensor is not two)
    body, length = triton.InferenceServerClient.generate_request_body([one, two, three])
    assert {k: v.tolist() for k, v in decode_request(body, length).inputs.items()} == {
        "one": [0, 0],
        "two": [1, 1],
        "three": [2, 2],
    }


def test_a_model_may_write_to_its_inputs_however_they_came():
    array = unpack(b"\1\0\0\0" * 2, "INT32", (2,), "x")
    array += 1
    assert array.tolist() == [2, 2]


def test_null_is_nan_in_floating_tensors_and_comes_back_as_null():
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.5, None, 2]}
    request = decode_request(json.dumps({"inputs": [tensor]}).encode())
    assert np.isnan(request.inputs["x"][0, 1])
    body, _ = encode_response(InferResponse("m", 1, {"y": request.inputs["x"]}), InferRequest(inputs={}))
    assert orjson.loads(body)["outputs"][0]["data"] == [1.5, None, 2.0]


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]} | fields


BAD = [
    (b"", "body"),
    (b"{", "body"),
    (b"[]", "body"),
    (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}', "NaN as null"),
    ({"inputs": 3}, "inputs"),
    ({"inputs": [{}]}, r"inputs\[0\]"),
    ({"inputs": [tensor(), tensor()]}, "twice"),
    ({"inputs": [tensor(datatype="BF16")]}, "BF16"),
    ({"inputs": [tensor(datatype=None)]}, "datatype"),
    ({"inputs": [tensor(datatype=[])]}, "datatype"),
    ({"inputs": [tensor(shape=None)]}, "shape"),
    ({"inputs": [tensor(shape=[-1])]}, "shape"),
    ({"inputs": [tensor(shape=[True, True])]}, "shape"),
    ({"inputs": [tensor(shape=[1] * 9)]}, "shape"),
    ({"inputs": [tensor(shape=[3])]}, "data"),
    ({"inputs": [tensor(shape=[2, 1], data=[[1.0, 2.0]])]}, "nested"),
    ({"inputs": [tensor(data=[[1.0], [2.0, 3.0]])]}, "ragged"),
    ({"inputs": [tensor(data=["1", "2"])]}, "FP32"),
    ({"inputs": [tensor(data=[True, False])]}, "FP32"),
    ({"inputs": [tensor(data=[1.0, {}])]}, "FP32"),
    ({"inputs": [tensor(data=[1.0, 1e39])]}, "range"),
    ({"inputs": [tensor(data="ab")]}, "list"),
    ({"inputs": [tensor(datatype="INT64", data=[1.5, 2.0])]}, "integers"),
    ({"inputs": [tensor(datatype="INT64", data=[None, 2])]}, "integers"),
    ({"inputs": [tensor(datatype="INT8", data=[1, 128])]}, "range"),
    ({"inputs": [tensor(datatype="UINT8", data=[-1, 2])]}, "range"),
    ({"inputs": [tensor(datatype="BOOL", data=[0, 1])]}, "BOOL"),
    ({"inputs": [tensor(datatype="BYTES", data=[1, 2])]}, "BYTES"),
    ({"inputs": [tensor(datatype="BYTES", shape=[2, 1], data=[["a"], "b"])]}, "ragged"),
    ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}]}, "data"),
    ({"inputs": [tensor(parameters={"binary_data_size": 8})]}, "both"),
    ({"inputs": [tensor(parameters=3)]}, "parameters"),
    ({"inputs": [], "parameters": []}, "parameters"),
    ({"inputs": [], "parameters": {"binary_data_output": 1}}, "binary_data_output"),
    ({"inputs": [], "id": 7}, "id"),
    ({"inputs": [], "outputs": {}}, "outputs"),
    ({"inputs": [], "outputs": [{}]}, r"outputs\[0\]"),
    ({"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
    ({"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "binary_data"),
]


@pytest.mark.parametrize(("body", "field"), BAD)
def test_bad_requests_are_refused_by_the_name_of_the_field(body: bytes | dict[str, Any], field: str):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequest, match=field):
        decode_request(raw)


@pytest.mark.parametrize("length", [-1, 999])
def test_a_header_length_outside_the_body_is_refused(length: int):
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        decode_request(b'{"inputs": []}', length)


def test_binary_bytes_that_no_tensor_claims_are_refused():
    with pytest.raises(BadRequest, match="belong to no input"):
        decode_request(b'{"inputs": []}1234', 14)


def test_a_shape_beyond_the_bound_is_too_large_before_anything_is_allocated():
    huge = tensor(shape=[2**20, 2**20], data=[])
    with pytest.raises(TooLarge, match="shape"):
        decode_request(json.dumps({"inputs": [huge]}).encode())


@pytest.mark.parametrize(
    ("datatype", "values"),
    [("UINT64", [0, 2**64 - 1]), ("INT64", [-(2**63), 2**63 - 1]), ("UINT64", [2**63, 1])],
)
def test_integers_at_the_edge_of_64_bits_are_exact(datatype: str, values: list[int]):
    assert cast(values, datatype, "x").tolist() == values


@pytest.mark.parametrize("datatype", NUMERIC)
def test_empty_tensors_keep_their_type(datatype: str):
    request = decode_request(
        json.dumps({"inputs": [tensor(datatype=datatype, shape=[0, 4], data=[])]}).encode()
    )
    assert request.inputs["x"].shape == (0, 4)
    assert request.inputs["x"].dtype == DTYPES[datatype]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
NEARLY = st.fixed_dictionaries(
    {"inputs": st.lists(st.fixed_dictionaries(
        {"name": st.text(max_size=2), "datatype": st.sampled_from([*DTYPES, "BF16"]) | JSON},
        optional={
            "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
            "data": st.lists(JSON, max_size=4) | JSON,
            "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 9) | JSON}),
        },
    ), max_size=2)},
    optional={"id": JSON, "parameters": JSON, "outputs": JSON},
)  # fmt: skip


@settings(max_examples=600)
@given(NEARLY | JSON, st.binary(max_size=12), st.none() | st.integers(-2, 80))
def test_any_document_is_read_or_refused_and_nothing_else(document: Any, tail: bytes, length: int | None):
    head = json.dumps(document).encode("utf-8", "replace")
    for declared in (length, len(head)):
        try:
            request: InferRequest | PredictorError = decode_request(head + tail, declared)
        except PredictorError as refusal:
            request = refusal
        assert isinstance(request, InferRequest) or 400 <= request.status < 500


@given(st.binary(max_size=64), st.none() | st.integers(0, 64))
def test_any_bytes_are_read_or_refused(body: bytes, length: int | None):
    try:
        answer: InferRequest | PredictorError = decode_request(body, length)
    except PredictorError as refusal:
        answer = refusal
    assert isinstance(answer, InferRequest) or 400 <= answer.status < 500


def test_rows_are_taken_as_json_text_as_in_a_grpc_message_and_as_json():
    rows = [{"origin": "JFK"}]
    for sent in (rows, json.dumps(rows)):
        request = decode_request(
            json.dumps({"inputs": [], "parameters": {"entities": sent, "unit": "a"}}).encode()
        )
        assert request.parameters == {"entities": rows, "unit": "a"}
    with pytest.raises(BadRequest, match=r"parameters\.entities: expected JSON in a string"):
        decode_request(json.dumps({"parameters": {"entities": "[{"}}).encode())


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "INT8", "INT64", "UINT64"])
@pytest.mark.parametrize(
    "data",
    [[True], [2, True], [[False, 3], [4, 5]], [[2], [None], [True]], [0, False, 1], [7] * 300 + [True]],
)
@pytest.mark.parametrize("layout", [{}, {"indent": 100}, {"separators": (",", ":")}])
def test_true_and_false_are_no_numbers_wherever_they_stand(
    datatype: str, data: list[Any], layout: dict[str, Any]
):
    body = json.dumps(
        {"inputs": [tensor(datatype=datatype, shape=list(np.shape(data)), data=data)]}, **layout
    )
    with pytest.raises(BadRequest, match=rf"inputs\.x\.data: {datatype} needs .*got (True|False|None)"):
        decode_request(body.encode())


def test_true_and_false_elsewhere_in_a_request_are_no_concern_of_its_numbers():
    tensors = [
        tensor(data=[0, 1.5]),
        tensor(name="flags", datatype="BOOL", data=[True, False]),
        tensor(name="words", datatype="BYTES", data=["true", "a,true"]),
    ]
    outputs = [{"name": "y", "parameters": {"binary_data": False}}]
    body = {
        "inputs": tensors,
        "outputs": outputs,
        "parameters": {"binary_data_output": True, "load_test": True},
    }
    inputs = decode_request(json.dumps(body).encode()).inputs
    assert [inputs[name].tolist() for name in ("x", "flags")] == [[0.0, 1.5], [True, False]]


@pytest.mark.parametrize(("datatype", "limit"), [("FP16", 65_520.0), ("FP32", (2 - 2**-24) * 2.0**127)])
@pytest.mark.parametrize("others", [[], [None], [[0.5]], [0.5] * 300])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_fits_if_it_rounds_to_one_of_the_type(
    datatype: str, limit: float, others: list[Any], sign: int
):
    def wrap(value: float) -> list[Any]:
        return [*others, [value]] if others == [[0.5]] else [*others, value]

    last, first = sign * np.nextafter(limit, 0), sign * limit
    greatest = cast(wrap(float(last)), datatype, "inputs.x").ravel()[-1]
    assert greatest == sign * np.finfo(DTYPES[datatype]).max
    with pytest.raises(
        BadRequest, match=rf"inputs.x.data: {re.escape(repr(first))} is out of the range of {datatype}; send"
    ):
        cast(wrap(first), datatype, "inputs.x")


@pytest.mark.parametrize(
    ("where", "name", "near"),
    [
        ("parameters", "load_tset", "load_test"),
        ("parameters", "unti", "unit"),
        ("parameters", "Request", "request"),
        ("parameters", "entitys", "entities"),
        ("parameters", "time_out", "timeout"),
        ("parameters", "binary_data_outputs", "binary_data_output"),
        ("parameters", "距離", None),
        ("parameters", "", None),
        ("inputs.x.parameters", "binary_data_sice", "binary_data_size"),
        ("outputs.y.parameters", "binary_date", "binary_data"),
        ("body", "paramters", "parameters"),
        ("body", "output", "outputs"),
    ],
)
def test_a_name_that_nobody_knows_is_refused_with_the_nearest(where: str, name: str, near: str | None):
    named = {name: True}
    holder, _, _ = where.partition(".")
    body: dict[str, Any] = {
        "inputs": [tensor(parameters=named if holder == "inputs" else {})],
        "outputs": [{"name": "y", "parameters": named if holder == "outputs" else {}}],
        "parameters": named if holder == "parameters" else {},
    }
    body |= named if holder == "body" else {}
    hint = f"did you mean {near!r}" if near else "known are"
    with pytest.raises(BadRequest, match=re.escape(f"{where}.{name}: no such name; {hint}")):
        decode_request(json.dumps(body).encode())


def test_what_the_protocols_clients_send_is_taken():
    custom = {"triton_enable_empty_final_response": True, "content_type": "np", "headers": "x"}
    inputs, output = triton.InferInput("x", [1], "FP32"), triton.InferRequestedOutput("y", binary_data=False)
    inputs.set_data_from_numpy(np.ones(1, np.float32), binary_data=False)
    body, _ = triton.InferenceServerClient.generate_request_body(
        [inputs], outputs=[output], request_id="r", sequence_id=3, sequence_start=True, priority=2, timeout=9
    )
    document = json.loads(body)
    document["parameters"] |= custom | {
        "binary_data_size": 0,
        "classification": 0,
        "shared_memory_region": "r",
    }
    document["inputs"][0]["parameters"] = {"content_type": "np", "columns": ["x"], "shared_memory_offset": 0}
    document |= {"model_name": "m", "model_version": "1"}
    assert decode_request(json.dumps(document).encode()).inputs["x"].tolist() == [1.0]
