"""Failed answers in the log: what a rollout counts as a version's errors."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tests.ray_apps.predictor.conftest import MemoryLog, ServedModel, tensors
from toque.functions.evaluation.realised_loss import score
from toque.functions.prediction_log.records import LABELS
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.ray_apps.predictor.inference.recording import MAX_FAILURES, Failure, Recorder


def logged(served_model: ServedModel) -> list[dict[str, Any]]:
    served_model.predictor.recorder.flush()
    return (
        prediction_columns(served_model.log.payloads)["late"].to_pylist() if served_model.log.payloads else []
    )


def fail(served_model: ServedModel, how: str = "predict") -> None:
    champion: Any = served_model.engine.routes.champion
    champion._scorer.fail = how


async def test_a_request_that_the_version_fails_is_logged_without_outputs(served_model: ServedModel):
    fail(served_model)
    response = await served_model.infer(tensors(3, id="f", parameters={"unit": "N1"}))
    assert response.status_code == 500
    rows = logged(served_model)
    assert [row["prediction_id"] for row in rows] == ["f:0", "f:1", "f:2"]
    assert {(row["version"], row["arm"], row["unit"], row["shadow"]) for row in rows} == {
        (1, "champion", "N1", False)
    }
    assert {(row["outputs"], row["numeric"]) for row in rows} == {(None, None)}
    assert served_model.predictor.describe()["log"]["failures"] == 1


async def test_the_answer_does_not_wait_for_the_record_of_its_failure(served_model: ServedModel):
    fail(served_model)
    await served_model.infer()
    assert served_model.log.payloads == []
    assert len(logged(served_model)) == 1


async def test_a_request_without_a_chosen_version_is_no_failure(served_model: ServedModel):
    await served_model.client.post("/infer", content=b"{")
    served_model.client.headers.pop("authorization")
    await served_model.infer()
    assert logged(served_model) == []


async def test_a_failed_request_by_number_is_no_evidence_against_the_version(served_model: ServedModel):
    fail(served_model)
    assert (await served_model.infer(path="/versions/1/infer")).status_code == 500
    assert logged(served_model) == []


async def test_a_shadow_that_fails_is_logged_as_one(served_model: ServedModel):
    shadow = served_model.version(0.5)
    served_model.registry.set_traffic("late", {}, shadows=[shadow])
    served_model.refresh()
    found: Any = served_model.engine.find(shadow)
    found._scorer.fail = "predict"
    await served_model.infer(tensors(2, id="s"))
    await served_model.predictor.shadows.drained()
    rows = [row for row in logged(served_model) if row["shadow"]]
    assert [(row["prediction_id"], row["version"], row["outputs"]) for row in rows] == [
        ("s:0", shadow, None),
        ("s:1", shadow, None),
    ]


async def test_the_rollouts_scoring_reads_them_as_not_answered(served_model: ServedModel):
    await served_model.infer(tensors(id="good"))
    fail(served_model)
    await served_model.infer(tensors(id="bad"))
    served_model.predictor.recorder.flush()
    rows = prediction_columns(served_model.log.payloads)["late"]
    scored = score(rows.append_column("label", pa.nulls(len(rows), LABELS.field("label").type)))
    assert dict(zip(scored.id, scored.answered, strict=True)) == {"good": True, "bad": False}


async def test_a_flood_of_failures_is_bounded_and_counted():
    log = MemoryLog()
    recorder = Recorder("late", log)
    for i in range(MAX_FAILURES + 5):
        recorder.fail(Failure(str(i), 1, "champion", shadow=False, unit=None, at_us=0, latency_ms=1.0))
    recorder.flush()
    assert len(log.payloads) == MAX_FAILURES
    assert recorder.describe() == {
        "written": MAX_FAILURES,
        "dropped": 0,
        "failures": MAX_FAILURES,
        "failures_dropped": 5,
        "unconfirmed": 0,
        "refused": 0,
    }
