"""Requests by key against the real feature store and a real redis-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.conditions.values import ROUNDS_TO_LARGEST_FLOAT32
from tests.ray_apps.predictor.conftest import ServedModel
from toque.featurestore import (
    BatchSource,
    Bool,
    CsvFiles,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Int64,
    OnDemandFeatureView,
    RequestSource,
    String,
)
from toque.functions.prediction_log.writing.columns import prediction_columns
from toque.ray_apps.predictor.inference.keys import ServiceRefresher

NOW = datetime(2013, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
async def by_key(
    make_served_model: Callable[..., ServedModel], redis_server: Any
) -> AsyncIterator[ServedModel]:
    """`wind` of an airport and `carrier` of a plane from Redis, `distance` from the request."""
    made = make_served_model()
    features = FeatureStore(made.registry.store, redis_url=redis_server.url, clock=lambda: NOW)
    airport, plane = Entity("origin", join_keys=["origin"]), Entity("tailnum", join_keys=["tailnum"])
    weather = FeatureView(
        "weather", entities=[airport], schema=[Field("wind", Float64)], ttl=timedelta(hours=3)
    )
    planes = FeatureView("planes", entities=[plane], schema=[Field("carrier", String)], ttl=None)
    features.apply([airport, plane, weather, planes, FeatureService("late", features=[weather, planes])])
    features.push("weather", rows("origin", ["JFK", "LGA"], "wind", [7.0, 9.0], [1, 10]), to="online")
    features.push("planes", rows("tailnum", ["N1"], "carrier", ["UA"], [100]), to="online")
    made.predictor._features = features
    made.predictor._services = ServiceRefresher(features)
    made.registry.promote("late", made.version(tags={"feature_service": "late"}))
    made.refresh()
    yield made
    await made.predictor.close()
    await made.client.aclose()


def rows(key: str, keys: list[str], name: str, values: list[Any], hours_ago: list[int]) -> pa.Table:
    times = pa.array([NOW - timedelta(hours=h) for h in hours_ago], pa.timestamp("us", tz="UTC"))
    return pa.table({key: keys, name: values, "event_timestamp": times})


def keyed(*entities: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    return {"inputs": [], "parameters": {"entities": list(entities), **parameters}}


async def test_features_are_fetched_laid_out_and_logged_as_used(by_key: ServedModel):
    body = keyed({"origin": "JFK", "tailnum": "N1"}, request=[{"distance": 3.0}], unit="N1")
    answer = (await by_key.infer({**body, "id": "p1"})).json()
    assert answer["outputs"][0]["data"] == [pytest.approx(0.25 + 0.001 * 10)]
    assert answer["parameters"] == {"arm": "champion", "missing": [[]]}
    (row,) = prediction_columns(by_key.log.payloads)["late"].to_pylist()
    assert row["numeric"] == [3.0, 7.0]
    assert row["categorical"] == ["UA"]
    assert row["missing"] == []
    assert row["entities"] == '{"origin": "JFK", "tailnum": "N1"}'


async def test_missing_and_expired_features_are_nan_and_are_named(by_key: ServedModel):
    body = keyed({"origin": "LGA", "tailnum": "N1"}, {"origin": "JFK", "tailnum": "N9"})
    answer = (await by_key.infer(body)).json()
    assert answer["parameters"]["missing"] == [["distance", "wind"], ["distance", "carrier"]]
    first, second = prediction_columns(by_key.log.payloads)["late"].to_pylist()
    assert np.isnan(first["numeric"]).tolist() == [True, True]
    assert (first["categorical"], second["categorical"]) == (["UA"], [None])
    assert (first["missing"], second["missing"]) == (["distance", "wind"], ["distance", "carrier"])


async def test_a_model_may_reject_what_is_missing(by_key: ServedModel):
    tags = {"feature_service": "late", "missing_features": "reject"}
    by_key.registry.promote("late", by_key.version(tags=tags))
    by_key.refresh()
    response = await by_key.infer(keyed({"origin": "LGA", "tailnum": "N1"}))
    assert response.status_code == 400
    assert "distance" in response.json()["error"]
    complete = keyed({"origin": "JFK", "tailnum": "N1"}, request=[{"distance": 1}])
    assert (await by_key.infer(complete)).status_code == 200


async def test_request_values_go_before_stored_ones(by_key: ServedModel):
    body = keyed({"origin": "JFK", "tailnum": "N1"}, request=[{"distance": 1.0, "wind": 2.0}])
    assert (await by_key.infer(body)).json()["outputs"][0]["data"] == [pytest.approx(0.253)]


async def test_redis_away_tensors_still_answer_and_keys_are_told(by_key: ServedModel, redis_server: Any):
    redis_server.kill()
    assert (await by_key.infer()).status_code == 200
    response = await by_key.infer(keyed({"origin": "JFK", "tailnum": "N1"}))
    assert response.status_code == 503
    assert "online store" in response.json()["error"]
    redis_server.start()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (keyed(), "entities"),
        ({"parameters": {"entities": {}}}, "entities"),
        ({"parameters": {"entities": [3]}}, r"entities[0]"),
        (keyed({"origin": "JFK"}), "tailnum"),
        (keyed({"origin": ["JFK"], "tailnum": "N1"}), "origin"),
        (keyed({"origin": True, "tailnum": "N1"}), "origin"),
        (keyed({"origin": 2**63, "tailnum": "N1"}), "64 bits"),
        (keyed({"origin": 5, "tailnum": "N1"}), "origin"),
        (keyed({"origin": "JFK", "tailnum": "N1"}, request=[]), "request"),
        (keyed({"origin": "JFK", "tailnum": "N1"}, request=[{}, {}]), "request"),
        (keyed({"origin": "JFK", "tailnum": "N1"}, request=[{"distance": "far"}]), "distance"),
        (keyed({"origin": "JFK", "tailnum": "N1"}, request=[{"distance": [1]}]), "distance"),
        (keyed({"origin": "JFK", "tailnum": "N1"}, at="2013-05-01T12:00:00+00:00"), "replay clock"),
    ],
)
async def test_bad_keys_are_a_400_that_names_the_field(by_key: ServedModel, body: dict[str, Any], words: str):
    response = await by_key.infer(body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]


async def test_a_value_that_an_on_demand_view_refuses_is_the_callers_fault(by_key: ServedModel):
    features = by_key.predictor._features
    sent = RequestSource("sent", [Field("at", Float64)])
    hour = OnDemandFeatureView("hour", [sent], [Field("distance", Float64)], hour_of)
    features.apply([hour, FeatureService("hours", features=[*features.list_feature_views(), hour])])
    by_key.registry.promote("late", by_key.version(tags={"feature_service": "hours"}))
    by_key.refresh()
    entity = {"origin": "JFK", "tailnum": "N1"}
    assert (await by_key.infer(keyed(entity, request=[{"at": 7_200}]))).status_code == 200
    refused = await by_key.infer(keyed(entity, request=[{"at": 1e18}]))
    assert refused.status_code == 400, refused.text
    assert "on-demand feature view 'hour' fails on its inputs" in refused.json()["error"]


def hour_of(inputs: Any) -> Any:
    return {"distance": [float(datetime.fromtimestamp(at, UTC).hour) for at in inputs["at"].tolist()]}


async def test_tensors_and_keys_together_are_refused(by_key: ServedModel):
    from tests.ray_apps.predictor.conftest import tensors

    response = await by_key.infer(tensors(parameters={"entities": [{"origin": "JFK", "tailnum": "N1"}]}))
    assert response.status_code == 400
    assert "not both" in response.json()["error"]


async def test_on_a_replayed_platform_a_request_says_its_moment(by_key: ServedModel):
    by_key.predictor._replay = True
    at = NOW - timedelta(hours=9)
    response = await by_key.infer(keyed({"origin": "LGA", "tailnum": "N1"}, at=at.isoformat()))
    assert response.json()["parameters"]["missing"] == [["distance"]]
    (row,) = prediction_columns(by_key.log.payloads)["late"].to_pylist()
    assert row["predicted_at"] == at
    assert row["numeric"][1] == 9.0
    for wrong in ("yesterday", "2013-05-01T12:00:00", 7):
        response = await by_key.infer(keyed({"origin": "LGA", "tailnum": "N1"}, at=wrong))
        assert response.status_code == 400
        assert "parameters.at" in response.json()["error"]


async def test_a_shadow_with_features_of_its_own_looks_them_up(by_key: ServedModel):
    shadow = by_key.version(0.5, tags={"feature_service": "late", "missing_features": "reject"})
    by_key.registry.set_traffic("late", {}, shadows=[shadow])
    by_key.refresh()
    await by_key.infer(keyed({"origin": "JFK", "tailnum": "N1"}, request=[{"distance": 1.0}]))
    await by_key.predictor.shadows.drained()
    rows_logged = prediction_columns(by_key.log.payloads)["late"].to_pylist()
    assert [row["version"] for row in rows_logged] == [1, shadow]
    assert rows_logged[0]["categorical"] == rows_logged[1]["categorical"]


KEYS = {"origin": "JFK", "tailnum": "N1"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (keyed(KEYS, request=[{"distanc": 1.0}]), "parameters.request[0].distanc: no such name; did you mean 'distance'?"),
        (keyed(KEYS, request=[{"Distance": 1.0}]), "did you mean 'distance'?"),
        (keyed(KEYS, KEYS, request=[{"distance": 1.0}, {"distance ": 1.0}]), "parameters.request[1].distance "),
        (keyed(KEYS, request=[{"距離": None}]), "parameters.request[0].距離: no such name"),
        (keyed(KEYS, request=[{"": 1.0}]), "parameters.request[0].: no such name"),
        (keyed({**KEYS, "tail": "N1"}), "parameters.entities[0].tail: no such name; did you mean 'tailnum'?"),
        ({"parameters": {"request": [{"distanc": 1.0}]}}, "did you mean 'distance'?"),
        ({"parameters": {"request": [{"tailnum": "N1"}]}}, "give the keys as parameters.entities"),
    ],
)  # fmt: skip
async def test_a_name_that_no_version_knows_is_a_400_with_the_nearest(
    by_key: ServedModel, body: dict[str, Any], words: str
):
    response = await by_key.infer(body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]


@pytest.mark.parametrize("place", ["champion", "arm", "shadow"])
async def test_a_name_that_another_version_of_the_traffic_knows_is_taken(by_key: ServedModel, place: str):
    sent = RequestSource("sent", [Field("gust", Float64)])
    gusts = OnDemandFeatureView("gusts", [sent], [Field("distance", Float64)], distance_of)
    features = by_key.predictor._features
    features.apply([gusts, FeatureService("gusty", features=[*features.list_feature_views(), gusts])])
    other = by_key.version(0.5, tags={"feature_service": "gusty"})
    body = keyed(KEYS, request=[{"gust": 3.0}])
    assert (await by_key.infer(body)).status_code == 400
    if place == "champion":
        by_key.registry.promote("late", other)
    else:
        arms, shadows = ({"canary": (other, 0.01)}, []) if place == "arm" else ({}, [other])
        by_key.registry.set_traffic("late", arms, shadows=shadows)
    by_key.refresh()
    for unit in range(20):
        assert (await by_key.infer({**body, "id": f"{unit}"})).status_code == 200
    assert (await by_key.infer(keyed(KEYS, request=[{"gusts": 3.0}]))).status_code == 400


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e39, "1e+39 is out of the range of FP32; send null"),
        (-3.4028236e38, "-3.4028236e+38 is out of the range of FP32"),
        (True, "needs a number, got True; send 1 for true and 0 for false"),
        (False, "needs a number, got False"),
    ],
)
async def test_a_value_that_the_models_tensor_does_not_hold_is_named(
    by_key: ServedModel, value: Any, said: str, *, alone: bool
):
    rows = [{"distance": 3.0, "carrier": "UA"}, {"distance": None, "wind": value}]
    body = {"parameters": {"request": rows}} if alone else keyed(KEYS, KEYS, request=rows)
    response = await by_key.infer(body)
    assert response.status_code == 400, response.text
    assert f"parameters.request[1].wind: {said}" in response.json()["error"]
    rows[1]["wind"] = ROUNDS_TO_LARGEST_FLOAT32
    assert (await by_key.infer(body)).status_code == 200


async def test_a_stored_value_beyond_the_models_tensor_is_infinite_as_in_a_training_set(by_key: ServedModel):
    features = by_key.predictor._features
    features.push("weather", rows("origin", ["EWR"], "wind", [-1e39], [1]), to="online")
    body = keyed({**KEYS, "origin": "EWR"}, request=[{"distance": 1.0}])
    assert (await by_key.infer(body)).status_code == 200
    (row,) = prediction_columns(by_key.log.payloads)["late"].to_pylist()
    assert row["numeric"] == [1.0, -np.inf]


async def test_true_and_false_are_values_of_a_column_that_is_declared_so(by_key: ServedModel):
    features = by_key.predictor._features
    flight = Entity("flight", join_keys=[Field("number", Int64)])
    view = FeatureView("flags", [flight], [Field("wind", Bool), Field("carrier", Bool)])
    features.apply([flight, view, FeatureService("flagged", features=[view])])
    times = pa.array([NOW], pa.timestamp("us", tz="UTC"))
    stored = {"number": [7], "wind": [True], "carrier": [False], "event_timestamp": times}
    features.push("flags", pa.table(stored), to="online")
    by_key.registry.promote("late", by_key.version(tags={"feature_service": "flagged"}))
    by_key.refresh()
    for request, numbers, texts in (
        ({"distance": 1.0}, [1.0, 1.0], ["false"]),
        ({"distance": 1.0, "wind": False, "carrier": True}, [1.0, 0.0], ["true"]),
    ):
        by_key.log.payloads.clear()
        assert (await by_key.infer(keyed({"number": 7}, request=[request]))).status_code == 200
        (row,) = prediction_columns(by_key.log.payloads)["late"].to_pylist()
        assert (row["numeric"], row["categorical"]) == (numbers, texts)
    assert (await by_key.infer(keyed({"number": 7}, request=[{"distance": True}]))).status_code == 400


def distance_of(inputs: Any) -> Any:
    return {"distance": inputs["gust"]}


async def test_columns_alone_are_answered_without_keys_and_without_a_store(
    by_key: ServedModel, redis_server: Any
):
    body = {"parameters": {"request": [{"distance": 3.0, "wind": 7.0, "carrier": "UA"}, {"wind": 1.0}]}}
    redis_server.kill()
    for features in (by_key.predictor._features, None):
        by_key.predictor._features, by_key.predictor._services = features, ServiceRefresher(features)
        answer = (await by_key.infer(body)).json()
        assert answer["outputs"][0]["data"] == [pytest.approx(0.26), pytest.approx(0.251)]
        assert answer["parameters"]["missing"] == [[], ["distance", "carrier"]]
    redis_server.start()


@pytest.fixture
def file_names(by_key: ServedModel) -> ServedModel:
    """A model whose columns have other names in the file that they come from."""
    flight = Entity("flight", join_keys=[Field("number", Int64)])
    fields = [Field("distance", Float64), Field("wind", Float64), Field("carrier", String)]
    named = {"number": "vol n°", "distance": "Entfernung (km)", "wind": "風速", "carrier": "wind"}
    source = BatchSource("flights", CsvFiles("/none.csv"), [*flight.keys, *fields], columns=named)
    view = FeatureView("flights", entities=[flight], schema=fields, events=source)
    features = by_key.predictor._features
    features.apply([flight, view, FeatureService("flights", features=[view])])
    times = pa.array([NOW - timedelta(hours=1)], pa.timestamp("us", tz="UTC"))
    stored = {"number": [7], "distance": [3.0], "wind": [7.0], "carrier": ["UA"], "event_timestamp": times}
    features.push("flights", pa.table(stored), to="online")
    by_key.registry.promote("late", by_key.version(tags={"feature_service": "flights"}))
    by_key.refresh()
    return by_key


async def test_a_files_own_names_are_accepted_and_logged_by_the_names_here(file_names: ServedModel):
    body = keyed({"vol n°": 7}, request=[{"Entfernung (km)": 1.0, "風速": 2.0}])
    assert (await file_names.infer(body)).json()["outputs"][0]["data"] == [pytest.approx(0.253)]
    (row,) = prediction_columns(file_names.log.payloads)["late"].to_pylist()
    assert (row["numeric"], row["entities"]) == ([1.0, 2.0], '{"number": 7}')
    alone = {"parameters": {"request": [{"Entfernung (km)": 4.0, "風速": 2.0, "carrier": "UA"}]}}
    assert (await file_names.infer(alone)).json()["outputs"][0]["data"] == [pytest.approx(0.256)]


async def test_a_name_of_both_is_the_one_here(file_names: ServedModel):
    answer = (await file_names.infer(keyed({"number": 7}, request=[{"wind": 9.0}]))).json()
    assert answer["outputs"][0]["data"] == [pytest.approx(0.262)]


@pytest.mark.parametrize("first", [True, False])
async def test_a_column_that_is_given_by_both_names_is_refused(file_names: ServedModel, *, first: bool):
    pairs = [("distance", 1.0), ("Entfernung (km)", 2.0)]
    row = dict(pairs if first else pairs[::-1])
    response = await file_names.infer(keyed({"number": 7}, request=[row]))
    assert response.status_code == 400
    assert "given twice" in response.json()["error"]
