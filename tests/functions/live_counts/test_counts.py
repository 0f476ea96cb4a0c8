from __future__ import annotations

import base64
import json
import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conditions.units import Units, populations
from toque.functions.live_counts import (
    BINS,
    ArmTally,
    End,
    SplitArm,
    Tally,
    WindowCounts,
    bin_of,
    end_of,
    quantile_ms,
)
from toque.functions.live_counts.counts import WINDOW_S, decode, encode, lower_edge_ms, slower
from toque.functions.live_counts.publisher import MAX_UNITS, is_usable

CHAMPION = SplitArm(7, 1, "champion", 0.9)
CANARY = SplitArm(7, 2, "canary", 0.1)


def counted(tally: Tally) -> WindowCounts:
    """What one process sends, as a reader gets it."""
    (arms,) = tally.take().values()
    return decode(encode(arms))


def test_a_tally_comes_back_as_it_was_counted() -> None:
    tally = Tally(lambda: 1_000.0)
    for unit in range(20):
        tally.count(CHAMPION, f"u{unit}", End.ANSWERED, 8.0)
    tally.count(CANARY, "u1", End.ERROR, 0.1)
    tally.count(CANARY, "u2", End.MISSING, 900.0)
    tally.count(CANARY, "u3", End.REFUSED, 1.0)
    found = counted(tally)
    champion, canary = found.of(version=1), found.of(version=2)
    assert (champion.requests, champion.errors.requests, int(champion.latency.sum())) == (20, 0, 20)
    assert (
        canary.requests,
        *(part.requests for part in (canary.errors, canary.missing, canary.refused)),
    ) == (3, 1, 1, 1)
    assert int(canary.latency.sum()) == 1  # the time that an error took is no latency of an answer
    assert quantile_ms(champion.latency, 0.5) == pytest.approx(8.0, rel=0.1)


def test_a_unit_stays_one_beside_all_of_its_requests_that_failed_and_counts_once_a_second_for_its_latency() -> (
    None
):
    now = [1_000.0]
    tally = Tally(lambda: now[0])
    for _ in range(50):
        tally.count(CANARY, "heavy", End.ANSWERED, 5.0)
        tally.count(CANARY, "heavy", End.ERROR, 5.0)
        now[0] += 0.1
    found = counted(tally).of(version=2)
    assert (found.requests, found.errors.requests, len(found.errors.units), int(found.latency.sum())) == (
        100,
        50,
        1,
        5,
    )


def test_processes_and_windows_add_up_and_a_unit_of_two_processes_stays_one() -> None:
    one, two = Tally(lambda: 0.0), Tally(lambda: 0.0)
    for tally in (one, two):
        tally.count(CANARY, "same", End.ERROR, 1.0)
    tally.count(CANARY, "other", End.ERROR, 1.0)
    both = (counted(one) + counted(two)).of(version=2)
    assert (both.requests, both.errors.requests, len(both.errors.units)) == (3, 3, 2)
    assert both.errors.repeats == 1


@settings(max_examples=60)
@given(population=populations(most=50), seed=st.integers(0, 2**32 - 1), processes=st.integers(1, 4))
def test_requests_that_failed_add_up_whoever_made_them_and_wherever_they_were_counted(
    population: Units, seed: int, processes: int
) -> None:
    rng = np.random.default_rng(seed)
    tallies = [Tally(lambda: 0.0) for _ in range(processes)]
    failed = population.draw(rng, 200)
    for unit, process in zip(failed, rng.integers(processes, size=200), strict=True):
        tallies[process].count(CANARY, str(unit), End.ERROR, 1.0)
    parts = [decode(encode(arms)) for tally in tallies for arms in tally.take().values()]
    errors = WindowCounts.sum(parts).of(version=2).errors
    times = np.unique(failed, return_counts=True)[1]
    assert (errors.requests, len(errors.units)) == (200, len(times))
    assert sorted(errors.units.values()) == sorted(times.tolist())
    assert errors.repeats == times.max() - 1


def test_counts_that_were_sent_before_requests_were_counted_are_read() -> None:
    units = base64.b64encode(np.array([3, 2**63 + 1], dtype="<u8").tobytes()).decode()
    sent = json.dumps([[7, 2, "canary", 0.1, 40, units, "", units, [[5, 36]]]])  # as a process of 0.1 does
    found = decode(sent).of(version=2)
    assert (found.requests, int(found.latency.sum())) == (40, 36)
    assert (found.errors.requests, found.missing.requests, found.refused.requests) == (2, 0, 2)
    assert found.errors.units == {3: 1, 2**63 + 1: 1}


def test_counts_of_another_split_are_another_arm() -> None:
    tally = Tally(lambda: 0.0)
    tally.count(CANARY, "a", End.ANSWERED, 1.0)
    tally.count(CANARY._replace(entry=8, share=0.5), "b", End.ANSWERED, 1.0)
    found = counted(tally)
    assert [found.of(version=2, entry=entry).requests for entry in (7, 8, 9)] == [1, 1, 0]
    assert found.of(version=2, arms=["champion"]).requests == 0


def test_a_full_tally_stops_counting_units_of_all_arms_alike_until_the_next_window() -> None:
    now = [0.0]
    tally = Tally(lambda: now[0])
    for unit in range(2 * MAX_UNITS):
        tally.count(CHAMPION, f"u{unit}", End.ERROR, 1.0)
    tally.count(CANARY, "late", End.ERROR, 1.0)
    found = counted(tally)
    champion, canary = found.of(version=1).errors, found.of(version=2).errors
    assert (len(champion.units), len(canary.units)) == (MAX_UNITS, 0)
    assert (champion.requests, canary.requests) == (2 * MAX_UNITS, 1)  # requests are counted all the same
    now[0] = float(WINDOW_S)
    tally.count(CANARY, "late", End.ERROR, 1.0)
    assert len(counted(tally).of(version=2).errors.units) == 1


def test_what_could_not_be_sent_is_sent_with_the_next_counts() -> None:
    tally = Tally(lambda: 5.0)
    tally.count(CANARY, "a", End.ERROR, 1.0)
    taken = tally.take()
    assert tally.take() == {}
    tally.put_back(set(taken))
    assert tally.take().keys() == taken.keys()


def test_counts_of_a_window_that_is_over_are_sent_once_more_and_then_forgotten() -> None:
    now = [float(WINDOW_S) - 1]
    tally = Tally(lambda: now[0])
    tally.count(CANARY, "a", End.ERROR, 1.0)
    now[0] += 2
    tally.count(CANARY, "b", End.ERROR, 1.0)
    assert sorted(tally.take()) == [0, 1]
    tally.put_back({0, 1})
    assert sorted(tally.take()) == [1]


def test_a_thread_that_takes_loses_no_count() -> None:
    tally, sent = Tally(lambda: 5.0), {}
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            sent.update(tally.take())

    thread = threading.Thread(target=send)
    thread.start()
    for unit in range(5_000):
        tally.count(CANARY, f"u{unit}", End.ANSWERED, 1.0)
    stop.set()
    thread.join()
    sent.update(tally.take())
    assert sent[0][CANARY].requests == 5_000


@pytest.mark.parametrize(
    ("status", "end"),
    [(500, End.ERROR), (503, End.ERROR), (504, End.MISSING), (499, End.MISSING),
     (400, End.REFUSED), (404, End.REFUSED), (429, End.REFUSED)],
)  # fmt: skip
def test_a_caller_s_mistake_is_no_error_of_the_version(status: int, end: End) -> None:
    assert end_of(status) is end


@pytest.mark.parametrize("ms", [0.0, -1.0, 1e-9, 0.01, 1.0, 3.7, 1e9, math.inf, math.nan])
def test_every_latency_has_a_bin(ms: float) -> None:
    index = bin_of(ms)
    assert 0 <= index < BINS
    if 0.008 <= ms < 1e5:
        assert lower_edge_ms(index) <= ms < lower_edge_ms(index + 1)


def test_slower_moves_all_values_and_rounds_the_factor_down() -> None:
    counts = np.zeros(BINS, dtype=np.int64)
    counts[10], counts[BINS - 1] = 3, 2
    moved = slower(counts, 2.0)
    assert (moved[18], moved[BINS - 1], moved.sum()) == (3, 2, 5)
    assert np.array_equal(slower(counts, 1.05), counts)
    assert slower(counts, 1.25)[12] == 3  # by 2^(2/8) = 1.19


@pytest.mark.parametrize(
    ("values", "usable"),
    [
        ([1.0], True),
        ([math.nan], False),
        ([1.0, math.inf], False),
        ([1.0, 2.0], True),
        ([1], True),
        (["a"], True),
    ],
)
def test_an_answer_without_a_finite_number_is_not_usable(values: list[object], usable: bool) -> None:  # noqa: FBT001
    assert is_usable(np.array(values)) is usable


def test_nothing_counted_is_nothing() -> None:
    assert WindowCounts().of(version=1).requests == 0
    assert decode(encode({CANARY: ArmTally()})).of(version=2).latency.sum() == 0
