"""Requests of a form that is known are read as if none were known: the same values, the same refusals, nothing shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.grpc import service_pb2

from ray_apps.predictor import forms
from ray_apps.predictor.forms import Forms
from ray_apps.predictor.protocol import json as protocol
from ray_apps.predictor.protocol import protobuf
from ray_apps.predictor.protocol.datatypes import DTYPES, datatype_of, pack
from ray_apps.predictor.protocol.errors import PredictorError
from ray_apps.predictor.protocol.json import InferRequest

Read = Callable[[Any], tuple[InferRequest, bool]]
Binary = tuple[bytes, int]
"""A body over HTTP, and how much of it is JSON."""
NUMBERS = [dtype for name, dtype in DTYPES.items() if name not in {"BYTES", "BOOL"}]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
INPUTS = st.dictionaries(
    st.sampled_from("abc"),
    st.tuples(st.sampled_from([*NUMBERS, DTYPES["BOOL"]]), SHAPES).flatmap(lambda one: hnp.arrays(*one)),
    max_size=3,
)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "_forms", Forms())
    monkeypatch.setattr(protocol, "_forms", Forms())


def message(inputs: dict[str, np.ndarray], **fields: Any) -> bytes:
    request = service_pb2.ModelInferRequest(**{"model_name": "m", **fields})
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        request.raw_input_contents.append(pack(array))
    written: bytes = request.SerializeToString()
    return written


def binary(inputs: dict[str, np.ndarray], **fields: Any) -> Binary:
    tensors = [
        {
            "name": name,
            "datatype": datatype_of(array.dtype),
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in inputs.items()
    ]
    head = orjson.dumps({"inputs": tensors, **fields})
    return head + b"".join(map(pack, inputs.values())), len(head)


def read_binary(body: Binary) -> tuple[InferRequest, bool]:
    return protocol.decode_request(*body), False


def known_messages() -> int:
    return sum(one is not None for one in protobuf._forms._known.values())


def known_binaries() -> int:
    return sum(one is not None for one in protocol._forms._known.values())


def outcome(read: Read, body: Any) -> Any:
    try:
        request, typed = read(body)
    except PredictorError as refusal:
        return type(refusal), str(refusal)
    arrays = [
        (name, array.dtype, array.shape, pack(array), array.flags.writeable)
        for name, array in request.inputs.items()
    ]
    said = request.id, request.parameters, request.outputs, request.binary, request.binary_default
    return arrays, said, typed


def alone(read: Read, body: Any) -> Any:
    """What comes of a body where nothing is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protobuf, "_forms", Forms())
        patch.setattr(protocol, "_forms", Forms())
        return outcome(read, body)


def refilled(draw: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same names, types and shapes, other numbers."""
    return {name: draw(hnp.arrays(array.dtype, array.shape)) for name, array in inputs.items()}


@given(
    st.lists(INPUTS, min_size=1, max_size=2),
    st.lists(st.sampled_from([{}, {"id": "one"}, {"model_name": "n"}, {"model_version": "3"}]), min_size=2),
    st.data(),
)
def test_messages_are_read_as_if_none_had_been_before(
    shapes: list[dict[str, np.ndarray]], fields: list[dict[str, str]], data: st.DataObject
):
    for said in fields * 2:
        inputs = data.draw(st.sampled_from(shapes))
        body = message(refilled(data.draw, inputs), **said)
        at, by = data.draw(st.tuples(st.integers(0, len(body)), st.integers(-1, 255)))
        if by >= 0:
            body = body[:at] + bytes([by]) + body[at + 1 :]
        assert outcome(protobuf.decode_message, body) == alone(protobuf.decode_message, body)


@given(st.lists(INPUTS, min_size=1, max_size=2), st.lists(st.booleans(), min_size=2), st.data())
def test_binary_tensors_are_read_as_if_none_had_been_before(
    shapes: list[dict[str, np.ndarray]], named: list[bool], data: st.DataObject
):
    for one in named * 2:
        inputs = data.draw(st.sampled_from(shapes))
        said = {"id": "one"} if one else {"parameters": {"binary_data_output": True}}
        body, size = binary(refilled(data.draw, inputs), **said)
        body = body[: len(body) - data.draw(st.sampled_from([0, 0, 0, 1]))] + data.draw(
            st.sampled_from([b"", b"", b"x"])
        )
        assert outcome(read_binary, (body, size)) == alone(read_binary, (body, size))


@pytest.mark.parametrize(
    ("write", "read", "known"),
    [(message, protobuf.decode_message, known_messages), (binary, read_binary, known_binaries)],
)
def test_a_form_is_known_from_its_second_request_on_and_shares_nothing(
    write: Callable[..., Any], read: Read, known: Callable[[], int]
):
    one, two = ({"x": np.full((1, 2), n, np.float32), "n": np.full(3, n, np.int64)} for n in (1, 2))
    read(write(one))
    assert known() == 0
    first = read(write(one))[0].inputs
    assert known() == 1
    second, third = read(write(two))[0].inputs, read(write(two))[0].inputs
    assert known() == 1
    second["x"][:] = 7
    del second["n"]
    assert {name: array.tolist() for name, array in first.items()} == {"x": [[1, 1]], "n": [1, 1, 1]}
    assert {name: array.tolist() for name, array in third.items()} == {"x": [[2, 2]], "n": [2, 2, 2]}


@pytest.mark.parametrize(
    ("write", "read", "known"),
    [(message, protobuf.decode_message, known_messages), (binary, read_binary, known_binaries)],
)
def test_what_is_of_one_request_is_not_kept(write: Callable[..., Any], read: Read, known: Callable[[], int]):
    numbers = {"x": np.zeros((1, 2), np.float32)}
    texts = {"x": np.array([b"1234"], object)}
    unit = {"unit": {"string_param": "u"} if write is message else "u"}
    for body in (
        write(numbers, id="1"),
        write(numbers, parameters=unit),
        write({}),
        write({"x": np.array([True])}),
    ):
        for _ in range(3):
            read(body)
    if write is message:
        for _ in range(3):
            read(message(texts))
    assert known() == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_where_the_numbers_are_not_at_the_end_the_message_is_read_whole(rows: int):
    """Fields may come in any order, and a field that nobody knows may look like numbers at the end."""
    body = message({"x": np.arange(rows, dtype=np.float32)})
    raw = service_pb2.ModelInferRequest(raw_input_contents=[pack(np.arange(rows, dtype=np.float32))])
    rest = service_pb2.ModelInferRequest.FromString(body)
    del rest.raw_input_contents[:]
    numbers, others = raw.SerializeToString(), rest.SerializeToString()
    unknown = b"\xa2\x06" + bytes([len(numbers)])  # field 100, of bytes
    for odd in (numbers + others, others + numbers + unknown + numbers, numbers + others + unknown + numbers):
        for _ in range(3):
            (found, _) = protobuf.decode_message(odd)
            assert found.inputs["x"].tolist() == [*range(rows)]
        other = odd[: -4 * rows] + pack(np.full(rows, 9, np.float32))
        assert outcome(protobuf.decode_message, other) == alone(protobuf.decode_message, other)
    assert known_messages() == 0


def test_what_stands_behind_the_numbers_is_read_too():
    body = message({"x": np.arange(2, dtype=np.float32)})
    for _ in range(3):
        protobuf.decode_message(body)
    assert known_messages() == 1
    (found, _) = protobuf.decode_message(body + service_pb2.ModelInferRequest(id="one").SerializeToString())
    assert found.id == "one"


def test_what_stands_between_the_numbers_is_read_too():
    body = message({name: np.arange(2, dtype=np.float32) for name in "xy"})
    for _ in range(3):
        protobuf.decode_message(body)
    assert known_messages() == 1
    other = bytearray(body)
    other[-10] = 0x7A  # the second contents' tag, now that of a field that nobody knows
    assert outcome(protobuf.decode_message, bytes(other))[1].startswith("raw_input_contents: 1 for 2")


def test_numbers_in_the_json_are_read_each_time():
    head = orjson.dumps(
        {
            "inputs": [
                {"name": "j", "datatype": "INT32", "shape": [1], "data": [5]},
                {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
            ]
        }
    )
    for number in (1, 2, 3, 4):
        (found, _) = read_binary((head + pack(np.full(1, number, np.float32)), len(head)))
        assert {name: array.tolist() for name, array in found.inputs.items()} == {"j": [5], "x": [number]}
        found.inputs["j"][:] = 0
    body = orjson.dumps({"inputs": [{"name": "j", "datatype": "INT32", "shape": [1], "data": [5]}]})
    for _ in range(3):
        assert read_binary((body, len(body)))[0].inputs["j"].tolist() == [5]
    assert known_binaries() == 0


def test_whom_a_message_is_for_is_told_of_each():
    for name, version in [("a", ""), ("b", ""), ("a", "1"), ("a", "2"), ("a", ""), ("n" * 200, "7")] * 3:
        body = message({"x": np.zeros(2, np.float32)}, model_name=name, model_version=version)
        protobuf.decode_message(body)
        found = protobuf.read_addressee(body)
        assert (found.model_name, found.model_version) == (name, version)


def test_no_more_forms_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forms, "MAX_FORMS", 8)
    for turn, rows in enumerate([*range(1, 30)] * 3):
        for _ in range(2):
            inputs = {"x": np.zeros(rows, np.float32)}
            protobuf.decode_message(message(inputs))
            read_binary(binary(inputs))
        wanted = turn % 8 + 1  # the ninth finds no room, and takes that of the eight before
        assert (known_messages(), known_binaries()) == (wanted, wanted)
    large = {f"tensor {i}": np.zeros(1, np.float32) for i in range(100)}
    before = known_messages(), known_binaries()
    for _ in range(3):
        protobuf.decode_message(message(large))
        read_binary(binary(large))
    assert (known_messages(), known_binaries()) == before
