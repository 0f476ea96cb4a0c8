"""Orders of an epoch: every sample once, the same for any reader, any stretch at any time, and as well mixed as stated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toque.functions.training_data.order import InOrder, Shuffle, ShuffledOrder, batch_variance_ratio, drawn

shards = st.lists(st.integers(1, 60), min_size=1, max_size=12)
shuffles = st.builds(
    Shuffle,
    seed=st.integers(-5, 2**40),
    shards_at_once=st.integers(1, 14),
    block_rows=st.integers(1, 20),
    buffer_rows=st.integers(1, 90),
)


def order_of(rows, shuffle, epoch=0):
    return ShuffledOrder(rows, shuffle, epoch=epoch, group=shuffle.group_size([1] * len(rows)))


@given(shards, shuffles, st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_sample_once(rows, shuffle, epoch):
    order = order_of(rows, shuffle, epoch)
    whole = order.stretch(0, len(order))
    assert len(order) == sum(rows)
    assert np.array_equal(np.sort(whole), np.arange(sum(rows)))


@given(shards, shuffles, st.data())
@settings(max_examples=60, deadline=None)
def test_any_stretch_is_a_part_of_the_whole(rows, shuffle, data):
    whole = order_of(rows, shuffle).stretch(0, sum(rows))
    start = data.draw(st.integers(0, sum(rows)))
    stop = data.draw(st.integers(start, sum(rows) + 5))
    assert np.array_equal(order_of(rows, shuffle).stretch(start, stop), whole[start:stop])


@given(shards, shuffles)
@settings(max_examples=50, deadline=None)
def test_samples_stay_in_the_group_of_their_shard(rows, shuffle):
    order, group = order_of(rows, shuffle), shuffle.group_size([1] * len(rows))
    shard_of = np.repeat(np.arange(len(rows)), rows)[order.stretch(0, sum(rows))]
    firsts = [int(np.flatnonzero(shard_of == shard)[0]) for shard in range(len(rows))]
    for at, shard in enumerate(np.argsort(firsts).tolist()):
        ahead = int((np.array(firsts) < np.flatnonzero(shard_of == shard)[-1]).sum())
        assert ahead <= (at // group + 1) * group


def test_epochs_and_seeds_differ_and_repeat():
    found = {
        (seed, epoch): tuple(order_of([50, 50], Shuffle(seed=seed), epoch).stretch(0, 100).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(found.values())) == 4
    assert found[0, 1] == tuple(order_of([50, 50], Shuffle(seed=0), 1).stretch(0, 100).tolist())


def test_the_order_is_that_of_every_release():
    """Positions that were stored must mean the same samples in years; these numbers were written down once."""
    shuffle = Shuffle(seed=3, shards_at_once=2, block_rows=2, buffer_rows=6)
    assert order_of([5, 4, 3], shuffle, 1).stretch(0, 12).tolist() == FIXED


FIXED = [11, 10, 1, 4, 0, 9, 3, 2, 8, 6, 7, 5]


def test_drawn_permutations_are_uniform():
    """4,000 seeds, chi-squared of the place of each of 6 values: 25 degrees of freedom, below 52.6 in 999 of 1,000."""
    places = np.array([drawn(6, seed) for seed in range(4_000)])
    counts = np.array([[(places[:, at] == value).sum() for value in range(6)] for at in range(6)])
    expected = 4_000 / 6
    assert (((counts - expected) ** 2) / expected).sum() < 52.6


@pytest.mark.parametrize(
    ("shuffle", "least", "most"),
    [
        (Shuffle(shards_at_once=100), 0.9, 1.1),  # all shards in one buffer: a uniform permutation
        # Of 10 shards a batch tells about as much as 10 samples: 1 + 64 / 10 * (1 - 10 / 100) = 6.8, here of 160 groups.
        (Shuffle(shards_at_once=10), 5.3, 8.3),
        # A buffer of 25 blocks: 1 + 64 / 25 = 3.6.
        (Shuffle(shards_at_once=100, block_rows=20, buffer_rows=500), 3.0, 4.2),
    ],
)
def test_the_variance_of_batches_is_as_documented(shuffle, least, most):
    ratios = [batch_variance_ratio(order_of([200] * 100, shuffle, epoch), 64) for epoch in range(16)]
    assert least < np.mean(ratios) < most


def test_samples_in_order_are_as_far_from_uniform_as_can_be():
    assert batch_variance_ratio(InOrder(10_000), 100) == pytest.approx(100, rel=0.02)


def test_an_impossible_shuffle_is_refused():
    with pytest.raises(ValueError, match="block_rows=0 of a shuffle must be 1 or more"):
        Shuffle(block_rows=0)
