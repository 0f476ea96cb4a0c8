"""Mixtures: shares that hold to a sample at the end of every round, and any stretch at any time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.functions.training_data.stream import Shares

weights = st.lists(st.floats(0.001, 50), min_size=1, max_size=6)


@given(weights, st.integers(0, 2**31), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_shares_are_kept(weights, seed, rounds):
    shares = Shares(weights, seed=seed)
    stop = rounds * 97
    sets, before = shares.stretch(0, stop)
    assert len(sets) == stop
    for each in range(len(weights)):
        count = int((sets == each).sum())
        assert before[sets == each].tolist() == list(range(count))  # each set's samples come in their order
    whole = shares._round * 3
    counts = np.bincount(shares.stretch(0, whole)[0], minlength=len(weights))
    wanted = whole * np.array(weights) / sum(weights)
    assert np.abs(counts - wanted).max() <= 1 + 1e-6


@given(weights, st.integers(0, 9_000), st.integers(0, 3_000))
@settings(max_examples=30, deadline=None)
def test_any_stretch_is_a_part_of_the_whole(weights, start, more):
    whole = Shares(weights, seed=5).stretch(0, start + more)
    part = Shares(weights, seed=5).stretch(start, start + more)
    for one, other in zip(whole, part, strict=True):
        assert np.array_equal(one[start:], other)


@pytest.mark.parametrize("wrong", [[], [1.0, 0.0], [-1.0], [float("nan")], [float("inf")]])
def test_impossible_weights_are_refused(wrong):
    with pytest.raises(ValueError, match="of a mixture must be numbers above 0"):
        Shares(wrong, seed=0)
