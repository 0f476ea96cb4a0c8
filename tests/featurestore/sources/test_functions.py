"""The functions of batch sources: one that fails stops no other, and secrets stay secret."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore import (
    BatchSource,
    CsvFiles,
    Entity,
    FeatureView,
    Field,
    Float64,
    SqlTable,
    String,
    UnknownDefinition,
)
from functions import Context, use_context
from functions.features import RefreshError, load_source, refresh_features, source_status
from functions.runtime.errors import MissingSecret
from registry import open_store

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
