import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.functions.stats import CoMoments, Moments

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, max_size=30)


def close(a: Moments, b: Moments) -> bool:
    return a.n == b.n and np.allclose([a.mean, a.m2], [b.mean, b.m2], rtol=1e-9, atol=1e-3)


@given(samples, samples, samples)
def test_moments_of_parts_add_up_to_the_moments_of_the_whole(a: list[float], b: list[float], c: list[float]):
    assert close(Moments.of(a) + Moments.of(b) + Moments.of(c), Moments.of([*a, *b, *c]))
    assert close(Moments.of(a) + (Moments.of(b) + Moments.of(c)), Moments.of([*a, *b, *c]))


@given(st.lists(st.tuples(numbers, numbers), max_size=30), st.integers(0, 30))
def test_comoments_of_parts_add_up_to_those_of_the_whole(pairs: list[tuple[float, float]], cut: int):
    y, x = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    whole, parts = CoMoments.of(y, x), CoMoments.of(y[:cut], x[:cut]) + CoMoments.of(y[cut:], x[cut:])
    assert close(whole.y, parts.y)
    assert close(whole.x, parts.x)
    assert np.isclose(whole.cross, parts.cross, rtol=1e-9, atol=1e-2)
    assert close(whole.combined(2.0, -0.5), Moments.of(2.0 * y - 0.5 * x))


def test_variance_is_that_of_numpy():
    values = np.random.default_rng(0).standard_normal(100)
    assert Moments.of(values).variance == pytest.approx(np.var(values, ddof=1))
    assert CoMoments.of(values, values**2).covariance == pytest.approx(np.cov(values, values**2)[0, 1])


def test_counts_are_the_moments_of_zeros_and_ones():
    assert close(Moments.of_counts(3, 10), Moments.of([1] * 3 + [0] * 7))
    assert Moments.of_counts(0, 0) == Moments()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Moments.of([1.0, float("nan")]), r"values\[1\] is nan"),
        (lambda: Moments.of([[1.0]]), "one-dimensional"),
        (lambda: Moments.of([1.0]).variance, "n >= 2, got n=1"),
        (lambda: CoMoments.of([1.0], [1.0]).covariance, "n >= 2, got n=1"),
        (lambda: CoMoments.of([1.0], [1.0, 2.0]), "1 and 2 values"),
        (lambda: Moments.of_counts(3, 2), "3 of 2"),
    ],
)
def test_what_has_no_answer_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
