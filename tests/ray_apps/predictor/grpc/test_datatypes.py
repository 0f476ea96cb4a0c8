"""Every datatype of the protocol, there and back, for two models by name: HTTP and gRPC, JSON, binary and typed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http

from tests.ray_apps.predictor.grpc.conftest import TYPED, Served, inputs, place, typed_request, values
from toque.ray_apps.predictor.protocol.datatypes import DTYPES


def same(got: np.ndarray, name: str) -> bool:
    want = values(name)
    return got.shape == want.shape and got.tolist() == want.tolist()


@pytest.mark.parametrize(("model", "names"), [("every", list(DTYPES)), ("typed", TYPED)])
def test_every_datatype_by_model_name_alone(
    served: Served, client: triton.InferenceServerClient, model: str, names: list[str]
):
    answer = client.infer(model, inputs(names), request_id="r-7", headers=served.login)
    for name in names:
        assert same(answer.as_numpy(f"out_{name}"), name), name
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == (model, "1", "r-7")
    assert response.parameters["arm"].string_param == "champion"
    assert len(response.raw_output_contents) == len(names)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", ["every", "typed"])
def test_every_datatype_over_http(served: Served, model: str, *, binary: bool):
    names = list(DTYPES) if model == "every" else TYPED
    tensors = []
    for name in names:
        tensor = triton_http.InferInput(name, [2, 2], name)
        array = values(name)
        if name == "BYTES" and not binary:
            array = np.array([["", "ü€"], ["a", "b"]], dtype=object)
        tensor.set_data_from_numpy(array, binary_data=binary or name == "FP16")  # mixed for one of the two
        tensors.append(tensor)
    outputs = [
        triton_http.InferRequestedOutput(f"out_{name}", binary_data=binary or name == "FP16")
        for name in names
    ]
    with triton_http.InferenceServerClient(served.http) as http:
        answer = http.infer(model, tensors, outputs=outputs, headers=served.login)
    for name in names:
        if name == "BYTES" and not binary:
            assert answer.as_numpy("out_BYTES").tolist() == [["", "ü€"], ["a", "b"]]
        else:
            assert same(answer.as_numpy(f"out_{name}"), name), name


def test_typed_contents_are_answered_with_typed_contents(served: Served, stub: Any):
    answer = stub.ModelInfer(typed_request(), metadata=tuple(served.login.items()))
    assert list(answer.raw_output_contents) == []
    for name, output in zip(TYPED, answer.outputs, strict=True):
        assert (output.name, output.datatype, list(output.shape)) == (f"out_{name}", name, [2, 2])
        assert list(getattr(output.contents, place(name))) == values(name).ravel().tolist(), name


def test_only_the_outputs_that_are_asked_for_come_back(served: Served, client: triton.InferenceServerClient):
    wanted = [triton.InferRequestedOutput("out_FP32"), triton.InferRequestedOutput("out_INT8")]
    answer = client.infer("typed", inputs(TYPED), outputs=wanted, headers=served.login, model_version="1")
    assert [output.name for output in answer.get_response().outputs] == ["out_FP32", "out_INT8"]
    assert answer.get_response().parameters["arm"].string_param == "pinned"
