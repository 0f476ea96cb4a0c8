"""Definitions over a source: what a view takes from it must be there when it is applied, and stay while the view is in use."""

from datetime import timedelta

import pytest

from tests.conditions.definitions import added, any_wrong_column, dropped, redefined, renamed
from toque.featurestore import (
    Aggregation,
    BatchSource,
    CsvFiles,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    IncompatibleChange,
    Int64,
    InvalidDefinition,
    List,
    RedisStream,
    StreamSource,
    String,
    Windows,
)

FIELDS = [Field("user", String), Field("amount", Float64), Field("items", List(String))]
FILES = BatchSource("bought", CsvFiles("/nowhere/*.csv"), FIELDS, timestamp="at", timezone="UTC")
STREAM = StreamSource("bought", RedisStream("redis://127.0.0.1:1/0", "bought"), schema=FIELDS, timestamp="at")
any_source = pytest.mark.parametrize("source", [FILES, STREAM], ids=["files", "stream"])


def view(source: BatchSource | StreamSource, column: str, function: str = "sum") -> FeatureView:
    windows = Windows([Aggregation(function, timedelta(hours=1), column, name="result")])
    return FeatureView("spent", [Entity("user", dtype=String)], source=windows, events=source)


@any_source
@any_wrong_column
def test_windows_over_a_column_that_has_no_sum_are_refused(
    offline_fs: FeatureStore, source: BatchSource | StreamSource, column: str
) -> None:
    with pytest.raises(InvalidDefinition, match=f"feature view 'spent': 'result' .* column '{column}'"):
        offline_fs.apply([view(source, column)])
    assert offline_fs.list_feature_views() == []


@any_source
def test_distinct_values_of_any_column_are_counted(
    offline_fs: FeatureStore, source: BatchSource | StreamSource
) -> None:
    offline_fs.apply([view(source, "user", "approx_distinct")])
    assert [found.name for found in offline_fs.list_feature_views()] == ["spent"]


def test_windows_by_a_time_that_the_source_lacks_are_refused(offline_fs: FeatureStore) -> None:
    windows = Windows([Aggregation("count", timedelta(hours=1))], event_time="bought_at")
    wrong = FeatureView("spent", [Entity("user", dtype=String)], source=windows, events=FILES)
    with pytest.raises(InvalidDefinition, match="event_time='bought_at' is no time of its source"):
        offline_fs.apply([wrong])


@any_source
def test_a_source_keeps_the_columns_that_views_in_use_take(
    offline_fs: FeatureStore, source: BatchSource | StreamSource
) -> None:
    offline_fs.apply([view(source, "amount")])
    for schema in (dropped(FIELDS, "amount"), renamed(FIELDS, "amount", "cost")):
        (changed,) = redefined([source], "bought", schema=schema)
        with pytest.raises(IncompatibleChange, match="feature view 'spent' takes column 'amount' from"):
            offline_fs.apply([changed])
    for schema in (added(FIELDS, Field("shop", Int64)), dropped(FIELDS, "items")):
        (changed,) = redefined([source], "bought", schema=schema)
        assert offline_fs.apply([changed]).of("changed") == ["bought"]
    (changed,) = redefined([source], "bought", schema=dropped(FIELDS, "amount"))
    offline_fs.apply([changed], remove=["feature_view/spent"])
