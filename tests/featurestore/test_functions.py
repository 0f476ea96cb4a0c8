"""The feature functions: training sets with lineage, and bringing features online."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import Entity, FeatureService, FeatureView, Field, Float64, InvalidRows
from functions import Context, use_context
from functions.features import build_training_set, materialize, training_set_lineage
from registry import Table, TableSnapshot, open_store

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


def test_materialize_brings_what_is_due(ctx: Context) -> None:
    result = materialize(["weather"], START + 2 * HOUR)
    assert (result.rows, result.written) == (3, 1)
    online = ctx.features().get_online_features(weather, [{"origin": "JFK"}])
    assert online.columns() == {"temp": [2.0]}
    assert materialize(end=START + 9 * HOUR).rows == 2
    assert ctx.features().get_online_features(weather, [{"origin": "JFK"}]).columns() == {"temp": [4.0]}
