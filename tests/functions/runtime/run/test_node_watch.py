"""Silence of nodes, told from the rounds of checks, and never from a stall of the watcher itself."""

from collections.abc import Collection

import pytest

from toque.functions.runtime.run.node_watch import MISSED, STALLED_S, Nodes, Silence, period_s

A, B = "10.0.0.1:1", "10.0.0.2:1"
BEFORE = Silence()
NODES: Nodes = {A: "a", B: "b"}


def rounds(*answered: Collection[str], silence: Silence = BEFORE, at: float = 0.0) -> Silence:
    """Rounds of one second each, of which one with a silent node takes .8 s."""
    for number, each in enumerate(answered):
        begun = at + number
        silence = silence.after(NODES, set(each), begun=begun, ended=begun + (0.1 if len(each) == 2 else 0.8))
    return silence


def test_a_node_that_misses_two_checks_in_a_row_is_silent_since_the_first() -> None:
    assert MISSED == 2
    assert rounds([A, B], [A]).silent() == {}
    found = rounds([A, B], [A], [A])
    assert found.silent() == {B: "b"}
    assert found.seconds(B) == pytest.approx(1.8)
    assert found.seconds(A) == 0.0


def test_a_check_that_is_missed_now_and_then_is_no_silence() -> None:
    assert rounds([A], [A, B], [A], [A, B], [A]).silent() == {}


def test_a_node_that_answers_again_is_silent_no_more() -> None:
    assert rounds([A], [A], [A, B]).silent() == {}
    assert rounds([A], [A], [A, B]).seconds(B) == 0.0


def test_a_watcher_that_was_stalled_counts_anew() -> None:
    before = rounds([A, B], [A])
    assert rounds([A], silence=before, at=2 + 2 * STALLED_S).silent() == {}
    slow = before.after(NODES, {A}, begun=2, ended=2.1 + STALLED_S)
    assert slow.silent() == {}


def test_a_watcher_that_reaches_nobody_knows_of_no_silence() -> None:
    cut_off = rounds([A, B], [], [], [], [])
    assert cut_off.silent() == {}
    assert cut_off.seconds(A) == 0.0


def test_a_node_that_ray_gave_up_counts_as_silent_for_good() -> None:
    silence = rounds([A, B]).after({A: "a"}, {A}, begun=1, ended=1.1)
    assert silence.silent() == {}  # nothing is put there any more
    assert silence.seconds(B) == float("inf")
    assert silence.seconds("10.0.0.9:1") == 0.0  # never seen: perhaps of another cluster


def test_a_node_is_lost_that_is_silent_or_was_given_up_and_none_before_it_was_asked() -> None:
    assert not BEFORE.is_lost("b")
    assert not rounds([A, B], [A]).is_lost("b")
    assert rounds([A, B], [A], [A]).is_lost("b")
    assert not rounds([A, B], [A], [A]).is_lost("a")
    assert not rounds([A, B], [], [], []).is_lost("b")  # perhaps it is this watcher that is cut off
    given_up = rounds([A, B]).after({A: "a"}, {A}, begun=1, ended=1.1)
    assert given_up.is_lost("b")
    assert not given_up.is_lost("a")


def test_many_nodes_are_asked_more_rarely() -> None:
    assert period_s(range(10)) == 1.0
    assert period_s(range(1000)) == 5.0
