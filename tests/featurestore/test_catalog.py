"""The catalogue of features: what there is, where it comes from, who uses it, and what is to be given up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from toque.featurestore import (
    Aggregation,
    BatchSource,
    CsvFiles,
    Deprecation,
    Derived,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    InvalidDefinition,
    RequestSource,
    String,
    Windows,
    on_demand_feature_view,
)
from toque.featurestore.applied import deserialize
from toque.functions import Context, use_context
from toque.functions.features import build_training_set, feature_catalog, feature_health
from toque.registry import Lineage, Table, open_store

NOW = datetime(2024, 6, 1, tzinfo=UTC)
plane = Entity("plane")
landed = BatchSource(
    "landed",
    CsvFiles("/landing/*.csv"),
    [Field("plane", String), Field("delay", Float64), Field("pilot", String)],
    "at",
    columns={"delay": "ARR_DELAY"},
)
last = FeatureView(
    "last",
    [plane],
    [Field("delay", Float64), Field("pilot", String)],
    events=landed,
    owner="ops",
    description="The last landing of an aircraft.",
    tags={"personal": "pilot, plane"},
)
week = FeatureView(
    "week",
    [plane],
    source=Windows([Aggregation("mean", timedelta(days=7), "delay")]),
    events=landed,
    owner="fleet",
)
ask = RequestSource("ask", [Field("miles", Float64)])


def worse_of(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(worse=pl.col("delay") * 2)


worse = FeatureView("worse", [plane], source=Derived([last[["delay"]]], [Field("worse", Float64)], worse_of))


@on_demand_feature_view(sources=[worse, ask], schema=[Field("risk", Float64)], form="polars")
def risk(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(risk=pl.col("worse") / pl.col("miles"))


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    with use_context(Context(open_store(url), url, actor="ada", clock=lambda: NOW)) as context:
        context.features().apply([FeatureService("late", [risk]), last, week])
        yield context


def test_each_view_is_listed_with_its_use_origin_and_cost(ctx: Context, tmp_path: Path) -> None:
    row = {"plane": "N1", "delay": 3.0, "pilot": "Amelia", "event_timestamp": NOW - timedelta(hours=1)}
    ctx.features().write_offline(last, [row])
    (tmp_path / "weights").write_bytes(b"w")
    models = ctx.registry()
    models.create_model("delay")
    for _ in range(2):
        lineage = Lineage(features={"last": "sha256:1", "worse": "sha256:2"})
        models.create_version("delay", tmp_path / "weights", lineage=lineage)
    models.set_alias("delay", "champion", 2)
    found = {each.name: each for each in feature_catalog()}
    assert list(found) == ["last", "week", "worse", "risk"]
    made = {
        f"{name}:{f.name}": (f.comes_from, f.used_by) for name, each in found.items() for f in each.features
    }
    assert made == {
        "last:delay": (["landed.ARR_DELAY"], ["feature view worse"]),
        "last:pilot": (["landed.pilot"], []),
        "week:delay_mean_7d": (["landed.ARR_DELAY"], []),
        "worse:worse": (["last:delay"], ["on demand feature view risk"]),
        "risk:risk": (["worse:worse", "request:miles"], ["feature service late"]),
    }
    assert {name: each.services for name, each in found.items()} == {
        "last": ["late"], "week": [], "worse": ["late"], "risk": ["late"],
    }  # fmt: skip
    assert [(each.model, each.version) for each in found["last"].models] == [("delay", 2)]
    assert "alias 'champion'" in found["last"].models[0].uses[0]
    assert (found["last"].rows, found["last"].keys, found["last"].owner) == (1, ["plane"], "ops")
    assert found["last"].bytes > 0
    assert found["last"].newest_event is not None
    assert (found["week"].rows, found["week"].newest_event) == (0, None)


def test_it_is_searched_by_words_and_unused_features_are_named(ctx: Context) -> None:
    def names(*words: str) -> list[str]:
        return [each.name for each in feature_catalog(list(words))]

    assert names("LANDING", "ops") == ["last"]
    assert names("arr_delay") == ["last", "week"]
    assert names("late", "risk") == ["risk"]
    assert names("nothing") == []
    idle = {each.name: [f.name for f in each.features] for each in feature_catalog(unused=True)}
    assert idle == {"last": ["pilot"], "week": ["delay_mean_7d"]}


def test_examples_do_not_show_personal_values(ctx: Context) -> None:
    row = {"plane": "N1", "delay": 3.0, "pilot": "Amelia", "event_timestamp": NOW - timedelta(hours=1)}
    ctx.features().write_offline(last, [row])
    (health,) = feature_health(["last"])
    (example,) = health.samples
    assert (example["delay"], example["pilot"], example["plane"]) == (3.0, "(personal)", "(personal)")
    assert "Amelia" not in health.model_dump_json()


def deprecated(since: datetime, *features: str) -> FeatureView:
    given = Deprecation(since, "use week:delay_mean_7d", features)
    return FeatureView("last", [plane], last.schema, events=landed, deprecated=given, owner="ops")


def test_what_is_deprecated_warns_its_users_and_makes_no_new_training_set(
    ctx: Context, caplog: pytest.LogCaptureFixture
) -> None:
    features = ctx.features()
    features.apply([FeatureService("direct", [last])])
    with caplog.at_level(logging.WARNING):
        plan = features.apply([deprecated(NOW + timedelta(days=1), "delay")])
    uses = [
        "feature service 'direct' uses last:delay, deprecated since 2024-06-02T00:00:00+00:00: use week:delay_mean_7d",
        "feature view 'worse' uses last:delay, deprecated since 2024-06-02T00:00:00+00:00: use week:delay_mean_7d",
    ]
    assert list(plan.warnings) == uses
    assert caplog.messages == uses
    assert str(plan).endswith(uses[1])
    (entry,) = feature_catalog(["landing"]) or feature_catalog(["pilot"])
    assert entry.features[0].deprecated == "since 2024-06-02T00:00:00+00:00: use week:delay_mean_7d"
    assert entry.features[1].deprecated is None
    assert entry.would_break == ["feature service direct", "feature view worse"]
    at = NOW - timedelta(hours=1)
    asked = Table(ctx.store, "asked").append(pa.table({"plane": ["N1"], "event_timestamp": [at], "y": [1.0]}))
    build_training_set("direct", asked, "y", at, NOW)  # its date has not come
    features.apply([deprecated(NOW, "delay")])
    with pytest.raises(InvalidDefinition, match=r"last:delay is deprecated since .*use week:delay_mean_7d"):
        build_training_set("direct", asked, "y", at, NOW)
    features.apply([FeatureService("direct", [deprecated(NOW, "pilot")[["delay"]]])])
    build_training_set("direct", asked, "y", at, NOW)
    features.apply([], remove=["feature_service/direct"])
    plan = features.apply([last])  # taken back
    assert plan.of("changed") == ["last"]
    assert plan.warnings == ()
    assert features.get_feature_view("last").deprecated is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Deprecation(datetime(2024, 1, 1), "x"), "names no time zone"),  # noqa: DTZ001
        (lambda: Deprecation(NOW, ""), "what to use instead"),
        (lambda: deprecated(NOW, "nothing"), "no feature 'nothing' to deprecate"),
    ],
)
def test_a_deprecation_says_since_when_and_what_instead(make: Any, message: str) -> None:
    with pytest.raises(InvalidDefinition, match=message):
        make()


def test_a_deprecation_is_recorded_and_changes_no_number() -> None:
    view = deprecated(NOW)
    assert deserialize.view(view.describe()).deprecated == view.deprecated
    assert "deprecated" not in view.semantics()
    assert "deprecated" not in last.describe()


def test_a_service_of_a_view_and_one_derived_from_it_has_both_digests(ctx: Context) -> None:
    ctx.features().apply([FeatureService("both", [last, worse])])
    assert set(ctx.features().definitions_digest("both")) == {"last", "worse"}
