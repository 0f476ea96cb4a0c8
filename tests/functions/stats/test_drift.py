import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toque.functions.stats import TableSketch, benjamini_hochberg, drift, holm, k_of_n, one_row_per_unit
from toque.functions.stats.drift import (
    ColumnSketch,
    compare,
    compare_categories,
    compare_histograms,
    compare_rates,
    psi,
)


def frame(rng: np.random.Generator, rows: int, *, shift: float = 0.0, nulls: float = 0.0) -> pa.Table:
    x = rng.standard_normal(rows) + shift
    return pa.table(
        {
            "x": pa.array(np.where(rng.random(rows) < nulls, np.nan, x)),
            "count": rng.poisson(1.0, rows),
            "late": rng.random(rows) < 0.3,
            "carrier": pa.array(rng.choice(["AA", "B6", "DL", "UA"], rows)),
            "tail": pa.array(rng.zipf(1.5, rows).astype(str)),
        }
    )


@given(st.lists(st.integers(0, 400), max_size=4), st.integers(0, 3))
@settings(max_examples=20)
def test_sketches_of_any_parts_add_up_to_the_sketch_of_the_whole(cuts: list[int], seed: int):
    rng = np.random.default_rng(seed)
    reference = TableSketch.reference(frame(rng, 300), vocabulary=40)
    table = frame(rng, 400, nulls=0.1)
    bounds = [0, *sorted(cuts), 400]
    parts = [reference.window(table.slice(a, b - a)) for a, b in itertools.pairwise(bounds)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole = reference.window(table)
    for name, column in whole.columns.items():
        assert total.columns[name].counts == column.counts
        assert total.columns[name].nulls == column.nulls
        assert math.isclose(total.columns[name].moments.mean, column.moments.mean, abs_tol=1e-9)
    stored = TableSketch.from_dict(json.loads(json.dumps(total.to_dict())))
    assert stored == total


def test_chi_squared_is_that_of_scipy():
    a, b = np.array([30, 50, 20]), np.array([60, 20, 40])
    expected = stats.chi2_contingency(np.stack([a, b]), correction=False)
    assert compare_categories(a, b).p == pytest.approx(stats.chi2.sf(expected.statistic * 219 / 220, 2))
    assert compare_categories(a, b).effect == pytest.approx(1 / 3)  # |.5 - 1/6| is the one fall


def test_the_distance_is_that_of_kolmogorov_and_smirnov():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 12, 400), rng.integers(1, 13, 300)
    got = compare_histograms(np.bincount(a, minlength=13), np.bincount(b, minlength=13))
    assert got.effect == pytest.approx(stats.ks_2samp(a, b).statistic)


@pytest.mark.parametrize(("hits", "totals"), [((1, 6), (40, 30)), ((0, 3), (500, 60)), ((5, 5), (9, 11))])
def test_small_counts_are_judged_by_fishers_exact_test(hits: tuple[int, int], totals: tuple[int, int]):
    table = [[hits[0], totals[0] - hits[0]], [hits[1], totals[1] - hits[1]]]
    assert compare_rates(hits, totals).p == pytest.approx(stats.fisher_exact(table).pvalue)


def test_corrections_are_those_of_scipy_and_of_a_hand():
    p = np.random.default_rng(0).random(20) ** 2
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p, method="bh"))
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        benjamini_hochberg([0.5, 1.5])


def test_psi_by_hand():
    # .5/.5 against .8/.2: (.3)·ln(1.6) + (−.3)·ln(.4)
    assert psi([50, 50], [80, 20]) == pytest.approx(0.3 * math.log(1.6) - 0.3 * math.log(0.4))


# Families of 5 columns at level 5 %: 200 null runs, at most .05 + 4 s.e. = .1117 of them.
@pytest.mark.parametrize(("reference", "window"), [(60, 60), (100, 4_000), (4_000, 100), (2_000, 2_000)])
def test_the_same_distribution_alarms_no_more_often_than_declared(reference: int, window: int):
    rng = np.random.default_rng(reference + window)
    alarms = 0
    for _ in range(200):
        sketch = TableSketch.reference(frame(rng, reference, nulls=0.02))
        again = sketch.window(frame(rng, window, nulls=0.02))
        alarms += bool(compare(sketch, again, min_effect=0.0, min_null_change=0.0).drifted)
    assert alarms / 200 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 200)


def counted(rng: np.random.Generator, columns: int, rows: int) -> TableSketch:
    """Sketches as of `rows` rows: 20 cells of equal chance a column, one in three with ties that make one cell a third."""
    edges, even, tied = tuple(map(float, range(21))), np.full(20, 0.05), np.array([1 / 3, *[2 / 57] * 19])
    draws = {f"c{n}": rng.multinomial(rows, even if n % 3 else tied).tolist() for n in range(columns)}
    return TableSketch(
        {name: ColumnSketch("numeric", edges, tuple(counts)) for name, counts in draws.items()}
    )


# Families of 1 and 100 columns at level 5 %, up to a million rows: 80 null runs, at most .05 + 4 s.e. = .147 of them.
@pytest.mark.parametrize("columns", [1, 100])
@pytest.mark.parametrize(
    ("reference", "window"), [(1_000_000, 50), (1_000_000, 1_000_000), (5_000, 1_000_000)]
)
def test_wide_and_long_tables_alarm_no_more_often_either(columns: int, reference: int, window: int):
    rng = np.random.default_rng(reference + window + columns)
    alarms = sum(
        bool(compare(counted(rng, columns, reference), counted(rng, columns, window), min_effect=0.0).drifted)
        for _ in range(80)
    )
    assert alarms / 80 <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 80)


def test_a_shift_of_a_fifth_of_a_deviation_in_one_of_20_columns_is_found():
    rng = np.random.default_rng(5)
    found = 0
    for _ in range(20):
        columns = {f"c{n}": rng.standard_normal(5_000) for n in range(20)}
        sketch = TableSketch.reference(pa.table(columns))
        moved = {name: rng.standard_normal(5_000) + 0.2 * (name == "c7") for name in columns}
        found += compare(sketch, sketch.window(pa.table(moved))).drifted == ("c7",)
    assert found >= 18


def test_an_outlier_hides_nothing_and_is_nothing():
    rng = np.random.default_rng(0)
    sketch = TableSketch.reference(pa.table({"x": np.append(rng.standard_normal(5_000), 1e9)}))
    same = pa.table({"x": np.append(rng.standard_normal(5_000), [1e9, -np.inf, np.inf])})
    moved = pa.table({"x": np.append(rng.standard_normal(5_000) + 0.3, 1e9)})
    assert compare(sketch, sketch.window(same)).verdict == "stable"
    assert compare(sketch, sketch.window(moved)).drifted == ("x",)


def test_a_difference_that_does_not_matter_is_no_drift():
    rng = np.random.default_rng(0)
    sketch = TableSketch.reference(pa.table({"x": rng.standard_normal(200_000)}))
    column = compare(sketch, sketch.window(pa.table({"x": rng.standard_normal(200_000) + 0.05}))).columns[0]
    assert column.status == "stable"
    assert column.q is not None
    assert column.q < 1e-6


def test_few_rows_are_an_answer():
    rng = np.random.default_rng(0)
    sketch = TableSketch.reference(frame(rng, 500))
    report = compare(sketch, sketch.window(frame(rng, 10, shift=5.0)))
    assert report.verdict == "insufficient"
    assert not report.sufficient
    assert "10 in the window" in report.columns[0].reason
    assert compare(sketch, sketch.window(frame(rng, 0))).verdict == "insufficient"


@pytest.mark.parametrize("what", ["absent", "null", "text"])
def test_a_broken_column_is_named_and_raises_nothing(what: str):
    rng = np.random.default_rng(0)
    sketch = TableSketch.reference(frame(rng, 500))
    table = frame(rng, 500).drop_columns("x")
    if what == "null":
        table = table.append_column("x", pa.nulls(500, pa.float64()))
    if what == "text":
        table = table.append_column("x", pa.array(["n/a"] * 500))
    report = compare(sketch, sketch.window(table))
    by_name = {column.column: column for column in report.columns}
    assert by_name["x"].status == "vanished"
    assert by_name["x"].null_change == 1.0
    assert report.drifted == ("x",)


def test_nulls_and_constants_and_new_categories():
    rng = np.random.default_rng(0)
    sketch = TableSketch.reference(frame(rng, 2_000))
    table = frame(rng, 2_000, nulls=0.2)
    table = table.set_column(1, "count", pa.array([7] * 2_000))
    table = table.set_column(3, "carrier", pa.array([f"new{n}" for n in range(2_000)]))
    report = {column.column: column for column in compare(sketch, sketch.window(table)).columns}
    assert report["x"].status == "drifted"
    assert report["x"].null_change == pytest.approx(0.2, abs=0.03)
    assert report["count"].status == "drifted"
    assert report["carrier"].status == "drifted"
    assert report["carrier"].unknown_change == 1.0
    assert report["tail"].status == report["late"].status == "stable"


def test_constant_and_empty_references():
    table = pa.table({"constant": [1.0] * 100, "nothing": pa.nulls(100, pa.float64())})
    sketch = TableSketch.reference(table)
    assert [c.status for c in compare(sketch, sketch.window(table)).columns] == ["stable", "insufficient"]
    changed = pa.table({"constant": [2.0] * 100, "nothing": [1.0] * 100})
    assert compare(sketch, sketch.window(changed)).drifted == ("constant", "nothing")


def test_more_categories_than_the_vocabulary_share_cells_by_hash():
    rng = np.random.default_rng(0)
    words = pa.table({"w": pa.array(rng.integers(0, 5_000, 20_000).astype(str))})
    sketch = TableSketch.reference(words, vocabulary=100, buckets=32)
    assert sketch.columns["w"].kind == "hashed"
    assert compare(sketch, sketch.window(words)).verdict == "stable"
    few = pa.table({"w": pa.array(rng.integers(0, 20, 20_000).astype(str))})
    assert compare(sketch, sketch.window(few)).drifted == ("w",)


def test_sketches_over_different_bins_do_not_mix():
    rng = np.random.default_rng(0)
    a, b = TableSketch.reference(frame(rng, 100)), TableSketch.reference(frame(rng, 100))
    with pytest.raises(ValueError, match="different bins"):
        a + b
    with pytest.raises(ValueError, match="different bins"):
        compare(a, b)
    with pytest.raises(ValueError, match="different columns"):
        compare(a, TableSketch.reference(frame(rng, 100).select(["x"])))
    with pytest.raises(ValueError, match="different columns"):
        a + TableSketch.reference(frame(rng, 100).select(["x"]))


def test_one_row_a_unit():
    table = pa.table({"plane": ["a", "a", "b", "a", None, None], "x": range(6)})
    kept = one_row_per_unit(table, "plane", rng=np.random.default_rng(0))
    assert kept["plane"].to_pylist() in (["a", "b", None], ["b", "a", None])
    assert len(one_row_per_unit(table.slice(0, 0), "plane", rng=np.random.default_rng(0))) == 0


def test_k_of_n_windows():
    assert k_of_n([False, True, True], k=2, n=3)
    assert not k_of_n([True, True, False, False], k=2, n=3)
    assert not k_of_n([], k=1, n=1)
    with pytest.raises(ValueError, match="1 <= k <= n"):
        k_of_n([True], k=0, n=2)


@pytest.mark.parametrize(
    ("a", "b", "message"), [([1], [1, 2], "same cells"), ([0, 0], [1, 2], "need a value")]
)
def test_what_cannot_be_compared_is_refused(a: list[int], b: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        drift.compare_histograms(a, b)
