"""Times of the rows behind features that were read at a moment, beside the values that a training set of it has."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from toque.featurestore import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Int64,
    row_times,
)

NOON = datetime(2013, 6, 1, 12, tzinfo=UTC)
airport = Entity("origin")
weather = FeatureView("weather", [airport], [Field("temp", Float64)], ttl=timedelta(hours=6))
counts = FeatureView("counts", [Entity("carrier")], [Field("flights", Int64)])
service = FeatureService(
    "late", [weather, weather.with_name("there").with_join_key_map({"origin": "dest"}), counts]
)


def written(at: datetime, hours_ago: float, origin: str, temp: float) -> dict[str, object]:
    event = NOON - timedelta(hours=hours_ago)
    return {"origin": origin, "temp": temp, "event_timestamp": event, "created_timestamp": at}


def test_the_row_is_the_one_whose_value_a_training_set_has(offline_fs: FeatureStore) -> None:
    offline_fs.apply([airport, weather, counts, service])
    early = NOON - timedelta(hours=5)
    rows = [
        written(early, 5, "JFK", 1.0),
        written(NOON - timedelta(hours=2), 3, "JFK", 2.0),
        written(NOON + timedelta(hours=1), 1, "JFK", 3.0),  # came after the read
        written(early, 7, "LGA", 4.0),  # older than the view's ttl
    ]
    offline_fs.write_offline(weather, pa.Table.from_pylist(rows))
    keys = {"origin": "JFK", "dest": "LGA"}
    here, there = row_times(offline_fs, keys, "late", at=NOON)
    assert (here.view, dict(here.columns)) == ("weather", {"temp": "temp"})
    assert (here.event_at, here.created_at) == (NOON - timedelta(hours=3), NOON - timedelta(hours=2))
    assert (dict(there.columns), there.event_at, there.created_at) == ({"there__temp": "temp"}, None, None)
    entity = pa.table({name: [value] for name, value in keys.items()} | {"event_timestamp": [NOON]})
    features = [weather, weather.with_name("there").with_join_key_map({"origin": "dest"})]
    joined = offline_fs.get_historical_features(entity, features, as_known=True).to_arrow()
    assert (joined["temp"].to_pylist(), joined["there__temp"].to_pylist()) == ([2.0], [None])


def test_a_view_whose_keys_are_not_given_is_left_out(offline_fs: FeatureStore) -> None:
    offline_fs.apply([airport, weather, counts, service])
    assert [each.view for each in row_times(offline_fs, {"carrier": "AA"}, service, at=NOON)] == ["counts"]
    assert row_times(offline_fs, {}, service, at=NOON) == []
