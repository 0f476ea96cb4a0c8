"""Costs by day: what has succeeded is read once, everything else again, and the sums are those of all receipts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from toque.functions import function
from toque.functions.runtime.durable import costs as cost_days
from toque.functions.runtime.durable.costs import CostRow, KnownCosts, costs_of, costs_since, known_costs
from toque.functions.runtime.durable.ledger import Ledger
from toque.registry import Entry, ObjectStore, open_store

NOW = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
FIRST = date(2026, 2, 27)
_USAGE = {
    "run_s": 2.0,
    "cpu_s": 1.5,
    "gpu_s": 0.0,
    "peak_memory_bytes": 1,
    "store_reads": 3,
    "store_writes": 1,
}


@function
def count_rows(model: str = "", rows: int = 0) -> int:
    """Count rows."""
    return rows


@dataclass
class Work:
    """A ledger whose clock stands where it is put, and how often it read a record."""

    ledger: Ledger
    now: datetime = NOW
    read: list[str] = field(default_factory=list)

    def submit(self, key: str, at: datetime, *, ends: str | None = "succeeded", model: str = "late") -> str:
        self.now, before = at, self.now
        made = self.ledger.submit(count_rows, {"model": model, "rows": len(key)}, key=key)
        if ends is not None:
            self.end(made, ends)
        self.now = before
        return made

    def end(self, made: str, kind: str) -> None:
        followed = self.ledger.follow(made)
        started = {"kind": "started", "worker": "w", "node": "", "lease_s": 15.0, "digest": "d"}
        ended = {"kind": kind, "usage": _USAGE} | (
            {"result": {"json": 1}} if kind == "succeeded" else {"failure": {"type": "E", "message": "m"}}
        )
        for body in (started, ended):
            followed.append(lambda _, body=body: body)

    def costs(self, first: date = FIRST) -> list[CostRow]:
        self.read.clear()
        return costs_since(self.ledger, first)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    store: ObjectStore = open_store(f"file://{tmp_path / 'store'}")
    made = Work(Ledger(store, actor="ada", clock=lambda: made.now))
    follow = made.ledger.follow

    def counted(invocation: str, first: Entry | None = None) -> object:
        made.read.append(invocation)
        return follow(invocation, first)

    monkeypatch.setattr(made.ledger, "follow", counted)
    return made


def everything(work: Work) -> list[CostRow]:
    return costs_of(work.ledger.invocations(limit=1_000))


def test_days_add_up_to_all_receipts_by_model_and_what_succeeded_is_read_once(work: Work) -> None:
    for day in (3, 2, 1, 0):
        for number in (2, 1, 0):
            work.submit(f"{day}-{number}", NOW - timedelta(days=day, hours=number), model=f"m{number}")
    first = work.costs()
    assert first == everything(work)
    assert {row.model for row in first} == {"m0", "m1", "m2"}
    assert sum(row.invocations for row in first) == 12
    assert work.costs() == first
    assert len(work.read) == 1  # the one that was submitted this minute
    work.submit("new", NOW - timedelta(seconds=1))
    assert sum(row.invocations for row in work.costs()) == 13
    assert len(work.read) == 2
    assert sum(row.invocations for row in work.costs(date(2026, 3, 2))) == 4


def test_what_may_run_again_is_read_again(work: Work) -> None:
    dead = work.submit("dead", NOW - timedelta(days=2), ends="dead")
    waiting = work.submit("waiting", NOW - timedelta(days=2), ends=None)
    assert [row.invocations for row in work.costs()] == [1]
    work.end(waiting, "succeeded")
    work.ledger.redrive(dead)
    work.end(dead, "succeeded")
    assert work.costs() == everything(work)
    assert sum(row.run_s for row in work.costs()) == pytest.approx(6.0)
    assert not work.read


def test_what_is_deleted_stays_in_the_sums_of_its_day(work: Work) -> None:
    gone = work.submit("gone", NOW - timedelta(days=2))
    before = work.costs()
    work.ledger.delete(gone)
    assert work.costs() == before
    assert everything(work) == []


def test_a_day_goes_on_after_it_was_looked_at(work: Work) -> None:
    for minute in range(40):
        work.now = NOW + timedelta(minutes=minute)
        work.submit(f"m{minute}", work.now)
        assert sum(row.invocations for row in work.costs()) == minute + 1
    work.now = NOW + timedelta(days=1)
    assert work.costs() == everything(work)


def known(work: Work, *, reads: int) -> KnownCosts:
    """What is known after so many looks at the clock, one of which goes before each invocation that is read."""
    looks = iter(range(10_000))
    return known_costs(work.ledger, FIRST, within_s=reads, clock=lambda: float(next(looks)))


def test_who_has_no_time_gets_what_is_kept_and_learns_which_days_are_behind(work: Work) -> None:
    for day in (3, 2, 1):
        for number in range(5):
            work.submit(f"{day}-{number}", NOW - timedelta(days=day, minutes=number))
    work.submit("dead", NOW - timedelta(days=1), ends="dead")
    days = [date(2026, 3, 1) - timedelta(days=number) for number in range(3)]
    assert known(work, reads=0) == KnownCosts(rows=[], behind=days, never=days)  # today is known to be empty
    some = known(work, reads=12)  # today, which is empty, and yesterday
    assert sum(row.invocations for row in some.rows) == 6
    assert some.behind == some.never == days[1:]
    rest = known(work, reads=30)
    assert rest == KnownCosts(rows=everything(work))
    work.submit("new", NOW - timedelta(minutes=1))
    behind = known(work, reads=0)  # the dead one, which might have run again, counts as it was
    assert behind == KnownCosts(rows=rest.rows, behind=[NOW.date(), days[0]])
    assert known(work, reads=30).rows == work.costs() == everything(work)


def test_a_success_is_read_without_a_look_for_what_follows(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = work.submit("one", NOW)
    found: list[str] = []
    find = work.ledger.store.find
    monkeypatch.setattr(work.ledger.store, "find", lambda key: (found.append(key), find(key))[1])
    assert work.ledger.read(made).status == "succeeded"
    assert [key.rpartition("/")[2] for key in found] == ["00000000.json", "00000001.json", "00000002.json"]


def fill(work: Work) -> int:
    """Submit invocations on two days, several of one moment each, of which some have died; returns how many."""
    for day in (2, 1):
        for number in reversed(range(24)):  # a queue is in the order of time
            at = NOW - timedelta(days=day, minutes=number // 2)
            work.submit(f"{day}-{number}", at, ends="dead" if number % 5 == 0 else "succeeded")
    return 48


@pytest.mark.parametrize("looks", [17, 24, 40])
def test_looks_that_are_too_short_for_a_day_sum_it_in_the_end(work: Work, looks: int) -> None:
    count = fill(work)
    work.read.clear()
    for number in range(60):
        if number < 3:  # meanwhile others are submitted
            work.submit(f"later {number}", NOW)
        costs = known(work, reads=looks)
        if number >= 3 and not costs.behind:
            break
    assert sum(row.invocations for row in costs.rows) == count + 3
    assert [row.model_dump() for row in costs.rows] == [row.model_dump() for row in everything(work)]


@pytest.mark.parametrize("dies_after", [16, 20, 30])
def test_a_sum_that_dies_again_and_again_keeps_what_it_has_read(
    work: Work, monkeypatch: pytest.MonkeyPatch, dies_after: int
) -> None:
    count = fill(work)
    monkeypatch.setattr(cost_days, "_KEEP_EVERY", 5)
    follow, left = work.ledger.follow, [0]

    def dying(invocation: str, first: Entry | None = None) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return follow(invocation, first)

    monkeypatch.setattr(work.ledger, "follow", dying)
    for _ in range(30):
        left[0] = dies_after
        try:
            rows = work.costs()
        except KeyboardInterrupt:
            continue
        break
    left[0] = 1_000
    assert rows == everything(work)
    assert sum(row.invocations for row in rows) == count
