"""Labels and feature rows."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from featurestore import Entity, FeatureView, Field, Float64, String
from functions.prediction_log.writing.columns import label_columns
from tests.ray_apps.gateway.conftest import Gateway

OBSERVED = "2026-02-28T23:00:00+00:00"


async def post(gateway: Gateway, path: str, body: Any, role: str = "operator") -> Any:
    return await gateway.client.post(path, headers=gateway.headers(role), json=body)


async def test_labels_are_durable_before_they_are_acknowledged(gateway: Gateway) -> None:
    body = [
        {"prediction_id": "p1", "label": 1, "observed_at": OBSERVED},
        {"prediction_id": "p2", "label": 0.0, "observed_at": "2026-02-28T18:00:00-05:00"},
        {"prediction_id": "p3", "label": 0.5},
    ]
    answer = await post(gateway, "/feedback", body, role="labeller")
    assert (answer.status_code, answer.json()) == (200, {"accepted": 3})
    rows = label_columns(gateway.labels["default"].payloads).to_pylist()
    assert [(row["prediction_id"], row["label"]) for row in rows] == [("p1", 1.0), ("p2", 0.0), ("p3", 0.5)]
    assert rows[0]["observed_at"] == rows[1]["observed_at"] == datetime.fromisoformat(OBSERVED)
    assert rows[2]["observed_at"] == rows[2]["received_at"] == gateway.context.clock()


async def test_a_label_from_the_future_is_refused_by_the_platforms_clock(gateway: Gateway) -> None:
    now = gateway.context.clock()
    ahead = {"prediction_id": "p", "label": 1, "observed_at": (now + timedelta(minutes=4)).isoformat()}
    assert (await post(gateway, "/feedback", [ahead])).status_code == 200
    gateway.labels["default"].payloads.clear()
    future = {"prediction_id": "p", "label": 0, "observed_at": "9999-01-01T00:00:00+00:00"}
    answer = await post(gateway, "/feedback", [ahead, future])
    assert answer.status_code == 409  # it fits the schema
    assert answer.json()["errors"][0]["field"] == "body.1.observed_at"
    assert "lies in the future" in answer.json()["detail"]
    assert gateway.labels["default"].payloads == []


async def test_no_labels_write_nothing(gateway: Gateway) -> None:
    assert (await post(gateway, "/feedback", [])).json() == {"accepted": 0}
    assert gateway.labels["default"].payloads == []


@pytest.mark.parametrize(
    ("one", "field"),
    [
        ({"prediction_id": "p", "label": 1, "observed_at": "2026-02-28T23:00:00"}, "observed_at"),
        ({"prediction_id": "p", "label": 1, "observed_at": 1772319600}, "observed_at"),
        ({"prediction_id": "p", "label": "late"}, "label"),
        ({"prediction_id": "p", "label": "1"}, "label"),
        ({"prediction_id": "p", "label": True}, "label"),
        ({"prediction_id": "", "label": 1}, "prediction_id"),
        ({"label": 1}, "prediction_id"),
        ({"prediction_id": "p", "label": None}, "label"),
        ({"prediction_id": "p", "label": 1, "lable": 1}, "lable"),
    ],
)
async def test_a_bad_label_is_refused_with_all_that_came_with_it(
    gateway: Gateway, one: dict[str, Any], field: str
) -> None:
    answer = await post(gateway, "/feedback", [{"prediction_id": "good", "label": 1}, one])
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == f"body.1.{field}"
    assert gateway.labels["default"].payloads == []


@pytest.fixture
def weather(gateway: Gateway) -> FeatureView:
    view = FeatureView(
        "weather",
        entities=[Entity("airport", join_keys=["airport"])],
        schema=[Field("wind", Float64), Field("sky", String)],
        ttl=timedelta(days=1),
    )
    gateway.context.features().apply([view])
    return view


async def test_rows_are_pushed_to_the_offline_table(gateway: Gateway, weather: FeatureView) -> None:
    rows = [
        {"airport": "JFK", "wind": 3.5, "sky": "clear", "event_timestamp": "2026-02-28T10:00:00Z"},
        {"airport": "LGA", "wind": None, "event_timestamp": "2026-02-28T11:00:00+01:00"},
    ]
    answer = await post(gateway, "/features/weather/push", {"rows": rows, "to": "offline"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["rows"] == 2
    stored = gateway.context.features().offline_table(weather).read().sort_by("airport").to_pylist()
    assert [(row["airport"], row["wind"], row["sky"]) for row in stored] == [
        ("JFK", 3.5, "clear"),
        ("LGA", None, None),
    ]
    assert {row["event_timestamp"] for row in stored} == {datetime(2026, 2, 28, 10, tzinfo=UTC)}


@pytest.mark.parametrize(
    ("status", "row", "told"),
    [
        (422, {"airport": "JFK", "wind": 1.0, "event_timestamp": "yesterday"}, "rows.0.event_timestamp"),
        (422, {"airport": "JFK", "wind": 1.0, "event_timestamp": "2026-02-28T10:00:00"}, "timezone"),
        (422, {"airport": "JFK", "wind": 1.0}, "rows.0.event_timestamp"),
        (409, {"airport": "JFK", "wind": "strong", "event_timestamp": "2026-02-28T10:00:00Z"}, "wind"),
        (409, {"airport": "JFK", "wind": 10**30, "event_timestamp": "2026-02-28T10:00:00Z"}, "too large"),
        (409, {"wind": 1.0, "event_timestamp": "2026-02-28T10:00:00Z"}, "airport"),
    ],
)
async def test_a_bad_row_names_what_is_wrong(
    gateway: Gateway, weather: FeatureView, status: int, row: dict[str, Any], told: str
) -> None:
    answer = await post(gateway, "/features/weather/push", {"rows": [row], "to": "offline"})
    assert answer.status_code == status, answer.text
    assert told in answer.json()["detail"]


async def test_an_unknown_view_is_404_and_no_redis_is_503(gateway: Gateway, weather: FeatureView) -> None:
    row = {"airport": "JFK", "wind": 1.0, "sky": "clear", "event_timestamp": "2026-02-28T10:00:00Z"}
    assert (await post(gateway, "/features/none/push", {"rows": [row]})).status_code == 404
    answer = await post(gateway, "/features/weather/push", {"rows": [row], "to": "online"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
