"""Views that are redefined while they are in use: no table, no training set and no online row mixes two meanings."""

from collections.abc import Callable
from dataclasses import replace
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
    RedisStream,
    SchemaRegistry,
    StreamSource,
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


def plain(events: BatchSource) -> FeatureView:
    return FeatureView("spent", [user], [Field("amount", Float64)], events=events)


READ_OTHERWISE: dict[str, dict[str, Any]] = {
    "another column": {"columns": {"amount": "fee"}},
    "another time": {"timestamp": "later"},
    "another zone": {"timezone": "Asia/Tokyo"},
    "another time of knowledge": {"known_at": "later"},
    "other texts for nothing": {"reads": {"null": ["", "1.0"]}},
    "another delimiter": {"reads": {"delimiter": ";"}},
}
"""What changes the values of a source's rows, or when they count."""
READ_THE_SAME: dict[str, dict[str, Any]] = {
    "its own name": {"columns": {"amount": "amount"}},
    "another column of which no view has a feature": {"columns": {"fee": "amount"}},
    "another place": {"reads": {"pattern": "/elsewhere/*.csv"}},
    "words": {"description": "d", "owner": "grace", "tags": {"a": "b"}},
    "a bound of what may be aside": {"bad_share": 0.9},
    "one more column": {
        "schema": [*(Field(n, Float64) for n in ("amount", "fee", "more")), Field("user", String)]
    },
}
"""What leaves the values of the column `amount` as they are."""
windowed = pytest.mark.parametrize("view", [plain, spent])


def read_as(events: BatchSource, change: dict[str, Any]) -> BatchSource:
    reads = {"reads": replace(events.reads, **change["reads"])} if "reads" in change else {}  # type: ignore[type-var]
    return replace(events, **change | reads)


@windowed
@pytest.mark.parametrize("change", READ_OTHERWISE.values(), ids=READ_OTHERWISE.keys())
def test_a_source_that_is_read_otherwise_gives_its_views_a_new_generation(
    offline_fs: FeatureStore, tmp_path: Path, view: Any, change: dict[str, Any]
) -> None:
    events = replace(source(tmp_path), timezone="Europe/Berlin")
    offline_fs.apply([view(events)])
    assert offline_fs.apply([view(read_as(events, change))]).of("changed") == ["tx", "spent"]
    assert offline_fs.get_feature_view("spent").stored_as == "spent.2"
    assert offline_fs.source_table("tx").table.name.endswith("sources/tx.2")
    assert offline_fs.apply([view(read_as(events, change))]).is_empty
    offline_fs.apply([view(events)])  # as it was, after rows of another meaning
    assert offline_fs.get_feature_view("spent").stored_as == "spent.3"


@windowed
@pytest.mark.parametrize("change", READ_THE_SAME.values(), ids=READ_THE_SAME.keys())
def test_a_source_of_which_a_view_reads_the_same_leaves_its_generation(
    offline_fs: FeatureStore, tmp_path: Path, view: Any, change: dict[str, Any]
) -> None:
    events = replace(source(tmp_path), timezone="Europe/Berlin")
    offline_fs.apply([view(events)])
    offline_fs.apply([view(read_as(events, change))])
    assert offline_fs.get_feature_view("spent").stored_as == "spent"


@windowed
def test_no_training_set_mixes_two_readings_of_a_column(
    offline_fs: FeatureStore, tmp_path: Path, view: Any
) -> None:
    """Rows of a key that comes once, before the change, are read anew with the others; the old table stays."""
    events, feature = source(tmp_path), "spent:total" if view is spent else "spent:amount"
    land(tmp_path, "a", (8, 100.0), (12, 200.0))
    offline_fs.apply([view(events)])
    refreshed(offline_fs, "spent")
    before = offline_fs.offline_table("spent").snapshot()
    offline_fs.apply([view(replace(events, columns={"amount": "fee"}))])
    assert values(offline_fs, feature, 9, 13) == [None, None]
    land(tmp_path, "b", (20, 400.0))
    refreshed(offline_fs, "spent")
    assert values(offline_fs, feature, 8, 12, 20) == [10.0, 20.0, 40.0]
    assert Table(offline_fs._store, before.name).read(version=before.version).num_rows == 2
    refreshed(offline_fs, "spent")  # nothing is new
    assert offline_fs.offline_table("spent").read().num_rows == 3


def test_a_view_whose_column_stays_goes_on_in_the_new_table_of_its_source(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    events = source(tmp_path)
    land(tmp_path, "a", (8, 100.0))
    offline_fs.apply([plain(events)])
    refreshed(offline_fs, "spent")
    offline_fs.apply([plain(replace(events, columns={"fee": "amount"}))])
    assert values(offline_fs, "spent:amount", 9) == [100.0]  # nothing begins empty
    land(tmp_path, "b", (20, 400.0))
    refreshed(offline_fs, "spent")
    assert offline_fs.get_feature_view("spent").stored_as == "spent"
    assert values(offline_fs, "spent:amount", 9, 21) == [100.0, 400.0]


def test_a_column_that_comes_back_with_another_reading_is_no_part_of_the_old_table(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    """Between both, the column was left out, so that neither neighbour differs."""
    events = source(tmp_path)
    fee = FeatureView("fees", [user], [Field("fee", Float64)], events=events)
    both = replace(fee, schema=[Field("fee", Float64), Field("amount", Float64)])
    offline_fs.apply([both])
    offline_fs.apply([fee])
    other = replace(events, columns={"amount": "fee"})
    offline_fs.apply([replace(both, events=other)])
    assert offline_fs.get_feature_view("fees").stored_as == "fees.2"


def test_a_source_is_not_read_otherwise_behind_a_view_that_stays(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    events = source(tmp_path)
    offline_fs.apply([plain(events)])
    other = replace(events, columns={"amount": "fee"})
    with pytest.raises(
        IncompatibleChange, match="'spent' takes its rows from batch source 'tx', whose columns would"
    ):
        offline_fs.apply([other])
    offline_fs.apply([other], remove=["feature_view/spent"])
    offline_fs.apply([plain(other)])
    assert offline_fs.get_feature_view("spent").stored_as == "spent.2"


def test_what_was_made_of_either_reading_names_its_own_loads(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    events = source(tmp_path)
    land(tmp_path, "a", (8, 100.0))
    land(tmp_path, "b", (9, 100.0))
    old, new = plain(events), plain(replace(events, columns={"amount": "fee"}))
    asked = pa.table(
        {"user": ["u"], "event_timestamp": pa.array([DAY + 13 * HOUR], pa.timestamp("us", "UTC"))}
    )
    offline_fs.apply([old])
    refreshed(offline_fs, "spent")
    land(tmp_path, "c", (10, 100.0))
    refreshed(offline_fs, "spent")
    offline_fs.apply([new])
    refreshed(offline_fs, "spent")
    for view, load in ((old, 2), (new, 1)):
        (read,) = offline_fs.sources_of(offline_fs.get_historical_features(asked, view)).values()
        assert (read.source, read.load, read.rows) == ("tx", load, 3)


STREAMED_OTHERWISE: dict[str, dict[str, Any]] = {
    "another field": {"columns": {"amount": "fee"}},
    "another time": {"timestamp": "sent_at"},
    "another unit of time": {"timestamp_unit": "s"},
    "another zone": {"timezone": "Asia/Tokyo"},
    "another log": {"reads": RedisStream("redis://localhost", key="others")},
    "messages with a schema": {"schemas": SchemaRegistry("https://registry")},
}


@windowed
@pytest.mark.parametrize("change", STREAMED_OTHERWISE.values(), ids=STREAMED_OTHERWISE.keys())
def test_a_stream_that_is_read_otherwise_begins_anew(
    offline_fs: FeatureStore, view: Any, change: dict[str, Any]
) -> None:
    schema = [Field("user", String), Field("amount", Float64)]
    stream = StreamSource("tx", RedisStream("redis://localhost", key="tx"), schema, timestamp="at")
    offline_fs.apply([view(stream)])
    same: dict[str, Any] = {
        "owner": "grace",
        "allowed_lateness": HOUR,
        "commit_every": HOUR,
        "columns": {"amount": "amount"},
    }
    offline_fs.apply([view(replace(stream, **same))])
    assert offline_fs.get_feature_view("spent").stored_as == "spent"
    offline_fs.apply([view(replace(stream, **change))])
    assert offline_fs.get_feature_view("spent").stored_as == "spent.2"
    assert offline_fs.stream_table("tx").table.name.endswith("streams/tx.2")
    (followed,) = [each for each in offline_fs.list_feature_views() if each.events.generation == 2]  # type: ignore[union-attr]
    assert followed.reads_from(offline_fs.get_stream_source("tx"))


def test_windows_over_rows_that_now_name_themselves_begin_anew(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    """A row that had come twice counts once then; a plain view has the last of both before and after."""
    events = source(tmp_path)
    named = replace(events, unique=["user"])
    land(tmp_path, "a", (8, 1.0), (8, 1.0))
    offline_fs.apply([spent(events)])
    refreshed(offline_fs, "spent")
    assert values(offline_fs, "spent:total", 8) == [2.0]
    offline_fs.apply([spent(named)])
    refreshed(offline_fs, "spent")
    assert values(offline_fs, "spent:total", 8) == [1.0]
    assert offline_fs.get_feature_view("spent").stored_as == "spent.2"


def test_a_zone_for_times_that_had_one_changes_no_meaning(offline_fs: FeatureStore, tmp_path: Path) -> None:
    """Without a zone, times that named none were refused; the refusal says to declare one."""
    offline_fs.apply([plain(source(tmp_path))])
    offline_fs.apply([plain(replace(source(tmp_path), timezone="Europe/Berlin"))])
    assert offline_fs.get_feature_view("spent").stored_as == "spent"
    offline_fs.apply([plain(replace(source(tmp_path), timezone="Asia/Tokyo"))])
    assert offline_fs.get_feature_view("spent").stored_as == "spent.2"


def times(factor: float) -> Callable[[Any], Any]:
    def transform(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.select(result=factor * pl.col("total"))

    return transform


def test_a_derived_view_follows_what_its_formula_reads(offline_fs: FeatureStore, tmp_path: Path) -> None:
    view = spent(source(tmp_path))
    land(tmp_path, "a", (8, 1.0), (12, 2.0))
    offline_fs.apply([derived(view, times(2))])
    refreshed(offline_fs, "spent", "result")
    assert offline_fs.apply([derived(view, times(2))]).is_empty
    offline_fs.apply([derived(view, times(3))])
    land(tmp_path, "b", (20, 4.0))
    refreshed(offline_fs, "spent", "result")
    assert values(offline_fs, "result:result", 8, 12, 20) == [3.0, 6.0, 12.0]
    assert offline_fs.get_feature_view("result").stored_as == "result.2"


def test_a_formula_that_version_0_1_recorded_keeps_its_generation(
    offline_fs: FeatureStore, tmp_path: Path
) -> None:
    """0.1 hashed the text alone; of views behind a derived one, too."""

    def recorded(view: FeatureView) -> FeatureView:
        code = view.source.code.partition("+")[0]  # type: ignore[union-attr]
        return replace(view, source=replace(view.source, code=code))  # type: ignore[type-var]

    def chain(factor: float, old: Callable[[FeatureView], FeatureView] = lambda view: view) -> FeatureView:
        first = old(derived(spent(source(tmp_path)), times(factor)))
        transform = lambda frame: frame.select(last=pl.col("result"))  # noqa: E731  # its text is this line
        return old(FeatureView("last", [user], source=Derived([first], [Field("last", Float64)], transform)))

    offline_fs.apply([chain(2, recorded)])
    for factor, generation in ((2, 1), (2, 1), (3, 2)):
        offline_fs.apply([chain(factor)])
        stored = [offline_fs.get_feature_view(name).generation for name in ("result", "last")]
        assert stored == [generation, generation]
