"""The feature functions: training sets with lineage, and materialization."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, InvalidRows
from toque.functions import Context, use_context
from toque.functions.features.jobs import (
    build_training_set,
    latest_feature_health,
    materialize,
    record_feature_health,
    training_set_lineage,
)
from toque.functions.reporting.feature_page import feature_report
from toque.registry import InvalidInput, Table, TableSnapshot, open_store

START = datetime(2013, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
weather = FeatureView("weather", [Entity("origin")], [Field("temp", Float64)])


@pytest.fixture
def ctx(tmp_path: Path, redis_url: str, clock: Any) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    context = Context(open_store(url), url, redis_url, clock=clock, actor="ada")
    with use_context(context):
        context.features().apply([FeatureService("late", [weather])])
        rows = [{"origin": "JFK", "temp": float(h), "event_timestamp": START + h * HOUR} for h in range(5)]
        context.features().write_offline(weather, rows)
        yield context
    context.features().online.close()


def entities(ctx: Context) -> TableSnapshot:
    rows = [
        {
            "flight": h,
            "origin": "JFK",
            "event_timestamp": START + h * HOUR,
            "label": None if h == 2 else float(h),
            "label_known_at": START + (h + 2) * HOUR,
        }
        for h in range(5)
    ]
    return Table(ctx.store, "entities").append(pa.Table.from_pylist(rows))


def test_a_training_set_has_the_labelled_rows_of_its_time_and_its_lineage(ctx: Context) -> None:
    asked = entities(ctx)
    made = build_training_set("late", asked, "label", START, START + 4 * HOUR, known_by=START + 3 * HOUR)
    rows = Table(ctx.store, made.name).read(version=made.version)
    assert rows.column("flight").to_pylist() == [0, 1]
    assert rows.column("temp").to_pylist() == [0.0, 1.0]
    lineage = training_set_lineage(made)
    assert lineage.entities == asked
    assert lineage.views == ctx.features().definitions_digest("late")
    assert lineage.tables == {"weather": ctx.features().offline_table(weather).snapshot()}
    assert lineage.rows == 2


def test_each_training_set_stays_readable(ctx: Context) -> None:
    asked = entities(ctx)
    first = build_training_set("late", asked, "label", START, START + 2 * HOUR)
    second = build_training_set("late", asked, "label", START, START + 9 * HOUR)
    table = Table(ctx.store, first.name)
    assert [table.read(version=v.version).num_rows for v in (first, second)] == [2, 4]
    with pytest.raises(InvalidRows, match="entities@0 was not made by"):
        training_set_lineage(TableSnapshot(name="entities", version=0))


def test_an_empty_training_set_is_refused(ctx: Context) -> None:
    with pytest.raises(InvalidRows, match="has no rows with 'label' known by"):
        build_training_set("late", entities(ctx), "label", START, START + HOUR, known_by=START)
    with pytest.raises(InvalidRows, match="label column 'late' is missing"):
        build_training_set("late", entities(ctx), "late", START, START + HOUR)


@pytest.mark.parametrize(
    "name", ["predictions/late", "labels", "Monitoring/late", "features/default/weather", "batch/x.delta/y"]
)
def test_a_training_set_is_not_written_over_a_table_of_the_platform(ctx: Context, name: str) -> None:
    with pytest.raises(InvalidInput, match=r"name=.*(platform's own|folder of a table)"):
        build_training_set("late", entities(ctx), "label", START, START + 4 * HOUR, name=name)
    assert not Table(ctx.store, name).exists() or name.startswith("features/")


def test_a_training_set_is_not_written_over_its_entities(ctx: Context) -> None:
    asked = entities(ctx)
    with pytest.raises(InvalidInput, match="name='entities' is a table of something else than training sets"):
        build_training_set("late", asked, "label", START, START + 4 * HOUR, name="entities")
    assert Table(ctx.store, "entities").snapshot() == asked
    empty = pa.table({"flight": pa.array([], pa.int64())})
    DeltaTable.create(Table(ctx.store, "training/cut-off").uri, empty.schema)  # as a killed writer leaves it
    for version in (1, 2):
        made = build_training_set("late", asked, "label", START, START + 4 * HOUR, name="training/cut-off")
        assert made.version == version


def test_materialize_writes_due_rows_online(ctx: Context) -> None:
    result = materialize(["weather"], START + 2 * HOUR)
    assert (result.rows, result.written) == (3, 1)
    online = ctx.features().get_online_features(weather, [{"origin": "JFK"}])
    assert online.columns() == {"temp": [2.0]}
    assert materialize(end=START + 9 * HOUR).rows == 2
    assert ctx.features().get_online_features(weather, [{"origin": "JFK"}]).columns() == {"temp": [4.0]}


def test_materialize_reports_how_far_it_is_and_how_fast(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, float, str]] = []
    monkeypatch.setattr("toque.functions.features.jobs.report_progress", lambda *at: told.append(at))
    materialize(end=START + 9 * HOUR)
    (done, total, text) = told[-1]
    assert (done, total) == (5, 5)
    assert re.fullmatch(r"weather: 5 of 5 rows, [\d,]+ rows/s", text)


def test_the_page_of_a_view_shows_its_state_and_values(ctx: Context) -> None:
    key = feature_report("weather", span_hours=3.0, samples=2)
    page = ctx.store.get(key).decode()
    assert key == "reports/features-weather.html"
    assert '5 rows in 1 files; the newest is of <time datetime="2013-06-01T04:00:00+00:00"' in page
    assert '<th scope="row">temp</th>' in page
    cells = re.findall("<td[^>]*>([^<]*)</td>", page)
    assert cells[:8] == ["Float64", "100.0\u202f%", "4", "2.5", "1.291", "1", "1.75 / 2.5 / 3.25", "4"]
    assert (
        len(re.findall("<rect [^>]*><title>[-0-9.]+: 1</title>", page)) == 4
    )  # the histogram, a row in each bar
    assert cells.count("JFK") == 2  # the newest rows
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)


def test_the_newest_measurement_of_each_view_is_found(ctx: Context, clock: Any) -> None:
    assert latest_feature_health(ctx.store, since=START) == []
    for hours in (6, 7):
        clock.now = START + hours * HOUR
        record_feature_health(["weather"])
    rows = latest_feature_health(ctx.store, since=START)
    assert {row["metric"]: row["value"] for row in rows} == {
        "rows": 5.0,
        "freshness_s": 3 * 3600.0,
        "recent_rows": 5.0,
        "coverage": 0.0,
        "fill": 1.0,
    }
    assert latest_feature_health(ctx.store, since=START + 8 * HOUR) == []
