"""Labels and feature rows."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.ray_apps.gateway.conftest import Gateway
from tests.redis_server import RedisServer, running_redis
from toque.featurestore import (
    Decimal,
    Entity,
    FeatureView,
    Field,
    Float64,
    List,
    Map,
    Metric,
    String,
    UnixTimestamp,
    Vector,
    VectorIndex,
)
from toque.functions.prediction_log.writing.columns import label_columns

OBSERVED = "2026-02-28T23:00:00+00:00"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


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
        ({"prediction_id": "p", "label": {"text": 1}}, "label"),
        ({"prediction_id": "p", "label": {"text": "a", "at": 1}}, "label"),
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


@pytest.mark.parametrize("number", ["1e400", "-1e309", "1" + "0" * 400, "1" * 5_000, "[0.5, 1e999]"])
async def test_a_label_that_no_float_holds_is_refused(gateway: Gateway, number: str) -> None:
    body = f'[{{"prediction_id": "good", "label": 1}}, {{"prediction_id": "p", "label": {number}}}]'
    answer = await gateway.client.post("/feedback", headers=gateway.headers("labeller"), content=body)
    assert answer.status_code == 422, answer.text
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
        (409, {"airport": "JFK", "wind": True, "event_timestamp": "2026-02-28T10:00:00Z"}, "'wind'"),
        (409, {"wind": 1.0, "event_timestamp": "2026-02-28T10:00:00Z"}, "airport"),
    ],
)
async def test_a_bad_row_names_what_is_wrong(
    gateway: Gateway, weather: FeatureView, status: int, row: dict[str, Any], told: str
) -> None:
    answer = await post(gateway, "/features/weather/push", {"rows": [row], "to": "offline"})
    assert answer.status_code == status, answer.text
    assert told in answer.json()["detail"]


@pytest.mark.parametrize("number", ["1e400", "-1e309", "1" + "0" * 400 + ".5"])
@pytest.mark.parametrize(
    ("field", "value"), [("wind", "NUMBER"), ("gusts", "[0.5, NUMBER]"), ("shares", '{"a": NUMBER}')]
)
async def test_a_pushed_number_that_no_float_holds_is_named(
    gateway: Gateway, weather: FeatureView, number: str, field: str, value: str
) -> None:
    rows = '{"rows": [{"airport": "JFK", AT}, {"airport": "LGA", "FIELD": VALUE, AT}]}'
    for name, text in {
        "FIELD": field,
        "VALUE": value,
        "NUMBER": number,
        "AT": f'"event_timestamp": "{OBSERVED}"',
    }.items():
        rows = rows.replace(name, text)
    headers = gateway.headers("operator")
    answer = await gateway.client.post("/features/weather/push", headers=headers, content=rows)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert (error["field"], error["value"]) == (f"body.rows.1.{field}", number[:200])
    assert "beyond what a float64 holds" in error["message"]


async def test_an_unknown_view_is_404_and_no_redis_is_503(gateway: Gateway, weather: FeatureView) -> None:
    row = {"airport": "JFK", "wind": 1.0, "sky": "clear", "event_timestamp": "2026-02-28T10:00:00Z"}
    assert (await post(gateway, "/features/none/push", {"rows": [row]})).status_code == 404
    answer = await post(gateway, "/features/weather/push", {"rows": [row], "to": "online"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


async def test_vectors_maps_and_times_are_pushed_and_read(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer
) -> None:
    context = replace(gateway.context, redis_url=redis_server.url)
    monkeypatch.setattr(gateway.app.state.services, "context_of", lambda _: context)
    view = FeatureView(
        "documents",
        [Entity("doc")],
        [
            Field("v", Vector(2)),
            Field("words", List(String)),
            Field("shares", Map(Float64)),
            Field("price", Decimal(9, 2)),
            Field("seen", UnixTimestamp),
        ],
    )
    context.features().apply([view])
    row = {"doc": "a", "v": [0.5, 1], "words": ["x"], "shares": {"b": 1, "a": 0.5}, "price": "1.50"}
    row |= {"seen": "2026-02-28T10:00:00+01:00", "event_timestamp": "2026-02-28T10:00:00Z"}
    empty = {"doc": "b", "event_timestamp": "2026-02-28T10:00:00Z"}
    answer = await post(gateway, "/features/documents/push", {"rows": [row, empty]})
    assert answer.status_code == 200, answer.text
    body = {"features": [f"documents:{name}" for name in view.features], "rows": [{"doc": "a"}, {"doc": "c"}]}
    answer = await post(gateway, "/features/read", body, role="viewer")
    assert answer.status_code == 200, answer.text
    assert answer.json()["columns"] == {
        "v": [[0.5, 1.0], None],
        "words": [["x"], None],
        "shares": [{"a": 0.5, "b": 1.0}, None],
        "price": ["1.50", None],
        "seen": ["2026-02-28T09:00:00+00:00", None],
    }
    assert answer.json()["statuses"]["v"] == ["PRESENT", "NOT_FOUND"]
    wrong = await post(gateway, "/features/documents/push", {"rows": [row | {"v": [1.0]}]})
    assert wrong.status_code == 409
    assert "'v' (Vector(2)) has 1 numbers, not 2 in row 0" in wrong.json()["detail"]


async def test_a_label_may_be_a_list_of_names_or_numbers_or_a_text(gateway: Gateway) -> None:
    body = [
        {"prediction_id": "p1", "label": ["rain", "wind"]},
        {"prediction_id": "p2", "label": [0, 0.5]},
        {"prediction_id": "p3", "label": []},
        {"prediction_id": "p4", "label": 1},
        {"prediction_id": "p5", "label": {"text": "12 Oak Street"}},
    ]
    answer = await post(gateway, "/feedback", body, role="labeller")
    assert answer.json() == {"accepted": 5}
    rows = label_columns(gateway.labels["default"].payloads).to_pylist()
    assert [row["content"] for row in rows] == [
        '["rain", "wind"]', "[0.0, 0.5]", "[]", None, '"12 Oak Street"'
    ]  # fmt: skip
    mixed = await post(gateway, "/feedback", [{"prediction_id": "p", "label": ["rain", 1]}], role="labeller")
    assert (mixed.status_code, "names or of finite numbers" in mixed.text) == (422, True)


async def test_neighbours_are_found_by_vector_key_and_text(gateway: Gateway) -> None:
    features = gateway.context.features()
    index = VectorIndex("v", Metric.L2, text_model="letters")
    view = FeatureView(
        "letters", [Entity("doc")], [Field("v", Vector(2)), Field("lang", String)], indexes=[index]
    )
    features.apply([view])
    hour = gateway.context.clock() - timedelta(hours=1)
    rows = [
        {"doc": doc, "v": [x, 0.0], "lang": lang, "event_timestamp": hour}
        for doc, x, lang in [("a", 0.0, "de"), ("b", 1.0, "en"), ("c", 3.0, "de")]
    ]
    features.write_offline(view, rows)

    async def found(body: dict[str, Any]) -> list[tuple[str, float]]:
        answer = await post(gateway, "/features/letters/search", body, role="viewer")
        assert answer.status_code == 200, answer.text
        return [(row["key"]["doc"], row["distance"]) for row in answer.json()["found"]]

    assert await found({"vector": [0.2, 0], "k": 2}) == [("a", pytest.approx(0.2)), ("b", pytest.approx(0.8))]
    assert await found({"key": {"doc": "a"}, "where": {"lang": "de"}}) == [("c", 3.0)]
    assert await found({"vector": [0, 0], "at": (hour - timedelta(seconds=1)).isoformat()}) == []
    text = {"text": "three", "k": 1}
    refused = await post(gateway, "/features/letters/search", text, role="viewer")
    assert (refused.status_code, "needs a way to ask model 'letters'" in refused.json()["detail"]) == (
        409,
        True,
    )
    asked: list[tuple[str, list[str]]] = []
    gateway.app.state.services.embed = lambda _: (
        lambda model, texts: asked.append((model, list(texts))) or [[3.0, 0.5]]
    )
    assert await found(text) == [("c", 0.5)]
    assert asked == [("letters", ["three"])]
    for body, status, told in [
        ({"vector": [1.0]}, 409, "has 1 numbers, not 2"),
        ({"vector": [1.0, 2.0], "text": "x"}, 409, "one of vector, key and text"),
        ({"vector": [1.0, 2.0], "where": {"year": 1}}, 404, "where names 'year'"),
        ({"vector": [1.0, 2.0], "where": {"lang": {"like": 1}}}, 409, "compares by"),
        ({"vector": [1.0, 2.0], "k": 0}, 422, "k"),
        ({"key": {"doc": "z"}}, 404, "has no vector"),
    ]:
        answer = await post(gateway, "/features/letters/search", body, role="viewer")
        assert answer.status_code == status, answer.text
        assert told in answer.json()["detail"]
