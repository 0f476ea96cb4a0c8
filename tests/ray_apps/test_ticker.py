import threading
from collections.abc import Callable, Mapping

import pytest

from ray_apps.ticker import Ticker


def ticker(rounds: Mapping[str, Callable[[], object]], *, leads: bool = True) -> Ticker:
    return Ticker(lambda: rounds, leads=lambda: leads, interval_s=0.001)


def test_every_round_happens_in_order() -> None:
    seen: list[str] = []
    made = ticker({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")})
    made.turn()
    made.turn()
    assert (seen, made.turns) == (["a", "b", "a", "b"], 2)


def test_a_round_that_fails_keeps_none_of_the_others_from_happening(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    made = ticker({"bad": lambda: 1 / 0, "good": lambda: seen.append(1)})
    for _ in range(3):
        made.turn()
    assert seen == [1, 1, 1]
    assert [record.message for record in caplog.records] == ["bad: this round failed; it is tried again"]


def test_without_the_lead_nothing_happens() -> None:
    seen: list[int] = []
    made = ticker({"a": lambda: seen.append(1)}, leads=False)
    made.turn()
    assert seen == []


def test_preparing_is_tried_again_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    tries, seen = iter([True, True, False]), []

    def prepare() -> dict[str, Callable[[], object]]:
        if next(tries):
            raise OSError("the store is away")
        return {"a": lambda: seen.append(1)}

    made = Ticker(prepare, leads=lambda: True)
    for _ in range(4):
        made.turn()
    assert seen == [1, 1]
    assert len(caplog.records) == 1


def test_it_goes_round_by_itself_until_stopped() -> None:
    enough = threading.Event()
    made = ticker({"a": lambda: enough.set() if made.turns >= 3 else None})
    made.start()
    assert enough.wait(10)
    assert made.alive
    made.stop()
    assert not made.alive
