import numpy as np
import pytest
from scipy import stats

from toque.functions.stats.multivariate import _aucs, _mmd_squared, domain_classifier, mmd


def table(
    rng: np.random.Generator, rows: int, *, shift: float = 0.0, turned: float = 0.5
) -> dict[str, np.ndarray]:
    """Two correlated columns, a heavy-tailed one with gaps, one of counts, and a category."""
    a, b = rng.multivariate_normal([0, 0], [[1, turned], [turned, 1]], rows).T
    tail = rng.standard_cauchy(rows)
    return {
        "a": a,
        "b": b,
        "tail": np.where(rng.random(rows) < 0.1, np.nan, tail),
        "count": rng.poisson(1.0, rows) + (rng.random(rows) < shift),
        "kind": rng.choice(np.array(["x", "y", "z", None], object), rows),
    }


@pytest.mark.parametrize(("n", "m"), [(60, 60), (300, 30), (30, 300)])
def test_equal_samples_of_unequal_sizes_are_told_apart_as_seldom_as_declared(n: int, m: int):
    # 150 null runs at level .1: rejections <= .1 + 4 s.e. = .198; at the median .5 ± 4 s.e.
    rng = np.random.default_rng(n)
    p = np.array(
        [
            domain_classifier(table(rng, n), table(rng, m), rng=rng, folds=3, permutations=39).p
            for _ in range(150)
        ]
    )
    assert (p <= 0.1).mean() <= 0.1 + 4 * np.sqrt(0.1 * 0.9 / 150)
    assert abs((p <= 0.5).mean() - 0.5) <= 4 * np.sqrt(0.25 / 150)


def test_a_shift_is_found_and_named():
    rng = np.random.default_rng(1)
    found = domain_classifier(table(rng, 2_000), table(rng, 500, shift=0.4), rng=rng)
    assert found.p == 1 / 200
    assert found.changed() == ("count",)
    assert 0.55 < found.auc < 0.65
    assert (found.rows_reference, found.rows_window) == (2_000, 500)


def test_a_correlation_that_turned_is_found_where_no_column_shows_it():
    rng = np.random.default_rng(2)
    x, y = table(rng, 2_000), table(rng, 500, turned=-0.5)
    assert all(stats.ks_2samp(x[name], y[name]).pvalue > 0.01 for name in "ab")
    found = domain_classifier(x, y, rng=rng)
    assert found.p == 1 / 200
    assert set(found.changed()) == {"a", "b"}


def test_values_that_went_missing_a_new_category_and_an_outlier_are_found_and_named():
    rng = np.random.default_rng(3)
    for name, broken in (
        ("tail", lambda v: np.where(rng.random(len(v)) < 0.5, np.nan, v)),
        ("kind", lambda v: np.where(rng.random(len(v)) < 0.3, "new", v)),
        ("a", lambda v: np.where(rng.random(len(v)) < 0.3, np.inf, v)),
    ):
        window = table(rng, 500)
        window[name] = broken(window[name])
        window["b"][0] = 1e9
        found = domain_classifier(table(rng, 2_000), window, rng=rng)
        assert found.changed()[0] == name


def test_quiet_samples_have_changed_in_nothing():
    rng = np.random.default_rng(4)
    assert domain_classifier(table(rng, 500), table(rng, 500), rng=rng).changed() == ()


def test_the_auc_is_that_of_mann_and_whitney():
    rng = np.random.default_rng(5)
    score, label = rng.integers(0, 12, 90).astype(float), np.arange(90) >= 60
    both = np.stack([label, ~label], axis=1)
    expected = stats.mannwhitneyu(score[label], score[~label]).statistic / (60 * 30)
    assert _aucs(np.stack([score, score], axis=1), both) == pytest.approx([expected, 1 - expected])


@pytest.mark.parametrize(("n", "m"), [(30, 30), (90, 15)])
def test_mmd_rejects_equal_samples_as_seldom_as_declared(n: int, m: int):
    # 200 null runs at level .05: rejections <= .05 + 4 s.e. = .112; permutations make it exact at any sizes
    rng = np.random.default_rng(n)
    p = [
        mmd(rng.standard_t(3, (n, 8)), rng.standard_t(3, (m, 8)), rng=rng, permutations=99).p
        for _ in range(200)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(np.array(p) <= 0.5) > 0.4


def test_mmd_finds_embeddings_that_moved_or_spread():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(3_000, 16))
    assert mmd(x, rng.normal(0.25, 1, (200, 16)), rng=rng).p <= 0.01
    assert mmd(x, rng.normal(0, 1.3, (200, 16)), rng=rng).p <= 0.01
    assert mmd(x, x[:200], rng=rng).rows_reference == 1_000


def test_the_squared_discrepancy_by_its_definition():
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(5, 2)), rng.normal(1, 1, (4, 2))
    found = mmd(x, y, rng=rng, permutations=19)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.square(a - b).sum() / (2 * found.bandwidth**2)))

    xx = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert found.squared == pytest.approx(xx + yy - 2 * xy)
    assert _mmd_squared(np.zeros((4, 4)), np.array([[1.0], [1], [0], [0]]), 2, 2) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: domain_classifier({}, {}, rng=r), "at least one"),
        (lambda r: domain_classifier({"a": [1.0] * 20}, {"b": [1.0] * 20}, rng=r), r"differ in \['a', 'b'\]"),
        (lambda r: domain_classifier({"a": [1.0] * 20}, {"a": [1.0] * 4}, rng=r), "folds need 10 rows"),
        (
            lambda r: domain_classifier({"a": [1.0] * 20, "b": [1.0]}, {"a": [1.0], "b": [1.0]}, rng=r),
            "one length",
        ),
        (lambda r: mmd([[1.0]], [[1.0], [2.0]], rng=r), "at least 2 rows"),
        (lambda r: mmd([[1.0], [np.nan]], [[1.0], [2.0]], rng=r), "finite"),
        (lambda r: mmd([[1.0], [2.0]], [[1.0, 2.0], [2.0, 1.0]], rng=r), "one width"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))


def test_constant_columns_and_equal_vectors_are_no_difference():
    rng = np.random.default_rng(8)
    same = domain_classifier(
        {"a": [1.0] * 40, "k": [None] * 40}, {"a": [1.0] * 20, "k": [None] * 20}, rng=rng
    )
    assert (same.auc, same.p) == (0.5, 1.0)
    assert mmd(np.ones((20, 3)), np.ones((10, 3)), rng=rng).p == 1.0
