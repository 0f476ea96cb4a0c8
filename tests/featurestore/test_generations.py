"""Views that are redefined while they are in use: no table, no training set and no online row mixes two meanings."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from tests.conditions.definitions import dropped, redefined
from toque.featurestore import (
    Aggregation,
    BatchSource,
    CsvFiles,
    Derived,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    IncompatibleChange,
    String,
    Windows,
)
from toque.featurestore.upkeep import expire
from toque.registry import Table

DAY = datetime(2024, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
user = Entity("user", dtype=String)


def source(tmp_path: Path, name: str = "tx") -> BatchSource:
    schema = [Field("user", String), Field("amount", Float64), Field("fee", Float64)]
    return BatchSource(name, CsvFiles(f"{tmp_path}/in/*.csv"), schema, timestamp="at", known_at="at")


def spent(
    events: BatchSource, function: str = "sum", hours: int = 1, column: str = "amount", **more: Any
) -> FeatureView:
    windows = Windows([Aggregation(function, hours * HOUR, column, name="total")], **more)
    return FeatureView("spent", [user], source=windows, events=events, ttl=timedelta(days=30))


def land(tmp_path: Path, name: str, *rows: tuple[int, float]) -> None:
    """Put a file of events there, each an hour of the day and an amount; the fee is a tenth."""
    lines = [f"u,{(DAY + hour * HOUR).isoformat()},{amount},{amount / 10}\n" for hour, amount in rows]
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / f"{name}.csv").write_text("user,at,amount,fee\n" + "".join(lines))


def refreshed(fs: FeatureStore, *views: str) -> None:
    fs.source_table("tx").load(lambda _name: "")
    for view in views:
        fs.refresh_view(view)


def values(fs: FeatureStore, feature: str, *hours: int) -> list[float | None]:
    at = pa.array([DAY + hour * HOUR for hour in hours], pa.timestamp("us", "UTC"))
    asked = pa.table({"user": ["u"] * len(hours), "event_timestamp": at})
    found: list[float | None] = (
        fs.get_historical_features(asked, feature).to_arrow()[feature.partition(":")[2]].to_pylist()
    )
    return found


CHANGES: dict[str, dict[str, Any]] = {
    "a longer window": {"hours": 24},
    "another function": {"function": "max"},
    "another column": {"column": "fee"},
    "a watermark": {"watermark": timedelta(0)},
    "a grid": {"every": 6 * HOUR},
}
any_change = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())


@any_change
def test_a_redefined_view_has_the_rows_of_all_events_at_once(
    offline_fs: FeatureStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    events = source(tmp_path)
    land(tmp_path, "a", (8, 1.0), (12, 2.0))
    offline_fs.apply([spent(events)])
    refreshed(offline_fs, "spent")
    plan = offline_fs.apply([spent(events, **change)])
    assert "generation 2 of its table begins empty" in plan.warnings[0]
    land(tmp_path, "b", (20, 4.0))
    refreshed(offline_fs, "spent")
    read = offline_fs.offline.read(offline_fs.get_feature_view("spent"))
    at_once = spent(events, **change).source.compute(  # type: ignore[union-attr]
        offline_fs.source_table("tx").rows(), keys=["user"]
    )
    columns = ["user", "total", "event_timestamp"]
    assert (
        pl.DataFrame(read.select(columns))
        .sort("event_timestamp")
        .equals(pl.DataFrame(at_once.select(columns)).sort("event_timestamp"))
    )


def test_what_was_pinned_before_stays_readable_and_the_old_meaning_too(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    events = source(tmp_path)
    land(tmp_path, "a", (8, 1.0), (12, 2.0))
    old, new = spent(events), spent(events, hours=24)
    offline_fs.apply([old])
    refreshed(offline_fs, "spent")
    pinned = offline_fs.offline_table("spent").snapshot()
    offline_fs.apply([new])
    assert values(offline_fs, "spent:total", 13) == [None]  # nothing of the old meaning under the new digest
    refreshed(offline_fs, "spent")
    assert values(offline_fs, "spent:total", 13) == [3.0]
    assert Table(offline_fs._store, pinned.name).read(version=pinned.version)["total"].to_pylist() == [
        1.0,
        2.0,
    ]
    asked = pa.table(
        {"user": ["u"], "event_timestamp": pa.array([DAY + 13 * HOUR], pa.timestamp("us", "UTC"))}
    )
    for view, wanted in ((old, [2.0]), (new, [3.0])):
        assert offline_fs.get_historical_features(asked, view).to_arrow()["total"].to_pylist() == wanted
        by_service = FeatureService("by_value", [view])
        assert offline_fs.get_historical_features(asked, by_service).to_arrow()["total"].to_pylist() == wanted


def test_a_meaning_that_comes_back_is_a_generation_of_its_own(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    events = source(tmp_path)
    land(tmp_path, "a", (8, 1.0), (12, 2.0))
    offline_fs.apply([spent(events)])
    refreshed(offline_fs, "spent")
    offline_fs.apply([spent(events, hours=24)])
    land(tmp_path, "b", (20, 4.0))
    refreshed(offline_fs, "spent")
    offline_fs.apply([], remove=["feature_view/spent"])
    offline_fs.apply([spent(events)])
    refreshed(offline_fs, "spent")
    assert offline_fs.get_feature_view("spent").stored_as == "spent.3"
    assert values(offline_fs, "spent:total", 8, 12, 20) == [1.0, 2.0, 4.0]
    assert offline_fs.apply([spent(events)]).is_empty


def test_what_changes_no_meaning_keeps_its_rows(offline_fs: FeatureStore, tmp_path: Path) -> None:
    events = source(tmp_path)
    land(tmp_path, "a", (8, 1.0))
    view = spent(events)
    offline_fs.apply([view])
    refreshed(offline_fs, "spent")
    more = [*view.source.aggregations, Aggregation("count", HOUR, name="count")]  # type: ignore[union-attr]
    (longer,) = redefined([view], "spent", ttl=timedelta(days=60), owner="ada")
    (wider,) = redefined([view], "spent", schema=(), source=Windows(more))
    (other_files,) = redefined([events], "tx", bad_share=0.5)
    for same in (longer, wider, spent(other_files)):
        assert offline_fs.apply([same]).warnings == ()
        assert values(offline_fs, "spent:total", 8) == [1.0]


def double(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(result=2 * pl.col("total"))


def triple(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(result=3 * pl.col("total"))


def derived(view: FeatureView, transform: Callable[[Any], Any]) -> FeatureView:
    return FeatureView("result", [user], source=Derived([view], [Field("result", Float64)], transform))


def test_a_derived_view_follows_its_formula_and_its_input(offline_fs: FeatureStore, tmp_path: Path) -> None:
    events = source(tmp_path)
    land(tmp_path, "a", (8, 1.0), (12, 2.0))
    hour, day = spent(events), spent(events, hours=24)
    offline_fs.apply([derived(hour, double)])
    refreshed(offline_fs, "spent", "result")
    assert values(offline_fs, "result:result", 8, 12) == [2.0, 4.0]
    offline_fs.apply([derived(hour, triple)])
    land(tmp_path, "b", (20, 4.0))
    refreshed(offline_fs, "spent", "result")
    assert values(offline_fs, "result:result", 8, 12, 20) == [3.0, 6.0, 12.0]
    with pytest.raises(
        IncompatibleChange, match="'result' is derived from 'spent', whose features would mean"
    ):
        offline_fs.apply([day])
    offline_fs.apply([derived(day, triple)])
    refreshed(offline_fs, "spent", "result")
    assert values(offline_fs, "result:result", 8, 12, 20) == [3.0, 9.0, 21.0]


def test_online_rows_of_another_meaning_are_not_served(fs: FeatureStore, clock: Any, tmp_path: Path) -> None:
    events = source(tmp_path)
    clock.now = DAY + 13 * HOUR
    land(tmp_path, "a", (8, 1.0), (12, 2.0))
    fs.apply([FeatureService("model", [spent(events)])])
    refreshed(fs, "spent")
    fs.materialize_incremental()

    def served() -> list[float | None]:
        found: list[float | None] = fs.get_online_features("model", [{"user": "u"}]).to_dict()["total"]
        return found

    assert served() == [2.0]
    day = spent(events, hours=24)
    fs.apply([day])
    assert served() == [None]
    refreshed(fs, "spent")
    fs.materialize_incremental()
    assert served() == [3.0]


def test_rows_of_earlier_generations_expire_with_the_others(
    offline_fs: FeatureStore, clock: Any, tmp_path: Path
) -> None:
    events = source(tmp_path)
    land(tmp_path, "a", (8, 1.0), (12, 2.0))
    for hours in (1, 24):
        offline_fs.apply([spent(events, hours=hours)])
        refreshed(offline_fs, "spent")
    clock.now = DAY + timedelta(days=100)
    assert expire(offline_fs, "spent", keep=timedelta(days=60)).rows == 4
    assert [offline_fs.offline.read(each).num_rows for each in offline_fs.list_generations()] == [0, 0]
    assert dropped(offline_fs.list_generations(), "spent") == []
