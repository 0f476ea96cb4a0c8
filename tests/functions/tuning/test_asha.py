"""Who trains next under successive halving: sweeps played through without a network, workers of any speed."""

import heapq
import random

from hypothesis import given
from hypothesis import strategies as st

from toque.functions.tuning.asha import AshaScheduler, rung_after

EPOCHS = 9  # rungs at 1 and 4


class NeverEnds(AshaScheduler):
    """ASHA that lets no trial end early."""

    def pause(self, number):
        super().pause(number)
        self._over -= {each for each, losses in self._losses.items() if len(losses) < EPOCHS}
        return []


def played(scheduler, losses, *, workers=2, speed=None, cut=None, fails=None):
    """Losses that trials reported, in order, as (trial, epoch); ends after `cut` of them. `losses[trial][epoch]`."""
    speed, reports, free, now = speed or random.Random(0), [], workers, 0.0
    training = []

    def begin():
        nonlocal free
        while free and (chosen := scheduler.next()) is not None:
            free -= 1
            heapq.heappush(training, (now + speed.random(), *chosen))

    begin()
    while training and len(reports) != cut:
        now, number, epoch, until = heapq.heappop(training)
        reports.append((number, epoch))
        if (number, epoch) == fails:
            scheduler.fail(number)
        else:
            scheduler.report(number, losses[number][epoch])
            if epoch + 1 < min(until, EPOCHS):
                heapq.heappush(training, (now + speed.random(), number, epoch + 1, until))
                continue
            if epoch + 1 == EPOCHS:
                scheduler.complete(number)
            else:
                scheduler.pause(number)
        free += 1
        begin()
    return reports


def constant(ranks):
    """Losses of trials that never change."""
    return [[float(rank)] * EPOCHS for rank in ranks]


def lengths(reports):
    return {number: sum(each == number for each, _ in reports) for number, _ in reports}


def test_the_best_quarter_is_promoted_from_each_rung():
    reports = played(AshaScheduler(16, {}, ()), constant(range(16)))
    # 16 to their first epoch, 4 of them three more, 1 of those five more
    assert len(reports) == 16 + 4 * 3 + 5
    assert sorted(lengths(reports).items()) == [
        (0, 9), (1, 4), (2, 4), (3, 4), *((number, 1) for number in range(4, 16))
    ]  # fmt: skip


def test_a_trial_is_promoted_before_all_have_begun():
    reports = played(AshaScheduler(16, {}, ()), constant(range(16)), workers=1)
    # four have come to the first rung: the best of them goes on
    assert reports[:7] == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (0, 3)]
    assert reports[7] == (4, 0)


def test_of_few_trials_the_best_trains_to_its_end():
    for count in range(1, 8):
        reports = played(AshaScheduler(count, {}, ()), constant(reversed(range(count))))
        assert lengths(reports)[count - 1] == EPOCHS
        assert len(lengths(reports)) == count


def test_a_trial_that_cannot_be_promoted_any_more_is_reported_at_once():
    scheduler = AshaScheduler(8, {}, ())  # of which two will go on
    gone = []
    for number, loss in enumerate([5.0, 3.0, 4.0, 6.0, 7.0]):
        assert scheduler.next() == (number, 0, 1) or number == 4
        if number < 4:
            scheduler.report(number, loss)
            gone.append(scheduler.pause(number))
    assert gone == [[], [], [0], [3]]


def test_what_a_failed_trial_reported_does_not_count():
    losses = constant(range(4))
    reports = played(AshaScheduler(4, {}, ()), losses, workers=1, fails=(0, 2))
    assert lengths(reports)[0] == 3  # the one that went on has failed
    assert max(lengths(reports).values()) == 3  # the others had been given up
    reports = played(AshaScheduler(4, {}, ()), losses, workers=1, fails=(0, 0))
    assert lengths(reports) == {0: 1, 1: EPOCHS, 2: 1, 3: 1}


def test_rungs_stand_at_powers_of_four():
    assert [rung_after(epochs) for epochs in (0, 1, 2, 3, 4, 15, 16)] == [1, 4, 4, 4, 16, 16, 64]


losses_of_trials = st.integers(1, 40).flatmap(
    lambda count: st.lists(
        st.lists(st.integers(0, 9).map(float), min_size=EPOCHS, max_size=EPOCHS),
        min_size=count,
        max_size=count,
    )
)


@given(losses_of_trials, st.integers(1, 5), st.randoms(use_true_random=False))
def test_all_trials_begin_one_ends_and_the_best_quarter_of_each_rung_is_promoted(losses, workers, speed):
    reports = played(AshaScheduler(len(losses), {}, ()), losses, workers=workers, speed=speed)
    assert len(set(reports)) == len(reports)
    came = lengths(reports)
    assert came.keys() == set(range(len(losses)))
    assert EPOCHS in came.values()
    for rung in (1, 4):
        ranked = sorted((losses[number][rung - 1], number) for number in came if came[number] >= rung)
        assert all(came[number] > rung for _, number in ranked[: len(ranked) // 4])


@given(losses_of_trials, st.integers(1, 5), st.integers(0, 2**32))
def test_ending_hopeless_trials_early_changes_nothing(losses, workers, seed):
    ways = [
        played(way(len(losses), {}, ()), losses, workers=workers, speed=random.Random(seed))
        for way in (AshaScheduler, NeverEnds)
    ]
    assert ways[0] == ways[1]


@given(losses_of_trials, st.integers(1, 5), st.randoms(use_true_random=False), st.integers(0, 60))
def test_an_interrupted_sweep_trains_no_epoch_again(losses, workers, speed, cut):
    scheduler = AshaScheduler(len(losses), {}, ())
    before = played(scheduler, losses, workers=workers, speed=speed, cut=cut)
    known = {number: losses[number][:epochs] for number, epochs in lengths(before).items()}
    after = played(AshaScheduler(len(losses), known, scheduler._over), losses, workers=workers, speed=speed)
    assert len({*before, *after}) == len(before) + len(after)
    assert EPOCHS in lengths(before + after).values()
