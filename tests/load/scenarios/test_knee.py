"""Search for the knee on servers whose knee is known."""

import math

import pytest

from tests.load.scenarios.stub_server import StubServer
from toque.load.scenarios.knee import Criterion, Step, find_knee, search
from toque.load.scenarios.scenario import Scenario, Steady
from toque.load.scenarios.target import Target


def queue(knee: float, *, unlucky: frozenset[int] = frozenset()):
    """A server that holds below its knee, but for some asks that a neighbour spoils."""
    asked: list[float] = []

    def ask(rate: float) -> Step:
        asked.append(rate)
        held = rate <= knee and len(asked) not in unlucky
        return Step(rate, held, 10.0 if held else math.inf, 0.0, rate)

    return ask, asked


@pytest.mark.parametrize("knee", [3.0, 20.0, 137.0, 5000.0])
def test_the_knee_is_between_what_held_and_what_broke(knee: float):
    ask, asked = queue(knee)
    found = search(ask, start=20, precision=0.1)
    assert found.held <= knee < found.broke
    assert found.broke / found.held <= 1.1
    assert len(asked) <= 25


def test_one_spoilt_step_does_not_move_the_knee():
    ask, _ = queue(137.0, unlucky=frozenset({1, 4, 6, 9}))
    found = search(ask, start=20, precision=0.1)
    assert found.held <= 137 < found.broke


def test_a_server_that_never_holds_has_no_knee():
    found = search(queue(0.1)[0], start=20, precision=0.1)
    assert found.held == 0
    with pytest.raises(ValueError, match="start=0"):
        search(queue(1)[0], start=0, precision=0.1)


def test_the_knee_of_a_server_with_a_known_capacity():
    # One request at a time, 20 ms each: it answers 50 a second at most, and 100 ms of waiting come well before that.
    with StubServer(taking_s=0.02) as server:
        found = find_knee(
            Target(server.url, None, "toy"),
            Scenario(shape=Steady(rate=1, seconds=2), warm_up_s=0, connections=16, patience_s=0.5),
            criterion=Criterion(p99_ms=250, error_share=0.05),
            start=20,
            precision=1.5,
        )
    assert 20 <= found.held <= 55
    assert found.broke <= 80
    assert not found.by_the_client
