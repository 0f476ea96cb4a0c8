"""Statistics of a view's values, against NumPy and counts by hand, for any batches."""

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from toque.featurestore import (
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    Int64,
    String,
    view_course,
    view_statistics,
)
from toque.featurestore import statistics as module
from toque.featurestore.statistics import statistics

START = datetime(2013, 6, 1, tzinfo=UTC)
view = FeatureView(
    "weather", [Entity("origin")], [Field("temp", Float64), Field("gusts", Int64), Field("sky", String)]
)


def rows(count: int) -> pa.Table:
    rng = np.random.default_rng(3)
    temp = [
        None if n % 10 == 0 else float("nan") if n % 10 == 1 else x
        for n, x in enumerate(rng.normal(1e6, 2.0, count))
    ]
    return pa.table(
        {
            "temp": pa.array(temp, pa.float64()),
            "gusts": rng.integers(0, 5, count),
            "sky": pa.array(["clear" if n % 4 else None if n % 8 else "haze" for n in range(count)]),
        }
    )


@pytest.mark.parametrize("size", [1, 70, 1_000])
def test_all_figures_are_numpys_whatever_the_pieces(size: int) -> None:
    table = rows(1_000)
    temp, gusts, sky = statistics(view, [table.slice(at, size) for at in range(0, 1_000, size)])
    there = np.array([x for x in table["temp"].to_pylist() if x is not None and not math.isnan(x)])
    assert (temp.rows, temp.values, len(there)) == (1_000, 800, 800)
    assert temp.distinct == pytest.approx(800, rel=0.06)
    assert (temp.mean, temp.std) == pytest.approx((there.mean(), there.std(ddof=1)), rel=1e-9)
    assert (temp.least, temp.most) == (there.min(), there.max())
    assert temp.quartiles == pytest.approx(np.quantile(there, [0.25, 0.5, 0.75]))
    assert (len(temp.edges), sum(temp.counts), temp.edges[0]) == (31, 800, there.min())
    assert gusts.edges == (-0.5, 0.5, 1.5, 2.5, 3.5, 4.5)
    assert list(gusts.counts) == np.bincount(table["gusts"].to_numpy()).tolist()
    assert (sky.values, sky.distinct, sky.top) == (875, 2, (("clear", 750 / 875), ("haze", 125 / 875)))
    assert sky.mean is None


def test_infinite_values_are_ignored_and_one_value_has_no_deviation() -> None:
    schema = rows(8).schema
    for table in (
        None,
        schema.empty_table(),
        pa.table({"temp": [None, float("inf")], "gusts": [None, None], "sky": [None, None]}, schema),
    ):
        temp, _, sky = statistics(view, [] if table is None else [table])
        assert (temp.mean, temp.std, temp.quartiles, temp.counts, sky.top) == (None, None, (), (), ())
    temp = statistics(view, [pa.table({"temp": [2.5], "gusts": [1], "sky": ["a"]}, schema)])[0]
    assert (temp.mean, temp.std, temp.edges, temp.counts) == (2.5, None, (2.0, 3.0), (1,))


def test_of_many_rows_an_even_sample_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_ROWS", 50)
    table = pa.table({"temp": np.arange(4_000) / 4_000 + 0.5, "gusts": [0] * 4_000, "sky": ["a"] * 4_000})
    temp = statistics(view, [table.slice(at, 130) for at in range(0, 4_000, 130)], bins=4)[0]
    assert (temp.rows, temp.least, temp.most) == (4_000, 0.5, 0.5 + 3_999 / 4_000)
    assert 50 <= sum(temp.counts) <= 100
    assert max(temp.counts) - min(temp.counts) <= 1
    assert temp.quartiles == pytest.approx((0.75, 1.0, 1.25), abs=0.02)


def test_a_views_newest_span_is_read(offline_fs: FeatureStore) -> None:
    offline_fs.apply([view])
    assert [each.rows for each in view_statistics(offline_fs, view)] == [0, 0, 0]
    offline_fs.write_offline(view, hourly(60))
    temp = view_statistics(offline_fs, "weather", span=timedelta(hours=9))[0]
    assert (temp.rows, temp.least, temp.most) == (10, 50.0, 59.0)


def hourly(count: int) -> list[dict[str, object]]:
    return [
        {
            "origin": "JFK",
            "temp": float(n),
            "gusts": n,
            "sky": "a" if n < 57 else "b",
            "event_timestamp": START + timedelta(hours=n),
        }
        for n in range(count)
    ]


def test_a_course_gives_each_part_of_the_newest_span_its_own_rows(offline_fs: FeatureStore) -> None:
    offline_fs.apply([view])
    assert view_course(offline_fs, view) == []
    given = [each for each in hourly(60) if each["gusts"] not in {50, 51, 52}]
    offline_fs.write_offline(view, given)
    course = view_course(offline_fs, "weather", span=timedelta(hours=12), parts=4)
    found = [(part.features[0].least, part.features[0].most, part.features[0].rows) for part in course]
    assert found == [(47.0, 49.0, 3), (53.0, 53.0, 1), (54.0, 56.0, 3), (57.0, 59.0, 3)]
    assert course[-1].end == START + timedelta(hours=59)
    assert all(part.end - part.start == timedelta(hours=3) for part in course)
    assert [part.features[2].top for part in course[-2:]] == [(("a", 1.0),), (("b", 1.0),)]
    whole = view_statistics(offline_fs, "weather", span=timedelta(hours=12))[0]
    assert sum(part.features[0].values for part in course) == whole.values
    with pytest.raises(ValueError, match="parts=0"):
        view_course(offline_fs, view, parts=0)
