"""Policies for missing features: pass, default, reject, abstain, and how responses report them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.ray_apps.predictor.conftest import SIGNATURE, ServedModel
from tests.ray_apps.predictor.inference import test_keys
from tests.ray_apps.predictor.inference.test_keys import keyed
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.ray_apps.predictor.versions.missing_features import (
    MissingFeaturesPolicy,
    PolicyError,
    predict_abstaining,
)

by_key = test_keys.by_key
__all__ = ["by_key"]

WHOLE = {"origin": "JFK", "tailnum": "N1"}
GAPS = {"origin": "LGA", "tailnum": "N9"}  # its wind has expired, its carrier is unknown
VALUES = {"distance": 3.0}


def serve(served_model: ServedModel, action: str, **tags: str) -> None:
    tags = {"feature_service": "late", "missing_features": action, **tags}
    served_model.registry.promote("late", served_model.version(tags=tags))
    served_model.refresh()


async def ask(served_model: ServedModel) -> dict[str, Any]:
    response = await served_model.infer(keyed(WHOLE, GAPS, request=[VALUES, VALUES]))
    assert response.status_code == 200, response.text
    return response.json()


async def test_by_default_the_model_sees_the_gap_and_the_answer_names_it(by_key: ServedModel):
    answer = await ask(by_key)
    assert answer["parameters"] == {
        "arm": "champion",
        "missing": [[], ["wind", "carrier"]],
        "missing_policy": "pass",
    }


async def test_nothing_missing_nothing_said_of_a_policy(by_key: ServedModel):
    serve(by_key, "abstain")
    answer = (await by_key.infer(keyed(WHOLE, request=[VALUES]))).json()
    assert answer["parameters"] == {"arm": "champion", "missing": [[]]}


async def test_default_values_stand_in_and_are_logged_as_used(by_key: ServedModel):
    serve(by_key, "default", missing_defaults=json.dumps({"wind": 5, "carrier": "none"}))
    answer = await ask(by_key)
    assert answer["outputs"][0]["data"] == [pytest.approx(0.26), pytest.approx(0.258)]
    assert answer["parameters"]["missing"] == [[], ["wind", "carrier"]]
    assert answer["parameters"]["missing_policy"] == "default"
    row = prediction_columns(by_key.log.payloads)["late"].to_pylist()[1]
    assert (row["numeric"], row["categorical"]) == ([3.0, 5.0], ["none"])
    assert row["missing"] == ["wind", "carrier"]


async def test_an_abstaining_model_does_not_see_the_row_and_answers_the_others(by_key: ServedModel):
    serve(by_key, "abstain")
    seen = by_key.engine.routes.champion._scorer.seen  # type: ignore[union-attr]
    seen.clear()
    answer = await ask(by_key)
    assert answer["outputs"][0]["data"] == [pytest.approx(0.26), None]
    assert answer["parameters"]["abstained"] == [1]
    assert answer["parameters"]["missing_policy"] == "abstain"
    assert [len(inputs["numeric"]) for inputs in seen] == [1]
    seen.clear()
    answer = (await by_key.infer(keyed(GAPS))).json()
    assert answer["outputs"][0] == {
        "name": "probability",
        "datatype": "FP32",
        "shape": [1, 1],
        "data": [None],
    }
    assert seen == []


@pytest.mark.parametrize(
    ("action", "status", "values"),
    [
        ("pass", 503, None),
        ("reject", 503, None),
        ("abstain", 200, [None]),
        ("default", 200, [pytest.approx(0.26)]),
    ],
)
async def test_without_redis_keys_follow_the_policy(
    by_key: ServedModel, redis_server: Any, action: str, status: int, values: list[float] | None
):
    tags = {"missing_defaults": '{"wind": 7}'} if action == "default" else {}
    serve(by_key, action, **tags)
    redis_server.kill()
    try:
        response = await by_key.infer(keyed(WHOLE, request=[VALUES]))
        assert response.status_code == status
        if values is not None:
            assert response.json()["outputs"][0]["data"] == values
            assert response.json()["parameters"]["missing"] == [["wind", "carrier"]]
    finally:
        redis_server.start()


async def test_a_shadow_follows_its_own_policy(by_key: ServedModel):
    tags = {"feature_service": "late", "missing_features": "default", "missing_defaults": '{"wind": 9}'}
    shadow = by_key.version(0.5, tags=tags)
    by_key.registry.set_traffic("late", {}, shadows=[shadow])
    by_key.refresh()
    await by_key.infer(keyed(GAPS, request=[VALUES]))
    await by_key.predictor.shadows.drained()
    champion, other = prediction_columns(by_key.log.payloads)["late"].to_pylist()
    assert np.isnan(champion["numeric"]).tolist() == [False, True]
    assert (other["version"], other["numeric"]) == (shadow, [3.0, 9.0])


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"missing_features": "guess"}, "use one of pass, default, reject, abstain"),
        ({"missing_features": "default"}, "missing_defaults"),
        ({"missing_features": "default", "missing_defaults": "{}"}, "JSON object"),
        ({"missing_features": "default", "missing_defaults": '{"height": 1}'}, "no column 'height'"),
        ({"missing_features": "default", "missing_defaults": '{"wind": "strong"}'}, "'wind' takes a number"),
        ({"missing_features": "default", "missing_defaults": '{"wind": true}'}, "'wind' takes a number"),
        ({"missing_features": "default", "missing_defaults": '{"carrier": 1}'}, "'carrier' takes a text"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused(tags: dict[str, str], words: str):
    with pytest.raises(PolicyError, match=words):
        MissingFeaturesPolicy.of(tags, SIGNATURE)


def test_a_model_that_cannot_say_nothing_may_not_abstain():
    outputs = [SIGNATURE.outputs[0].model_copy(update={"datatype": "INT64"})]
    with pytest.raises(PolicyError, match="floating point"):
        MissingFeaturesPolicy.of(
            {"missing_features": "abstain"}, SIGNATURE.model_copy(update={"outputs": outputs})
        )


async def test_a_version_with_such_a_tag_takes_no_traffic(by_key: ServedModel):
    by_key.registry.promote("late", by_key.version(tags={"missing_features": "guess"}))
    by_key.refresh()
    assert "missing_features='guess'" in by_key.engine.failures[2]
    assert (await by_key.infer()).json()["model_version"] == "1"


def test_abstained_rows_are_nan_and_the_others_in_their_places():
    inputs = {"numeric": np.arange(8, dtype=np.float32).reshape(4, 2)}

    def total(given: Any) -> dict[str, np.ndarray]:
        return {"probability": given["numeric"].sum(axis=1, keepdims=True)}

    outputs = predict_abstaining(total, inputs, [0, 2], SIGNATURE)
    assert np.array_equal(outputs["probability"], [[np.nan], [5], [np.nan], [13]], equal_nan=True)
