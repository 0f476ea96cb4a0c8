"""Workers that compute longer than the others are found and named."""

import logging

import pytest
import torch

from toque.functions.training.loop.distributed import SlowWorkers, seconds_of_product
from toque.functions.training.loop.process_group import SingleProcess


class Seen(SingleProcess):
    """One of some workers, whose times are given."""

    def __init__(self, rank, times) -> None:
        super().__init__()
        self.rank, self.size, self.times = rank, len(times), times

    def all_reduce_sum(self, values):
        assert float(values[self.rank]) == self.times[self.rank]
        return torch.tensor(self.times, dtype=torch.float64)


def said(caplog, rank, times, looks=90):
    """Warnings of a worker after so many looks."""
    group = Seen(rank, times)
    found = SlowWorkers(group, probe=lambda _: group.times[rank])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(looks):
            found.look()
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("times", [[1.0, 2.5], [1.0, 2.5, 1.1, 0.9]])
def test_a_slow_worker_is_named_once_by_itself_and_the_first_one(caplog, times):
    (own,), (first,) = said(caplog, 1, times, looks=300), said(caplog, 0, times, looks=300)
    assert f"worker 1 of {len(times)} on " in own
    assert first.startswith(f"worker 1 of {len(times)} computes 2.5 times as long as usual")
    assert not any(said(caplog, rank, times) for rank in range(2, len(times)))


def test_nobody_is_named_who_is_slow_for_a_moment_or_a_little(caplog):
    assert said(caplog, 0, [1.0, 9.0], looks=89) == []
    assert said(caplog, 0, [1.0, 1.9, 1.0]) == []
    assert said(caplog, 0, [3.0]) == []  # alone, none is slower


@pytest.mark.parametrize(
    ("times", "nodes", "least", "left"),
    [
        ([1.0, 2.5, 1.0], "abc", 2, {"b"}),
        ([1.0, 2.5, 1.0], "abc", 3, set()),  # too few are left
        ([1.0, 2.5, 1.0], "abb", 1, set()),  # one alone would be slower than all three
        ([1.0, 4.0, 1.0], "abb", 1, {"b"}),
        ([2.5, 1.0, 9.0, 1.0, 1.0], "abcde", 2, {"a", "c"}),
        ([1.0, 9.0], "aa", 1, set()),
        ([1.0, 9.0], "ab", None, set()),  # all stay
        ([1.0, 1.5], "ab", 1, set()),
    ],
)
def test_all_workers_leave_slow_nodes_at_once_if_enough_others_are_faster(times, nodes, least, left):
    for rank in range(len(times)):
        group = Seen(rank, times)
        found = SlowWorkers(group, lambda _: times[rank], nodes=nodes, least=least)  # noqa: B023 - asked at once
        told = [found.look() for _ in range(90)]
        assert told == [False] * 89 + [bool(left)]
        assert found.left == left


def test_the_product_takes_time():
    assert 0 < seconds_of_product("cpu") < 10
