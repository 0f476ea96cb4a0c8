"""The functions of batch sources: one that fails stops no other, and secrets stay secret."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from toque.featurestore import (
    BatchSource,
    CsvFiles,
    Derived,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float64,
    SqlTable,
    String,
    UnknownDefinition,
)
from toque.functions import Context, use_context
from toque.functions.features import (
    RefreshError,
    build_training_set,
    load_source,
    refresh_features,
    source_status,
    training_set_lineage,
    version_origins,
)
from toque.functions.maintenance.erasure.jobs import erase_subject
from toque.functions.runtime.errors import MissingSecret
from toque.registry import InvalidInput, Lineage, Table, open_store

plane = Entity("plane", dtype=String)
COLUMNS = [Field("plane", String), Field("delay", Float64)]


def view(name: str, source: BatchSource) -> FeatureView:
    return FeatureView(name, [plane], [Field("delay", Float64)], events=source)


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    files = BatchSource("files", CsvFiles(f"{tmp_path}/*.csv"), COLUMNS, "at", owner="ops")
    sql = BatchSource("warehouse", SqlTable("$WAREHOUSE_URL", "flights", "seq"), COLUMNS, "at")
    url = f"file://{tmp_path}/store"
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    with use_context(Context(open_store(url), url, secrets_dir=str(secrets), actor="ada")) as context:
        context.features().apply([view("flown", files), view("sold", sql)])
        (tmp_path / "a.csv").write_text("plane,at,delay\nN1,2013-01-01T00:00Z,5\n")
        yield context


def test_views_are_refreshed_and_one_source_that_fails_stops_no_other(ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(MissingSecret, match="WAREHOUSE_URL"):
        load_source("warehouse")
    (tmp_path / "secrets" / "WAREHOUSE_URL").write_text(f"sqlite:///{tmp_path}/no/such/folder/flights.db")
    with pytest.raises(RefreshError, match="batch source 'warehouse': flights cannot be read"):
        refresh_features()
    assert ctx.features().offline.read(ctx.features().get_feature_view("flown")).num_rows == 1
    database = sqlite3.connect(tmp_path / "flights.db")
    database.execute("CREATE TABLE flights (plane TEXT, at TEXT, delay REAL, seq INTEGER)")
    database.execute("INSERT INTO flights VALUES ('N1', '2013-01-01T00:00:00Z', 5, 1)")
    database.commit()
    (tmp_path / "secrets" / "WAREHOUSE_URL").write_text(f"sqlite:///{tmp_path}/flights.db")
    done = refresh_features()
    assert [(each.source, each.rows) for each in done.loads] == [("warehouse", 1)]
    assert {each.view: each.rows for each in done.views} == {"flown": 0, "sold": 1}
    assert refresh_features(["flown"]).loads == []
    with pytest.raises(UnknownDefinition, match="nothing"):
        refresh_features(["nothing"])


def test_the_status_tells_what_was_loaded_and_who_uses_it(ctx: Context) -> None:
    load_source("files")
    files, warehouse = source_status()
    assert (files.source, files.owner, files.views) == ("files", "ops", ["flown"])
    assert files.reads.startswith("csv /")
    assert [(each.number, each.rows) for each in files.loads] == [(1, 1)]
    assert (warehouse.reads, warehouse.loads) == ("sql $WAREHOUSE_URL", [])
    assert [each.source for each in source_status(["warehouse"])] == ["warehouse"]


def test_a_range_is_loaded_again_into_source_and_views(ctx: Context, tmp_path: Path) -> None:
    source = BatchSource("named", CsvFiles(f"{tmp_path}/*.csv"), COLUMNS, "at", unique=["plane"])
    ctx.features().apply([view("again", source)])
    refresh_features(["again"])
    (tmp_path / "a.csv").write_text("plane,at,delay\nN1,2013-01-01T00:00Z,6\nN1,2013-02-01T00:00Z,7\n")
    january = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 2, 1, tzinfo=UTC)
    assert [load_source("named", *january).rows for _ in range(2)] == [1, 0]  # type: ignore[union-attr]
    (tmp_path / "a.csv").write_text("plane,at,delay\nN1,2013-01-01T00:00Z,6\nN1,2013-02-01T00:00Z,8\n")
    done = refresh_features(["again"], january[1])
    assert [(each.rows, each.known) for each in done.loads] == [(1, 0)]
    asked = pa.table({"plane": ["N1"] * 2, "event_timestamp": [january[0], january[1]]})
    found = ctx.features().get_historical_features(asked, features=["again:delay"]).to_arrow()
    assert found["delay"].to_pylist() == [6.0, 8.0]


@pytest.mark.parametrize("load", [lambda end: load_source("files", end=end), lambda end: refresh_features(end=end),
                                  lambda end: refresh_features([], end=end)])  # fmt: skip
def test_a_range_without_a_start_is_refused_and_nothing_is_loaded(
    ctx: Context, load: Callable[[datetime], object]
) -> None:
    with pytest.raises(InvalidInput, match=r"end=2013-02-01.*give start"):
        load(datetime(2013, 2, 1, tzinfo=UTC))
    assert source_status(["files"])[0].loads == []


def test_a_version_is_traced_back_to_the_files_of_its_sources(ctx: Context, tmp_path: Path) -> None:
    features = ctx.features()
    features.apply([FeatureService("late", [features.get_feature_view("flown")])])
    times = [datetime(2013, 1, day, tzinfo=UTC) for day in (2, 3)]
    asked = Table(ctx.store, "asked").append(
        pa.table({"plane": ["N1"] * 2, "event_timestamp": times, "y": [1.0, 2.0]})
    )

    def trained() -> str:
        made = build_training_set("late", asked, "y", times[0], datetime(2014, 1, 1, tzinfo=UTC))
        (tmp_path / "weights").write_bytes(b"w")
        lineage = Lineage(datasets=[made, asked])
        version = ctx.registry().create_version("late", tmp_path / "weights", lineage=lineage)
        return str(version.version)

    ctx.registry().create_model("late")
    refresh_features(["flown"])
    first = trained()
    (tmp_path / "b.csv").write_text("plane,at,delay\nN1,2013-01-05T00:00Z,9\n")
    load_source("files")  # not in the view yet, so not in a training set either
    second = trained()
    refresh_features(["flown"])
    third = trained()
    found = [version_origins("late", int(each)).datasets for each in (first, second, third)]
    assert [each[1].training_set for each in found] == [None] * 3
    sources = [each[0].training_set.sources["files"] for each in found if each[0].training_set]
    assert [(each.load, each.rows) for each in sources] == [(1, 1), (1, 1), (2, 2)]
    assert [Path(each).name for each in sources[2].read] == ["b.csv", "a.csv"]
    assert (sources[2].first, sources[2].last) == (
        datetime(2013, 1, 1, tzinfo=UTC),
        datetime(2013, 1, 5, tzinfo=UTC),
    )
    assert sources[2].reads["type"] == "csv"


def test_an_erasure_reaches_rows_that_were_kept_aside(ctx: Context, tmp_path: Path) -> None:
    named = BatchSource(
        "their_names",
        CsvFiles(f"{tmp_path}/*.csv"),
        COLUMNS,
        "at",
        columns={"plane": "tail"},
        bad_share=1.0,
    )
    ctx.features().apply([named])
    lines = ["N7,2013-01-01T00:00Z,late", "N70,2013-01-01T00:00Z,late", "N7,torn", 'N70,"torn"']
    (tmp_path / "a.csv").write_text("\n".join(["tail,at,delay", *lines, ""]))
    assert load_source("their_names").rejected == 4  # type: ignore[union-attr]
    certificate = erase_subject({"plane": "N7"})
    assert certificate.left == []
    left = ctx.features().source_table("their_names").rejected.read().column("row").to_pylist()
    assert sorted("N70" in each for each in left) == [True, True]


def test_one_refresh_brings_a_load_through_views_that_are_derived_from_each_other(
    ctx: Context, tmp_path: Path
) -> None:
    features = ctx.features()
    flown = features.get_feature_view("flown")
    double = FeatureView("a_double", [plane], source=Derived([flown], [Field("double", Float64)], _double))
    more = FeatureView("a_derived_of_it", [plane], source=Derived([double], [Field("more", Float64)], _more))
    features.apply([FeatureService("late", [more])])
    done = refresh_features(["a_derived_of_it"])
    assert [(each.view, each.source, each.rows) for each in done.views] == [
        ("flown", "files", 1),
        ("a_double", "flown", 1),
        ("a_derived_of_it", "a_double", 1),
    ]
    at = datetime(2014, 1, 1, tzinfo=UTC)
    asked = Table(ctx.store, "asked").append(pa.table({"plane": ["N1"], "event_timestamp": [at], "y": [1.0]}))
    made = build_training_set("late", asked, "y", at, datetime(2015, 1, 1, tzinfo=UTC))
    assert Table(ctx.store, made.name).read()["more"].to_pylist() == [11.0]
    lineage = training_set_lineage(made)
    assert lineage.sources["files"].load == 1
    assert set(lineage.views) == {"flown", "a_double", "a_derived_of_it"}


def _double(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(double=pl.col("delay") * 2)


def _more(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(more=pl.col("double") + 1)
