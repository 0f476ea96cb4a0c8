from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ray_apps.predictor.conftest import ServedModel, tensors
from toque.functions.prediction_log.records import decode_prediction
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.ray_apps.predictor.inference.recording import Recorder

VALUE = pytest.approx(0.253)


async def test_a_prediction_has_id_version_and_arm_and_is_logged_with_its_vector(served_model: ServedModel):
    response = await served_model.infer(tensors(id="flight-7", parameters={"unit": "N101"}))
    assert response.status_code == 200
    assert response.json() == {
        "model_name": "late",
        "model_version": "1",
        "id": "flight-7",
        "parameters": {"arm": "champion"},
        "outputs": [{"name": "probability", "datatype": "FP32", "shape": [1, 1], "data": [VALUE]}],
    }
    (row,) = prediction_columns(served_model.log.payloads)["late"].to_pylist()
    assert (row["prediction_id"], row["unit"], row["version"], row["arm"]) == (
        "flight-7",
        "N101",
        1,
        "champion",
    )
    assert (row["numeric"], row["categorical"], row["outputs"]) == ([1.0, 2.0], ["UA"], [VALUE])
    assert row["shadow"] is False


async def test_a_request_without_id_gets_a_fresh_one(served_model: ServedModel):
    ids = {(await served_model.infer()).json()["id"] for _ in range(3)}
    assert len(ids) == 3
    assert {decode_prediction(payload)["id"] for payload in served_model.log.payloads} == ids


async def test_binary_in_and_out_by_tritonclients_codec(served_model: ServedModel):
    numeric = triton.InferInput("numeric", [3, 2], "FP32")
    numeric.set_data_from_numpy(np.ones((3, 2), np.float32), binary_data=True)
    categorical = triton.InferInput("categorical", [3, 1], "BYTES")
    categorical.set_data_from_numpy(np.array([["UA"], ["B6"], [""]], object), binary_data=True)
    wanted = [triton.InferRequestedOutput("probability", binary_data=True)]
    body, length = triton.InferenceServerClient.generate_request_body([numeric, categorical], outputs=wanted)
    response = await served_model.client.post(
        "/infer", content=body, headers={"Inference-Header-Content-Length": str(length)}
    )
    assert response.status_code == 200
    result = triton.InferenceServerClient.parse_response_body(
        response.content, header_length=int(response.headers["Inference-Header-Content-Length"])
    )
    assert result.as_numpy("probability") == pytest.approx(np.full((3, 1), 0.252))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_packed_bodies_are_read(served_model: ServedModel, encoding: str):
    raw = json.dumps(tensors()).encode()
    packed = gzip.compress(raw) if encoding == "gzip" else zlib.compress(raw)
    response = await served_model.client.post(
        "/infer", content=packed, headers={"Content-Encoding": encoding}
    )
    assert response.status_code == 200


async def test_metadata_readiness_and_status(served_model: ServedModel):
    described = (await served_model.client.get("")).json()
    assert described["name"] == "late"
    assert described["versions"] == ["1"]
    assert described["inputs"][0] == {
        "name": "numeric", "datatype": "FP32", "shape": [-1, 2],
        "parameters": {"columns": ["distance", "wind"]},
    }  # fmt: skip
    assert (await served_model.client.get("/ready")).json() == {"name": "late", "ready": True}
    assert (await served_model.client.get("/versions/1")).json()["parameters"]["version"] == "1"
    assert (await served_model.client.get("/versions/1/ready")).status_code == 200
    assert (await served_model.client.get("/versions/9/ready")).status_code == 503
    assert (await served_model.client.get("/versions/9")).status_code == 404
    assert (await served_model.client.get("/status")).json()["champion"] == 1


async def test_a_model_without_a_champion_is_not_ready_and_says_so(
    make_served_model: Callable[..., ServedModel],
):
    made = make_served_model()
    made.refresh()
    assert (await made.client.get("/ready")).status_code == 503
    response = await made.infer()
    assert response.status_code == 503
    assert "no champion" in response.json()["error"]
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stands_in_the_split", [False, True])
async def test_a_version_can_be_asked_for_by_number(served_model: ServedModel, *, stands_in_the_split: bool):
    other = served_model.version(0.5)
    if stands_in_the_split:
        served_model.registry.set_traffic("late", {"canary": (other, 0.5)})
    served_model.refresh()
    response = await served_model.infer(path=f"/versions/{other}/infer")
    assert response.json()["model_version"] == "2"
    assert response.json()["parameters"]["arm"] == "pinned"
    assert (await served_model.infer(path="/versions/77/infer")).status_code == 404
    served_model.registry.set_traffic("late", {})
    served_model.registry.as_actor("bob").reject("late", other)
    served_model.refresh()
    response = await served_model.infer(path=f"/versions/{other}/infer")
    assert response.status_code == 404
    assert "rejected" in response.json()["error"]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer nonsense", 401),
        ("Basic abc", 401),
        ("Bearer ", 401),
        ("viewer", 403),
        ("admin", 200),
    ],
)
async def test_every_route_wants_a_token_with_the_role(
    served_model: ServedModel, header: str | None, status: int
):
    if header in served_model.tokens:
        header = f"Bearer {served_model.tokens[header]}"
    viewer = f"Bearer {served_model.tokens['viewer']}"
    served_model.client.headers.pop("authorization")
    headers = {} if header is None else {"Authorization": header}
    for method, path in [("POST", "/infer"), ("GET", ""), ("GET", "/status"), ("GET", "/ready")]:
        content = json.dumps(tensors()) if method == "POST" else None
        response = await served_model.client.request(method, path, content=content, headers=headers)
        expected = 200 if header == viewer and method == "GET" else status
        assert response.status_code == expected, (method, path)
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"


BAD: list[tuple[dict[str, Any] | bytes, dict[str, str], int, str]] = [
    (b"{", {}, 400, "body"),
    (b"", {}, 400, "body"),
    ({"inputs": []}, {}, 400, "inputs.numeric: missing"),
    (tensors() | {"inputs": tensors()["inputs"][:1]}, {}, 400, "inputs.categorical: missing"),
    ({"inputs": [*tensors()["inputs"], {"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}]}, {}, 400, "inputs.z"),
    ({"inputs": [{**tensors()["inputs"][0], "datatype": "FP64"}, tensors()["inputs"][1]]}, {}, 400, "FP32"),
    ({"inputs": [{**tensors()["inputs"][0], "shape": [2, 1]}, tensors()["inputs"][1]]}, {}, 400, "does not fit"),
    ({"inputs": [tensors(2)["inputs"][0], tensors(1)["inputs"][1]]}, {}, 400, "rows"),
    (
        {"inputs": [{"name": "numeric", "datatype": "FP32", "shape": [1, 10_000], "data": [0] * 10_000}, tensors()["inputs"][1]]},
        {}, 400, "does not fit",
    ),
    (tensors(outputs=[{"name": "nope"}]), {}, 400, "outputs.nope"),
    (tensors(parameters={"unit": []}), {}, 400, "parameters.unit"),
    (tensors(parameters={"unit": True}), {}, 400, "parameters.unit"),
    ({"inputs": [], "parameters": {"entities": [{"a": 1}]}}, {}, 400, "no online store"),
    (tensors(), {"Inference-Header-Content-Length": "x"}, 400, "Inference-Header"),
    (tensors(), {"Inference-Header-Content-Length": "9999"}, 400, "Inference-Header"),
    (tensors(), {"Content-Encoding": "br"}, 400, "Content-Encoding"),
    (tensors(), {"Content-Encoding": "gzip"}, 400, "gzip"),
    (gzip.compress(json.dumps(tensors()).encode())[:-9], {"Content-Encoding": "gzip"}, 400, "cut off"),
    (gzip.compress(b" " * (2 << 20)), {"Content-Encoding": "gzip"}, 413, "unpacks"),
    (b"x" * ((1 << 20) + 1), {}, 413, "body"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "status", "words"), BAD)
async def test_bad_input_is_a_4xx_that_names_the_field(
    served_model: ServedModel, body: dict[str, Any] | bytes, headers: dict[str, str], status: int, words: str
):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await served_model.client.post("/infer", content=content, headers=headers)
    assert response.status_code == status
    assert words in response.json()["error"]
    assert served_model.log.payloads == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/infer", 405), ("POST", "/ready", 405), ("GET", "/nope", 404), ("POST", "/versions/x/infer", 404),
     ("GET", "/versions/1/infer", 405), ("DELETE", "", 405), ("POST", "/versions/1/ready", 405)],
)  # fmt: skip
async def test_unknown_routes_and_methods_are_told_so(
    served_model: ServedModel, method: str, path: str, status: int
):
    response = await served_model.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]


async def test_a_chunked_body_beyond_the_bound_is_cut_off(served_model: ServedModel):
    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * 65_536

    response = await served_model.client.post("/infer", content=endless())
    assert response.status_code == 413


async def test_values_that_the_model_refuses_are_the_callers_fault(served_model: ServedModel):
    scorer: Any = served_model.engine.routes.champion
    scorer._scorer.fail = "values"
    response = await served_model.infer()
    assert response.status_code == 400
    assert "a number is too large" in response.json()["error"]


async def test_a_fault_of_ours_is_a_500_with_an_incident_and_no_details(served_model: ServedModel):
    scorer: Any = served_model.engine.routes.champion
    scorer._scorer.fail = "predict"
    response = await served_model.infer()
    assert response.status_code == 500
    assert "incident" in response.json()["error"]
    assert "memory" not in response.text


async def test_a_full_log_does_not_stop_answers_and_is_counted(served_model: ServedModel):
    from toque.functions.prediction_log import LogFullError

    class Full:
        def append(self, payload: bytes) -> int:
            raise LogFullError(f"{len(payload)} bytes are beyond the bound")

        extend = append

    served_model.predictor.recorder = Recorder("late", Full())
    assert (await served_model.infer()).status_code == 200
    counts = served_model.predictor.describe()["log"]
    assert (counts["written"], counts["dropped"]) == (0, 1)


async def test_no_rows_are_answered_with_no_rows_and_not_logged(served_model: ServedModel):
    response = await served_model.infer(tensors(0))
    assert response.status_code == 200
    assert response.json()["outputs"][0]["shape"] == [0, 1]
    assert served_model.log.payloads == []


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANY = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3)
)
DATA = st.lists(SCALARS, max_size=4) | ANY
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["numeric", "categorical", "x"])},
    optional={
        "datatype": st.sampled_from(["FP32", "BYTES", "INT64", "BF16"]) | ANY,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | ANY,
        "data": DATA,
        "parameters": ANY,
    },
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["carrier", "wind", ""]), SCALARS, max_size=2), max_size=2)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "unit": ANY,
        "entities": ROWS | ANY,
        "request": ROWS | ANY,
        "at": ANY,
        "binary_data_output": ANY,
    },
)
BODY = st.fixed_dictionaries(
    {}, optional={"inputs": st.lists(TENSOR, max_size=2) | ANY, "id": ANY, "parameters": PARAMETERS | ANY, "outputs": ANY}
)  # fmt: skip


PATHS = st.sampled_from(["/infer", "/versions/1/infer", "/versions/0/infer"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODY | ANY, PATHS)
async def test_no_document_makes_a_5xx(served_model: ServedModel, body: Any, path: str):
    await answered_without_fault(served_model, body, path)


@pytest.mark.proof
@settings(max_examples=2_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODY | ANY, PATHS)
async def test_none_of_two_thousand_documents_makes_a_5xx(served_model: ServedModel, body: Any, path: str):
    await answered_without_fault(served_model, body, path)


async def answered_without_fault(served_model: ServedModel, body: Any, path: str) -> None:
    content = json.dumps(body).encode("utf-8", "replace")
    response = await served_model.client.post(path, content=content)
    assert response.status_code < 500, response.text
    assert isinstance(orjson.loads(response.content), dict)


async def test_trace_context_and_request_id_are_echoed_with_answers_and_refusals(served_model: ServedModel):
    sent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1",
            "x-request-id": "q-1"}  # fmt: skip
    for content, status in ((json.dumps(tensors()), 200), ("{", 400)):
        response = await served_model.client.post("/infer", content=content, headers=sent)
        assert response.status_code == status
        assert {name: response.headers[name] for name in sent} == sent


@pytest.mark.parametrize("by", ["header", "parameter"])
async def test_an_answer_that_would_come_after_the_deadline_is_a_504(served_model: ServedModel, by: str):
    release = threading.Event()
    version: Any = served_model.engine.routes.champion
    version._scorer.predict = lambda _: release.wait(60)
    version.example_ms = 100.0  # so it answers in a thread
    try:
        headers = {"X-Request-Timeout-Ms": "50"} if by == "header" else {}
        body = tensors(parameters={"timeout": 50_000}) if by == "parameter" else tensors()
        response = await served_model.client.post("/infer", json=body, headers=headers)
        assert response.status_code == 504
        assert response.json()["error"].startswith("deadline:")
    finally:
        release.set()


@pytest.mark.parametrize(
    ("headers", "parameters", "words"),
    [({"X-Request-Timeout-Ms": "soon"}, {}, "X-Request-Timeout-Ms"), ({"X-Request-Timeout-Ms": "0"}, {}, "> 0"),
     ({}, {"timeout": -1}, "parameters.timeout"), ({}, {"timeout": True}, "parameters.timeout")],
)  # fmt: skip
async def test_a_deadline_that_is_none_is_refused(
    served_model: ServedModel, headers: dict[str, str], parameters: dict[str, Any], words: str
):
    response = await served_model.client.post("/infer", json=tensors(parameters=parameters), headers=headers)
    assert response.status_code == 400
    assert words in response.json()["error"]


async def test_a_deadline_far_off_changes_nothing(served_model: ServedModel):
    headers = {"X-Request-Timeout-Ms": "60000"}
    response = await served_model.client.post(
        "/infer", json=tensors(parameters={"timeout": 0}), headers=headers
    )
    assert response.status_code == 200
