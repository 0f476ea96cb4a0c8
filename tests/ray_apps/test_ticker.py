import threading
from collections.abc import Callable, Mapping

import pytest

from tests.waiting import until
from toque.ray_apps import ticker as ticker_module
from toque.ray_apps.leader_lease import Leadership
from toque.ray_apps.ticker import Ticker, keep_lead, run_in_each, wait_prepared


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


def test_the_log_names_the_workspace_whose_round_failed_and_the_others_had_their_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str] = []

    def drain(workspace: str) -> None:
        seen.append(workspace)
        if workspace == "payments":
            raise OSError("403 Forbidden")

    ticker({"drain": lambda: run_in_each(["default", "payments", "risk"], drain)}).tick()
    assert seen == ["default", "payments", "risk"]
    assert "403 Forbidden" in caplog.text
    assert "in the workspace payments" in caplog.text
    assert "in the workspace risk" not in caplog.text


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


class OneLease:
    """A lease of five seconds that nobody else wants, and how often it was given back."""

    def __init__(self) -> None:
        self.at, self.released = 0.0, 0

    def renew(self) -> float:
        return self.at + 5

    def is_free(self) -> bool:
        return True

    def release(self) -> None:
        self.released += 1

    def leadership(self) -> Leadership:
        return Leadership([(self, 1.0)], clock=lambda: self.at)


def test_the_lead_outlasts_a_round_longer_than_its_term_and_ends_with_one_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on, lease = threading.Event(), threading.Event(), OneLease()
    leadership = lease.leadership()
    due = ticker({"slow": lambda: begun.set() or go_on.wait(60)})
    due.start()
    assert begun.wait(60)
    for _ in range(4):
        lease.at += 4
        keep_lead(leadership, due, lambda: False)
        assert leadership.is_leader
    monkeypatch.setattr(ticker_module, "HANGS_S", 0.01)
    until(lambda: due.busy_s > 0.01)
    keep_lead(leadership, due, lambda: False)
    assert not leadership.is_leader
    assert lease.released == 1
    go_on.set()
    due.stop()


def test_a_round_of_many_workspaces_hangs_only_where_none_of_them_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each workspace takes less than what counts as hanging, and all of them many times that."""
    monkeypatch.setattr(ticker_module, "HANGS_S", 1.0)
    at, ends, lease, busy = [0.0], threading.Event(), OneLease(), []
    monkeypatch.setattr(ticker_module.time, "monotonic", lambda: at[0])
    leadership = lease.leadership()

    def work(_: str) -> None:
        at[0] += 0.7
        busy.append(due.busy_s)
        keep_lead(leadership, due, lambda: False)

    def round_of_many() -> None:
        run_in_each([f"w{number}" for number in range(20)], work, done=due.note_progress)
        ends.set()

    due = ticker({"invocations": round_of_many})
    due._begun = 0.0  # as its thread does when a round begins
    due.tick()
    assert ends.is_set()
    assert (len(busy), max(busy)) == (20, pytest.approx(0.7))
    assert leadership.is_leader
    assert lease.released == 0


def test_a_ticker_does_not_lead_before_it_is_prepared_nor_on_a_node_that_is_lost() -> None:
    lease, due = OneLease(), ticker({"a": lambda: None})
    leadership = lease.leadership()
    keep_lead(leadership, due, lambda: False)
    assert not leadership.is_leader
    due.tick()
    keep_lead(leadership, due, lambda: False)
    assert leadership.is_leader
    keep_lead(leadership, due, lambda: True)
    assert not leadership.is_leader
    assert lease.released == 1
