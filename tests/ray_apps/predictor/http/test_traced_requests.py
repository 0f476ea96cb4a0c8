"""Requests at a model's endpoint: which have their stages in the log, and what identifies them in answers and log lines."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from tests.ray_apps.predictor.conftest import ServedModel
from toque.clusters.telemetry.logs import AccessLog
from toque.clusters.telemetry.tracing import Keeper, Tracing, use_tracing
from toque.functions.prediction_log.records import decode_prediction

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {
    "inputs": [
        {"name": "numeric", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
        {"name": "categorical", "datatype": "BYTES", "shape": [1, 1], "data": ["UA"]},
    ]
}


def last_record(served_model: ServedModel) -> dict[str, Any]:
    served_model.predictor.recorder.flush()
    return decode_prediction(served_model.log.payloads[-1])


async def test_a_kept_request_has_its_stages_in_the_log(served_model: ServedModel):
    with use_tracing(Tracing(Keeper(1.0, 60.0))):
        answer = await served_model.client.post("/infer", json=BODY)
    record = last_record(served_model)
    assert record["trace_id"] == record["id"] == answer.json()["id"]
    kept = json.loads(record["stages"])
    assert (kept["kept"], kept["parent"]) == ("sampled", None)
    assert [name for name, _ in kept["stages_us"]] == ["token", "read", "model"]


async def test_a_request_that_waited_for_its_batch_says_so(served_model: ServedModel):
    number = served_model.version(tags={"max_batch_rows": "4"})
    served_model.registry.promote("late", number)
    served_model.refresh()
    with use_tracing(Tracing(Keeper(1.0, 60.0))):
        assert (await served_model.client.post("/infer", json=BODY)).json()["model_version"] == str(number)
    stages = json.loads(last_record(served_model)["stages"])["stages_us"]
    assert [name for name, _ in stages] == ["token", "read", "queue", "model"]


async def test_a_callers_trace_is_in_the_log_and_its_failure_is_kept(served_model: ServedModel):
    version: Any = served_model.engine.routes.champion
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
    with use_tracing(Tracing(Keeper(0.0, 60.0))):
        await served_model.client.post("/infer", json=BODY, headers=headers)
        assert (last_record(served_model)["trace_id"], last_record(served_model)["stages"]) == (TRACE, None)
        version._scorer.fail = "predict"
        answer = await served_model.client.post("/infer", json=BODY, headers=headers)
    assert answer.status_code == 500
    failure = last_record(served_model)
    assert (failure["outputs"], failure["trace_id"]) == (None, TRACE)
    assert json.loads(failure["stages"])["kept"] == "failed"


async def test_without_tracing_records_have_no_trace(served_model: ServedModel):
    await served_model.client.post("/infer", json=BODY, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    assert last_record(served_model)["trace_id"] is None


async def test_a_refusal_can_be_named_and_is_found_in_the_access_log(
    served_model: ServedModel, caplog: pytest.LogCaptureFixture
):
    with use_tracing(Tracing(None, access=AccessLog(1.0))), caplog.at_level(logging.INFO, "toque.access"):
        refused = await served_model.client.post("/infer", content="{")
        answered = await served_model.client.post("/infer", json=BODY)
    assert refused.status_code == 400
    assert "x-request-id" not in answered.headers
    first, second = (record.fields for record in caplog.records)  # type: ignore[attr-defined]
    assert (first["status"], first["request_id"]) == (400, refused.headers["x-request-id"])
    assert (second["model"], second["prediction_id"]) == ("late", answered.json()["id"])
    assert not any(token in caplog.text for token in served_model.tokens.values())


async def test_behind_serve_the_id_of_a_request_is_left_to_it(served_model: ServedModel):
    transport: Any = served_model.client._transport
    transport.app.behind_serve = True
    for content, status in ((json.dumps(BODY), 200), ("{", 400)):
        for sent in ({}, {"x-request-id": "q-1"}):
            answer = await served_model.client.post("/infer", content=content, headers=sent)
            assert (answer.status_code, "x-request-id" in answer.headers) == (status, False)


async def test_a_head_is_answered_as_the_get_of_its_path(served_model: ServedModel):
    for path in ("", "/ready", "/none"):
        head, get = await served_model.client.head(path), await served_model.client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
