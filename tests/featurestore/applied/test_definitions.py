"""Applied definitions: plans, records, refusals, and what other processes read."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.featurestore.airports import HOUR, START, airport, row, service, weather
from toque.featurestore import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    IncompatibleChange,
    Int64,
    InvalidDefinition,
    UnknownDefinition,
)


def test_apply_shows_a_plan_and_records_every_version(offline_fs: FeatureStore) -> None:
    plan = offline_fs.apply([service])
    assert plan.of("added") == ["airport", "weather", "hour", "traffic", "heat", "late"]
    assert offline_fs.apply([service]).is_empty
    more = FeatureView("weather", [airport], [*weather.schema, Field("rain", Float64)], ttl=weather.ttl)
    changed = offline_fs.plan([more])
    assert "~ feature view weather (version 2): schema: temp:Float64,gusts:Int64,sky:String -> " in str(
        changed
    )
    digests = offline_fs.definitions_digest("late")
    assert sorted(digests) == ["heat", "traffic", "weather"]
    offline_fs.apply([more])
    assert [r.version for r in offline_fs.history("feature_view", "weather")] == [1, 2]
    assert offline_fs.history("feature_view", "weather")[0].digest == digests["weather"]
    assert offline_fs.definitions_digest("late")["weather"] != digests["weather"]
    assert offline_fs.history("feature_view", "weather")[1].actor == "ada"


@pytest.mark.parametrize(
    ("schema", "entities", "message"),
    [
        ([Field("temp", Int64)], [airport], "'temp' is stored as Float64, not Int64; define weather_v2"),
        (
            [Field("temp", Float64)],
            [Entity("airport", join_keys=["place"])],
            "keyed by origin:String, not place:String",
        ),
    ],
)
def test_changes_that_would_corrupt_stored_rows_are_refused(
    offline_fs: FeatureStore, schema: list[Field], entities: list[Entity], message: str
) -> None:
    offline_fs.apply([weather])
    with pytest.raises(IncompatibleChange, match=message):
        offline_fs.apply([FeatureView("weather", entities, schema)])
    removed = offline_fs.apply([], remove=["feature_view/weather"])
    assert removed.of("removed") == ["weather"]
    with pytest.raises(IncompatibleChange, match=message):
        offline_fs.apply([FeatureView("weather", entities, schema)])


def test_a_used_definition_cannot_be_removed(offline_fs: FeatureStore) -> None:
    offline_fs.apply([service])
    with pytest.raises(IncompatibleChange, match="used by on demand feature view 'heat'"):
        offline_fs.apply([], remove=["feature_view/weather"])


def test_a_feature_that_a_service_uses_cannot_go(offline_fs: FeatureStore) -> None:
    offline_fs.apply([service])
    without = FeatureView("weather", [airport], [Field("temp", Float64)], ttl=weather.ttl)
    with pytest.raises(IncompatibleChange, match="feature service 'late' uses weather:sky, which would go"):
        offline_fs.apply([without])
    assert "weather" in offline_fs.apply([without], remove=["feature_service/late"]).of("changed")


def test_a_reader_learns_of_a_layout_that_another_process_applied(
    make_store: Callable[..., FeatureStore], redis_url: str, clock: Any
) -> None:
    clock.now = START + HOUR
    old, new = make_store(redis_url), make_store(redis_url)
    old.apply([FeatureService("plain", [weather[["temp"]]])])
    old.push(weather, [row("JFK", 0, 1.0)])
    asked = [{"origin": "JFK"}]
    assert old.get_online_features("plain", asked).columns() == {"temp": [1.0]}
    more = FeatureView("weather", [airport], [Field("rain", Float64), *weather.schema], ttl=weather.ttl)
    new.apply([more])
    new.push(more, [row("JFK", 1, 2.0, rain=0.5)])
    assert old.get_online_features("plain", asked).columns() == {"temp": [2.0]}


def test_a_changed_service_is_served_once_it_has_been_read_again(
    make_store: Callable[..., FeatureStore], redis_url: str, clock: Any
) -> None:
    clock.now = START + HOUR
    server, other = make_store(redis_url), make_store()
    other.apply([FeatureService("plain", [weather[["temp"]]])])
    assert list(server.get_online_features("plain", [{"origin": "JFK"}]).columns()) == ["temp"]
    other.apply([FeatureService("plain", [weather[["temp", "sky"]]])])
    server.get_feature_service("plain")
    assert list(server.get_online_features("plain", [{"origin": "JFK"}]).columns()) == ["temp", "sky"]


def test_another_process_finds_definitions_and_code(
    make_store: Callable[..., FeatureStore], redis_url: str
) -> None:
    make_store().apply([service])
    other = make_store(redis_url)
    assert other.get_feature_view("weather") == weather
    assert other.list_feature_services() == ["late"]
    described = other.history("on_demand_feature_view", "heat")[0].definition
    assert described["reference"].endswith(":heat")
    with pytest.raises(
        UnknownDefinition, match="no feature service 'early' is applied; applied are \\['late'\\]"
    ):
        other.get_feature_service("early")


def test_rows_written_before_a_feature_was_added_read_as_null(fs: FeatureStore, clock: Any) -> None:
    fs.apply([weather])
    clock.now = START + 2 * HOUR
    fs.push(weather, [row("JFK", 0, 1.0)])
    more = FeatureView("weather", [airport], [Field("rain", Float64), *weather.schema], ttl=weather.ttl)
    fs.apply([more])
    fs.push(more, [row("EWR", 0, 2.0, rain=0.5)])
    asked = [{"origin": "JFK"}, {"origin": "EWR"}]
    assert fs.get_online_features(more, asked).columns(["temp", "rain"]) == {
        "temp": [1.0, 2.0],
        "rain": [None, 0.5],
    }
    entities = [{**a, "event_timestamp": clock.now} for a in asked]
    out = fs.get_historical_features(entities, features=more).to_arrow()
    assert out.select(["temp", "rain"]).to_pydict() == {"temp": [1.0, 2.0], "rain": [None, 0.5]}
    with pytest.raises(UnknownDefinition, match="apply it first"):
        fs.push(weather, [row("JFK", 1, 1.0)])


def test_contradictory_definitions_are_refused() -> None:
    with pytest.raises(InvalidDefinition, match="'temp' appears twice"):
        FeatureService("twice", [weather, weather[["temp"]]])
    with pytest.raises(InvalidDefinition, match="one of the store's own columns"):
        Field("event_timestamp", Float64)
    with pytest.raises(UnknownDefinition, match="no feature \\['rain'\\]"):
        weather[["rain"]]
    with pytest.raises(InvalidDefinition, match="use String, Int64, Int32 or Bool"):
        Entity("degree", dtype=Float64)
