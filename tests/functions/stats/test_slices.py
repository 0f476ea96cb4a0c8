import numpy as np
import pytest
from scipy import stats

from toque.functions.stats import ratio
from toque.functions.stats.slices import _contrast, slices_above, worst_slices


def table(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    return {
        "carrier": rng.choice(np.array(["AA", "UA", "DL", None], object), rows, p=[0.4, 0.3, 0.2, 0.1]),
        "hour": rng.permutation(rows) % 24,
        "wind": np.where(rng.random(rows) < 0.05, np.nan, rng.exponential(10, rows)),
        "origin": rng.choice(["JFK", "LGA", "EWR"], rows),
    }


def test_the_test_of_independent_rows_is_that_of_welch_in_large_samples():
    rng = np.random.default_rng(0)
    loss, cell = rng.exponential(1.0, 4_000), (np.arange(4_000) < 1_500).astype(np.int64)
    found = _contrast(loss, cell, np.zeros(4_000, np.int64), np.arange(4_000))
    expected = stats.ttest_ind(loss[cell == 1], loss[cell == 0], equal_var=False, alternative="greater")
    assert found.p[1] == pytest.approx(expected.pvalue, rel=0.02)
    assert found.mean[1] == pytest.approx(loss[:1_500].mean())
    assert found.rest[1] == pytest.approx(loss[1_500:].mean())


def test_units_that_span_a_slice_and_its_rest_are_summed_by_definition():
    rng = np.random.default_rng(1)
    loss, unit, cell = rng.random(60), rng.integers(0, 12, 60), rng.integers(0, 2, 60)
    found = _contrast(loss, cell, np.zeros(60, np.int64), unit)
    inside, n, r = cell == 1, (cell == 1).sum(), (cell == 0).sum()
    mean, rest = loss[inside].mean(), loss[~inside].mean()
    influence = np.where(inside, (loss - mean) / n, -(loss - rest) / r)
    variance = sum(influence[unit == u].sum() ** 2 for u in range(12))
    few = min(len(set(unit[inside])), len(set(unit[~inside])))
    z = (mean - rest) / np.sqrt(variance * few / (few - 1))
    assert found.p[1] == pytest.approx(stats.t.sf(z, few - 1))


@pytest.mark.parametrize("units", [None, 40])
def test_where_no_slice_is_worse_none_is_found_more_often_than_declared(units: int | None):
    # 60 null runs of some 90 slices each at level .05: runs with any <= .05 + 4 s.e. = .163
    rng = np.random.default_rng(2)
    loud = 0
    for _ in range(60):
        rows = 1_500
        unit = None if units is None else rng.integers(0, units, rows)
        shared = 0.0 if unit is None else rng.exponential(0.5, units)[unit]
        found = worst_slices(rng.exponential(0.5, rows) + shared, table(rng, rows), unit=unit)
        assert found.tested > 60
        loud += bool(found.slices)
    assert loud / 60 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 60)


def test_days_that_differ_are_not_taken_for_a_bad_column():
    rng = np.random.default_rng(3)
    day = np.repeat(np.arange(30), 100)
    hot = rng.normal(20, 8, 30)[day]  # one value a day
    loss = rng.exponential(0.5, 3_000) + rng.exponential(1.0, 30)[day]
    assert worst_slices(loss, {"hot": hot}, unit=day, min_units=5).slices == ()
    naive = worst_slices(loss, {"hot": hot}).slices
    assert naive  # as rows they look like a hundred witnesses a day


def test_the_bad_slice_is_found_and_named_first():
    rng = np.random.default_rng(4)
    data = table(rng, 8_000)
    bad = (data["carrier"] == "UA") & (data["hour"] > 17)
    loss = rng.exponential(0.4, 8_000) + 0.5 * bad
    found = worst_slices(loss, data)
    assert found.slices[0].where in {("carrier = UA", "hour > 17"), ("carrier = UA",)}
    pair = next(one for one in found.slices if len(one.where) == 2)
    assert pair.where == ("carrier = UA", "hour > 17")
    assert pair.rows == bad.sum()
    assert pair.mean - pair.rest == pytest.approx(0.5, abs=0.06)
    assert {one.where for one in found.slices if len(one.where) == 2} == {pair.where}
    assert "carrier = UA and hour > 17: loss" in pair.text
    assert found.slices == worst_slices(loss, data, min_excess=0.05).slices[: len(found.slices)]


def test_a_pair_that_says_no_more_than_its_column_is_left_out():
    rng = np.random.default_rng(5)
    data = table(rng, 6_000)
    found = worst_slices(rng.exponential(0.4, 6_000) + 0.3 * (data["origin"] == "LGA"), data)
    assert [one.where for one in found.slices] == [("origin = LGA",)]


def test_missing_values_are_a_slice():
    rng = np.random.default_rng(6)
    data = table(rng, 6_000)
    found = worst_slices(rng.exponential(0.4, 6_000) + 0.4 * np.isnan(data["wind"]), data, depth=1)
    assert [one.where for one in found.slices] == [("wind is missing",)]


def test_constant_columns_few_rows_and_equal_losses_yield_nothing():
    assert worst_slices([1.0] * 200, {"a": np.arange(200), "b": ["x"] * 200}).slices == ()
    few = worst_slices(np.arange(20.0), {"a": np.arange(20)})
    assert (few.tested, few.rows) == (0, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: worst_slices([], {}), "at least one row"),
        (lambda: worst_slices([1.0], {"a": [1.0]}, depth=3), "depth of 1 or 2"),
        (lambda: worst_slices([np.nan], {"a": [1.0]}), "is nan"),
        (lambda: worst_slices([1.0], {"a": [1.0, 2.0]}), "column 'a' needs one value a row"),
        (lambda: worst_slices([1.0], {"a": [1.0]}, unit=[1, 2]), "unit needs one value a row"),
    ],
)
def test_what_cannot_be_sliced_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_slice_held_against_a_level_is_tested_by_the_sums_of_its_units():
    rng = np.random.default_rng(9)
    unit, origin = rng.integers(0, 40, 900), rng.choice(["JFK", "LGA"], 900)
    values = rng.normal(0.1, 0.5, 900) + rng.normal(0, 0.3, 40)[unit]
    found = {one.name: one for one in slices_above(values, {"origin": origin}, level=0.05, unit=unit)}
    inside = origin == "JFK"
    sums, sizes = np.bincount(unit[inside], values[inside]), np.bincount(unit[inside]).astype(float)
    by_units = ratio(sums, sizes)
    jfk = found["origin = JFK"]
    assert jfk.mean == pytest.approx(by_units.estimate)
    assert jfk.p == pytest.approx(stats.t.sf((jfk.mean - 0.05) / by_units.standard_error, by_units.n - 1))
    assert found.keys() == {"origin = JFK", "origin = LGA"}
    assert jfk.corrected >= jfk.p
    low, high = jfk.interval(0.025)
    expected = stats.t.interval(0.95, by_units.n - 1, jfk.mean, by_units.standard_error)
    assert (low, high) == pytest.approx(expected)
    assert jfk.interval(jfk.p)[0] == pytest.approx(0.05)  # at this alpha the lower end is the level


def test_an_interval_is_of_a_slice_that_is_held_against_a_level():
    (one, _) = slices_above(np.arange(100.0), {"a": ["x", "y"] * 50})
    with pytest.raises(ValueError, match=r"alpha < 0\.5, got 0\.5"):
        one.interval(0.5)
    loss = np.repeat([0.0, 1.0], 50) + np.random.default_rng(0).normal(0, 0.1, 100)
    (worse,) = worst_slices(loss, {"a": ["x"] * 50 + ["y"] * 50}).slices
    with pytest.raises(ValueError, match="a = y: need a slice of slices_above"):
        worse.interval(0.05)


def pair_of_equals(
    rng: np.random.Generator, rows: int, rate: float, *, high: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the excess of a version whose expected log loss is the reference's on each row, by both labels, and the labels."""
    low, top = rate * np.exp(rng.normal(-0.3, 0.05, rows)), rate * np.exp(rng.normal(0.3, 0.05, rows))
    ours, theirs = (top, low) if high else (low, top)
    if_not, if_so = -np.log1p(-ours) + np.log1p(-theirs), -np.log(ours) + np.log(theirs)
    return if_not, if_so, rng.random(rows) < if_not / (if_not - if_so)


@pytest.mark.parametrize("high", [True, False])
@pytest.mark.parametrize(
    ("slices", "rows"), [(2, 100), (8, 100), (20, 100), (8, 250), (20, 500), (8, 1_000), (4, 5_000)]
)
@pytest.mark.parametrize("rate", [0.005, 0.0144, 0.05, 0.2, 0.5])
def test_a_version_that_is_nowhere_worse_passes_however_rare_the_outcome(
    rate: float, slices: int, rows: int, *, high: bool
):
    # 100 null runs at level .05: runs with any <= .05 + 3 s.e. = .115
    rng, place = np.random.default_rng([7, slices, rows]), np.repeat(np.arange(slices).astype(str), rows)
    loud = 0
    for _ in range(100):
        if_not, if_so, late = pair_of_equals(rng, slices * rows, rate, high=high)
        possible = float(max(np.abs(if_not).max(), np.abs(if_so).max()))
        found = slices_above(np.where(late, if_so, if_not), {"place": place}, possible=possible)
        loud += found[0].corrected <= 0.05
    assert loud / 100 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)


@pytest.mark.parametrize(("rate", "rows"), [(0.0144, 1_000), (0.05, 250), (0.2, 1_000)])
def test_a_slice_of_a_rare_outcome_that_is_worse_is_found(rate: float, rows: int):
    # the version says too little, and on one slice of eight the outcome comes three times as often
    rng, place, power = np.random.default_rng(8), np.repeat(np.arange(8).astype(str), rows), 0
    for _ in range(50):
        if_not, if_so, late = pair_of_equals(rng, 8 * rows, rate, high=False)
        late[:rows] |= rng.random(rows) < 2 * rate
        possible = float(max(np.abs(if_not).max(), np.abs(if_so).max()))
        found = slices_above(np.where(late, if_so, if_not), {"place": place}, possible=possible)
        power += found[0].corrected <= 0.05 and found[0].name == "place = 0"
    assert power >= 45
