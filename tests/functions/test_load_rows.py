"""Loading a user's rows: each batch once, changes only, and a label that becomes known when it is said to."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, Int64
from toque.functions import Context, context, use_context
from toque.functions.features import load_rows
from toque.registry import InvalidInput, Table, open_store

NOW = datetime(2024, 5, 1, tzinfo=UTC)
house = Entity("house", join_keys=[Field("house", Int64)])
view = FeatureView("houses", entities=[house], schema=[Field("area", Float64)])


def rows(areas: list[float | None], prices: list[float | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {"house": range(len(areas)), "area": areas, "price": prices, "event_timestamp": [NOW] * len(areas)},
        schema_overrides={
            "area": pl.Float64,
            "price": pl.Float64,
            "event_timestamp": pl.Datetime("us", "UTC"),
        },
    )


@pytest.fixture
def store(tmp_path: Path):
    opened = open_store(f"file://{tmp_path}")
    clock = iter(NOW + timedelta(hours=hour) for hour in range(1_000))
    with use_context(Context(store=opened, store_url=opened.url, clock=lambda: next(clock))) as used:
        used.features().apply([house, view, FeatureService("houses", [view])])
        yield opened


def load(frame: pl.DataFrame | list[pl.DataFrame], **options: timedelta):
    return load_rows(frame, view=view, entities="houses/entities", label="price", **options)


def test_rows_that_are_there_are_not_written_again(store):
    first = load([rows([1.0, None], [10.0, None]), rows([1.0, None, 3.0], [10.0, None, 30.0]).tail(1)])
    assert (first.rows, first.written, first.labelled) == (3, 3, 2)
    assert load(rows([1.0, None, 3.0], [10.0, None, 30.0])).written == 0


def test_a_row_that_changed_and_changed_back_is_written_each_time(store):
    written = [load(rows([area], [1.0])).written for area in (1.0, 2.0, 1.0, 1.0)]
    assert written == [1, 1, 1, 0]


def test_the_entities_are_replaced_and_their_labels_become_known_after_the_delay(store):
    load(rows([1.0, 2.0], [10.0, 20.0]))
    load(rows([1.0, 2.0], [10.0, 25.0]), label_delay=timedelta(days=2))
    found = pl.DataFrame(Table(store, "houses/entities").read())
    assert found["price"].to_list() == [10.0, 25.0]
    assert found["label_known_at"].to_list() == [NOW + timedelta(days=2)] * 2


def test_rows_of_the_past_count_as_known_at_their_times(store):
    load(rows([1.0], [10.0]))
    fs = context().features()
    assert (
        fs.views_with_known_times("houses") == frozenset()
    )  # loaded now, which says nothing of when they were known


def test_nothing_to_load_is_an_error(store):
    with pytest.raises(InvalidInput, match="no rows to load"):
        load([])
    with pytest.raises(InvalidInput, match="no column 'price'"):
        load(rows([1.0], [1.0]).drop("price"))
