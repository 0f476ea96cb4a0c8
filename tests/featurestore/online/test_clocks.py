"""Online rows by the clocks of two hosts: what one has just written, another reads."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.conditions.clocks import FAR_SKEWS, any_skew, skewed
from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Float64, InvalidRows
from toque.featurestore.online.serving import CLOCK_SKEW

HOUR = timedelta(hours=1)
view = FeatureView("v", [Entity("user")], [Field("x", Float64)], ttl=2 * HOUR)


@any_skew
def test_a_row_that_was_just_written_is_read_by_any_hosts_clock(
    fs: FeatureStore, redis_url: str, clock: Any, skew: timedelta
) -> None:
    fs.apply([view])
    fs.push(view, [{"user": "u", "x": 1.0, "event_timestamp": clock() - HOUR}])
    fs.push(view, [{"user": "u", "x": 2.0, "event_timestamp": clock()}])
    reader = FeatureStore(fs._store, redis_url, clock=skewed(clock, skew))
    assert reader.get_online_features(view, [{"user": "u"}]).to_dict()["x"] == [2.0]
    reader.online.close()


@any_skew
def test_a_host_pushes_what_another_has_just_stamped(
    make_store: Callable[..., FeatureStore], redis_url: str, clock: Any, skew: timedelta
) -> None:
    make_store(redis_url).apply([view])
    writer = FeatureStore(make_store()._store, redis_url, clock=skewed(clock, skew))
    writer.push(view, [{"user": "u", "x": 2.0, "event_timestamp": clock()}])
    writer.online.close()


def test_what_is_further_ahead_is_in_the_future(fs: FeatureStore, redis_url: str, clock: Any) -> None:
    fs.apply([view])
    soon = clock() + CLOCK_SKEW + timedelta(microseconds=1)
    with pytest.raises(InvalidRows, match="is after now"):
        fs.push(view, [{"user": "u", "x": 1.0, "event_timestamp": soon}])
    fs.push(view, [{"user": "u", "x": 1.0, "event_timestamp": clock()}])
    reader = FeatureStore(fs._store, redis_url, clock=skewed(clock, FAR_SKEWS["an hour behind"]))
    assert reader.get_online_features(view, [{"user": "u"}]).statuses["x"] == ["NOT_FOUND"]
    reader.online.close()


def test_a_read_as_of_a_given_time_is_exact(fs: FeatureStore, clock: Any) -> None:
    fs.apply([view])
    fs.push(view, [{"user": "u", "x": 1.0, "event_timestamp": clock()}])
    before = clock() - timedelta(microseconds=1)
    assert fs.get_online_features(view, [{"user": "u"}], now=before).statuses["x"] == ["NOT_FOUND"]
