import threading
from collections.abc import Callable, Mapping

import pytest

from ray_apps.ticker import Ticker, wait_prepared


def ticker(tasks: Mapping[str, Callable[[], object]], *, is_leader: bool = True) -> Ticker:
    return Ticker(lambda: tasks, is_leader=lambda: is_leader, interval_s=0.001)


def test_tasks_run_in_order() -> None:
    seen: list[str] = []
    made = ticker({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")})
    made.tick()
    made.tick()
    assert (seen, made.ticks) == (["a", "b", "a", "b"], 2)


def test_a_task_that_fails_does_not_keep_others_from_running(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    made = ticker({"bad": lambda: 1 / 0, "good": lambda: seen.append(1)})
    for _ in range(3):
        made.tick()
    assert seen == [1, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "bad failed in this round; it is tried again"
    ]


def test_a_ticker_that_does_not_lead_runs_nothing() -> None:
    seen: list[int] = []
    made = ticker({"a": lambda: seen.append(1)}, is_leader=False)
    made.tick()
    assert seen == []


def test_preparing_is_tried_again_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    tries, seen = iter([True, True, False]), []

    def prepare() -> dict[str, Callable[[], object]]:
        if next(tries):
            raise OSError("the store is away")
        return {"a": lambda: seen.append(1)}

    made = Ticker(prepare, is_leader=lambda: True)
    for _ in range(4):
        made.tick()
    assert seen == [1, 1]
    assert len(caplog.records) == 1


def test_a_started_ticker_runs_until_stopped() -> None:
    enough = threading.Event()
    made = ticker({"a": lambda: enough.set() if made.ticks >= 3 else None})
    made.start()
    assert enough.wait(60)
    assert made.alive
    made.stop()
    assert not made.alive


def test_who_waits_for_tickers_goes_on_when_all_are_prepared_or_time_is_over() -> None:
    go = threading.Event()

    def prepare() -> dict[str, Callable[[], object]]:
        assert go.wait(60)
        return {"a": lambda: None}

    fast, slow = ticker({"a": lambda: None}), Ticker(prepare, is_leader=lambda: False, interval_s=0.001)
    for each in (fast, slow):
        each.start()
    assert not wait_prepared([fast, slow], within_s=0.2)
    assert fast.prepared
    go.set()
    assert wait_prepared([fast, slow], within_s=60)
    for each in (fast, slow):
        each.stop()
