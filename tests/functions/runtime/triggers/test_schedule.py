from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.conditions.definitions import redefined
from tests.conditions.faults import KILLS, Fault, Faults, FaultyStore, KilledError
from toque.functions import Context, Cron, function
from toque.functions.runtime import FixedClock
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.errors import DeclarationError, InvalidArguments
from toque.functions.runtime.triggers import schedule
from toque.functions.runtime.triggers.schedule import Schedule, plan, run_due, tick_after, tick_before
from toque.registry.errors import Forbidden, Unavailable
from toque.registry.journal import Conflict, Journal
from toque.registry.store import FolderStore

NOON = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
HOURLY = Cron("0 * * * *")


@function
def tell(at: datetime, word: str = "") -> str:
    return f"{at.isoformat()} {word}"


@function
def report(at: datetime, word: str = "") -> str:
    return f"{at.isoformat()} {word}"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_runners", {})
    monkeypatch.setattr(schedule, "_added", {})


def hourly(**options: Any) -> Schedule:
    return Schedule("hourly", tell, Cron("0 * * * *", tick_as="at", **options))


def ticker(used: Context, each: Schedule) -> Any:
    """Fire method of a new runner, without the state that other runners of this process have."""
    runner = schedule._ScheduleRunner(used, each)
    return runner.fire


def test_a_new_schedule_begins_now(used: Context) -> None:
    assert run_due(used, now=NOON + timedelta(minutes=5), schedules=[hourly()]) == []
    assert run_due(used, now=NOON + timedelta(minutes=59), schedules=[hourly()]) == []
    fired = run_due(used, now=NOON + timedelta(hours=1), schedules=[hourly()])
    assert [each.tick for each in fired] == [NOON + timedelta(hours=1)]
    record = ledger_of(used).read(str(fired[0].invocation))
    assert ledger_of(used).arguments(record) == {"at": "2024-03-01T13:00:00Z", "word": ""}


@pytest.mark.parametrize(
    ("catch_up", "ticks"),
    [("all", list(range(1, 25))), ("latest", [24]), ("none", [])],
)
def test_a_day_of_missed_ticks_follows_the_policy(used: Context, catch_up: Any, ticks: list[int]) -> None:
    each = hourly(catch_up=catch_up, overlap="skip")
    run_due(used, now=NOON, schedules=[each])
    fired: list[int] = []
    at = NOON + timedelta(days=1, minutes=10)
    fire = ticker(used, each)
    # Each run is ended at once, so that the overlap policy has nothing to say.
    while found := _one(fire, used, at):
        fired += [round((one.tick - NOON) / timedelta(hours=1)) for one in found if one.invocation]
    assert fired == ticks


def _one(fire: Any, used: Context, at: datetime) -> list[Any]:
    runner = fire.__self__
    found = runner._fire_next(at)
    if found and found.invocation:
        ledger_of(used).cancel(found.invocation)
    return [found] if found else []


def test_no_catch_up_still_fires_within_grace() -> None:
    cron = Cron("0 * * * *", catch_up="none", grace_s=60)
    tick = plan(cron, name="s", last=NOON, now=NOON + timedelta(hours=1, seconds=59))
    assert tick is not None
    assert tick.action == "fire"
    late = plan(cron, name="s", last=NOON, now=NOON + timedelta(hours=1, seconds=61))
    assert late is not None
    assert late.action == "skip"


def test_a_hundred_ticks_fire_a_hundred_times_with_three_tickers_of_which_one_dies(used: Context) -> None:
    each = Schedule("often", tell, Cron("* * * * *", tick_as="at", catch_up="all", overlap="skip"))
    tickers = [ticker(used, each) for _ in range(3)]
    for fire in tickers:
        fire(NOON)
    handled: list[Any] = []
    with ThreadPoolExecutor(3) as pool:
        for minute in range(1, 101):
            if minute == 50:
                tickers.pop()
            now = NOON + timedelta(minutes=minute)
            found = [one for some in pool.map(lambda fire: fire(now), tickers) for one in some]  # noqa: B023
            handled += found
            for one in found:
                ledger_of(used).cancel(str(one.invocation))
    assert sorted(one.tick for one in handled) == [NOON + timedelta(minutes=m) for m in range(1, 101)]
    assert len({one.invocation for one in handled}) == 100


def test_a_tick_is_submitted_after_its_ticker_died(used: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    each = hourly()
    ticker(used, each)(NOON)
    dying = schedule._ScheduleRunner(used, each)
    dying.fire(NOON)
    monkeypatch.setattr(dying, "_ensure_submitted", lambda _: None)
    (claimed,) = dying.fire(NOON + timedelta(hours=1))
    assert ledger_of(used).find_status(claimed.invocation) is None
    assert ticker(used, each)(NOON + timedelta(hours=1, seconds=1)) == []
    assert ledger_of(used).find_status(claimed.invocation) == "queued"


def test_a_dead_ticker_s_tick_is_submitted_while_another_claims_the_next(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = hourly(catch_up="all")
    living, dying = schedule._ScheduleRunner(used, each), schedule._ScheduleRunner(used, each)
    living.fire(NOON)
    dying.fire(NOON)
    monkeypatch.setattr(dying, "_ensure_submitted", lambda _: None)
    judged, at = living._busy, NOON + timedelta(hours=2)
    claimed: list[Any] = []

    def decided_too_early(now: datetime) -> bool:
        found = judged(now)
        if not claimed:
            claimed.append(dying._claim(at))
        return found

    monkeypatch.setattr(living, "_busy", decided_too_early)
    living.fire(at)
    ledger_of(used).cancel(claimed[0].invocation)
    (second,) = living.fire(at)
    assert [one.tick for one in (claimed[0], second)] == [NOON + timedelta(hours=hour) for hour in (1, 2)]
    assert {ledger_of(used).find_status(one.invocation) for one in (claimed[0], second)} == {
        "cancelled",
        "queued",
    }


def tick_cells(used: Context, folder: Path, fault: Fault) -> Iterator[tuple[Context, Any]]:
    """Worlds in each of which another request of the tick of 13:00 suffers a fault, with the ticker's fire method."""
    for number in count(1):
        store = FolderStore(folder / str(number))
        faults = Faults()
        world = replace(used, store=store, store_url=store.url)
        fire = ticker(replace(world, store=FaultyStore(store, faults)), hourly(arguments={"word": "old"}))
        fire(NOON)
        with (
            faults.inject(fault, number) as injected,
            suppress(KilledError, Unavailable, Forbidden, Conflict),
        ):
            fire(NOON + timedelta(hours=1))
        if injected.struck is None:
            return
        yield world, fire


def accepted_ticks(world: Context) -> list[tuple[str, str]]:
    """Hour and word of each invocation that was accepted, in the order of the hours."""
    ledger = ledger_of(world)
    arguments = (ledger.arguments(record) for record in ledger.invocations())
    return sorted((values["at"][11:13], values["word"]) for values in arguments)


def end_all(world: Context) -> None:
    for record in ledger_of(world).invocations():
        ledger_of(world).cancel(record.id)


CHANGES: dict[str, dict[str, Any]] = {
    "other arguments": {"cron": Cron("0 * * * *", tick_as="at", arguments={"word": "new"})},
    "arguments that do not fit": {"cron": Cron("0 * * * *", tick_as="at", arguments={"wrod": "new"})},
    "another function": {"function": report},
}


@pytest.mark.parametrize("fault", KILLS)
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_a_definition_that_changes_while_a_tick_is_accepted_neither_doubles_it_nor_ends_the_schedule(
    used: Context, tmp_path: Path, changes: dict[str, Any], fault: Fault
) -> None:
    accepted_before = set()
    for world, _ in tick_cells(used, tmp_path / "cells", fault):
        before = accepted_ticks(world)
        accepted_before.add(bool(before))
        (changed,) = redefined([hourly()], "hourly", **changes)
        with suppress(InvalidArguments):
            ticker(world, changed)(NOON + timedelta(hours=1, seconds=10))
        assert before == [] or accepted_ticks(world) == before
        end_all(world)
        (mended,) = redefined([changed], "hourly", cron=hourly(arguments={"word": "mended"}).cron)
        fire = ticker(world, mended)
        fire(NOON + timedelta(hours=1, seconds=20))
        end_all(world)
        (fired,) = fire(NOON + timedelta(hours=2))
        assert fired.skipped is None
        assert [hour for hour, _ in accepted_ticks(world)] == ["13", "14"]
        assert before == [] or accepted_ticks(world)[0] == before[0]
    assert accepted_before == {True, False}


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in KILLS])
def test_a_tick_whose_acceptance_failed_is_accepted_in_the_next_round(
    used: Context, tmp_path: Path, fault: Fault
) -> None:
    cells = 0
    for world, fire in tick_cells(used, tmp_path / "cells", fault):
        fire(NOON + timedelta(hours=1, seconds=1))
        assert accepted_ticks(world) == [("13", "old")]
        end_all(world)
        (fired,) = fire(NOON + timedelta(hours=2))
        assert fired.skipped is None
        cells += 1
    assert cells > 5


@pytest.mark.parametrize(
    "changed", [Cron("*/10 * * * *"), Cron("0 * * * *", timezone="Asia/Kolkata")], ids=str
)
def test_a_schedule_of_the_same_name_with_another_expression_begins_when_it_is_first_seen(
    used: Context, changed: Cron
) -> None:
    ticker(used, hourly())(NOON)
    (first,) = ticker(used, hourly())(NOON + timedelta(hours=1))
    ledger_of(used).cancel(str(first.invocation))
    cron = replace(changed, tick_as="at", catch_up="all")
    (other,) = redefined([hourly()], "hourly", cron=cron)
    seen = NOON + timedelta(hours=4, minutes=5)
    assert ticker(used, other)(seen) == []
    next_tick = tick_after(cron, seen)
    assert [fired.tick for fired in ticker(used, other)(next_tick)] == [next_tick]


def test_arguments_that_do_not_fit_claim_no_tick_and_are_tried_once_a_period(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = hourly(arguments={"wrod": "?"}, catch_up="all")
    fire = ticker(used, wrong)
    fire(NOON)
    with pytest.raises(InvalidArguments, match="wrod"):
        fire(NOON + timedelta(hours=1))
    with monkeypatch.context() as patch:
        patch.setattr(type(used.store), "find", lambda *_: pytest.fail("a read"))
        assert fire(NOON + timedelta(hours=1, seconds=1)) == []
    assert [fired.tick.hour for fired in ticker(used, hourly())(NOON + timedelta(hours=1, minutes=1))] == [13]


def test_a_schedule_whose_store_fails_keeps_no_other_from_its_turn(
    used: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, other = hourly(), replace(hourly(), name="other")
    run_due(used, now=NOON, schedules=[failing, other])
    faults = Faults()
    faulty = replace(used, store=FaultyStore(used.store, faults))
    monkeypatch.setattr(schedule, "_runners", {})
    with (
        faults.inject(
            Fault.UNAVAILABLE_BEFORE, 1, matches=lambda request: request.key.startswith("schedules/hourly")
        ),
        pytest.raises(ExceptionGroup),
    ):
        run_due(faulty, now=NOON + timedelta(hours=1), schedules=[failing, other])
    (fired,) = run_due(faulty, now=NOON + timedelta(hours=1, seconds=1), schedules=[failing, other])
    assert fired.schedule == "hourly"
    assert accepted_ticks(used) == [("13", ""), ("13", "")]


@pytest.mark.parametrize("restart", [True, False], ids=["restarted", "running"])
@pytest.mark.parametrize("overlap", ["skip", "queue", "replace"])
@pytest.mark.parametrize("catch_up", ["latest", "all", "none"])
def test_a_deleted_invocation_neither_runs_again_nor_stops_its_schedule(
    used: Context, *, restart: bool, overlap: Any, catch_up: Any
) -> None:
    each, ledger = hourly(overlap=overlap, catch_up=catch_up), ledger_of(used)
    fire = ticker(used, each)
    fire(NOON)
    (first,) = fire(NOON + timedelta(hours=1))
    ledger.cancel(first.invocation)
    assert ledger.delete(first.invocation)
    fire = ticker(used, each) if restart else fire
    assert fire(NOON + timedelta(hours=1, minutes=30)) == []
    assert ledger.find_status(first.invocation) is None
    (second,) = fire(NOON + timedelta(hours=2))
    assert second.tick == NOON + timedelta(hours=2)
    assert ledger.find_status(second.invocation) == "queued"
    assert ledger.find_status(first.invocation) is None


@pytest.mark.parametrize(("later", "submitted"), [(timedelta(hours=2), True), (timedelta(days=2), False)])
def test_a_tick_that_an_older_release_fired_is_submitted_again_only_while_its_invocation_is_kept(
    used: Context, *, later: timedelta, submitted: bool
) -> None:
    each, tick = hourly(catch_up="none", grace_s=1), NOON - timedelta(hours=1)
    journal = Journal(used.store, "schedules/hourly", actor="older")
    journal.append({"kind": "begun", "tick": (tick - timedelta(minutes=1)).isoformat()}, at=0)
    journal.append({"kind": "fired", "tick": tick.isoformat(), "invocation": "0" * 32}, at=1)
    journal.append({"kind": "skipped", "tick": NOON.isoformat(), "reason": "missed"}, at=2)
    ticker(used, each)(NOON + later + timedelta(minutes=1))
    assert len(list(ledger_of(used).invocations())) == submitted


def test_an_older_release_takes_no_tick_to_be_due_again_for_the_mark_of_a_newer_one(used: Context) -> None:
    each = hourly(catch_up="all")
    fire = ticker(used, each)
    fire(NOON)
    fire(NOON + timedelta(hours=1))
    entries = list(Journal(used.store, "schedules/hourly", actor="older").entries())
    assert [entry.body["kind"] for entry in entries] == ["begun", "fired", "submitted"]
    assert (
        entries[2].body["tick"] == entries[1].body["tick"]
    )  # any kind but `fired` is one that handles its tick


def test_a_tick_that_is_skipped_is_logged_with_the_invocation_that_is_not_over(
    used: Context, caplog: pytest.LogCaptureFixture
) -> None:
    each = hourly()
    run_due(used, now=NOON, schedules=[each])
    (first,) = run_due(used, now=NOON + timedelta(hours=1), schedules=[each])
    (second,) = run_due(used, now=NOON + timedelta(hours=2), schedules=[each])
    assert second.skipped is not None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "schedule hourly: the tick of 2024-03-01T14:00:00+00:00 is skipped" in line
    assert f"invocation {first.invocation}" in line


@pytest.mark.parametrize(
    ("overlap", "second"), [("skip", "skipped"), ("queue", "nothing"), ("replace", "fired")]
)
def test_overlap_with_a_run_that_is_not_over(used: Context, overlap: Any, second: str) -> None:
    each = hourly(overlap=overlap)
    run_due(used, now=NOON, schedules=[each])
    (first,) = run_due(used, now=NOON + timedelta(hours=1), schedules=[each])
    found = run_due(used, now=NOON + timedelta(hours=2), schedules=[each])
    outcome = "nothing" if not found else "fired" if found[0].invocation else "skipped"
    assert outcome == second
    status = ledger_of(used).find_status(str(first.invocation))
    assert status == ("cancelled" if overlap == "replace" else "queued")
    if overlap == "queue":
        ledger_of(used).cancel(str(first.invocation))
        (queued,) = run_due(used, now=NOON + timedelta(hours=2, minutes=1), schedules=[each])
        assert queued.tick == NOON + timedelta(hours=2)


def test_no_request_is_made_if_no_tick_is_due(used: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    each = hourly()
    fire = ticker(used, each)
    fire(NOON)
    monkeypatch.setattr(type(used.store), "find", lambda *_: pytest.fail("a read"))
    assert fire(NOON + timedelta(minutes=30)) == []


def test_ticks_are_read_in_the_schedule_s_time_zone() -> None:
    rome = Cron("30 2 * * *", timezone="Europe/Rome")
    winter = datetime(2024, 1, 10, tzinfo=UTC)
    assert tick_after(rome, winter) == datetime(2024, 1, 10, 1, 30, tzinfo=UTC)
    summer = datetime(2024, 7, 10, tzinfo=UTC)
    assert tick_after(rome, summer) == datetime(2024, 7, 10, 0, 30, tzinfo=UTC)


def test_a_daily_tick_fires_once_on_the_days_the_clocks_change() -> None:
    rome = Cron("30 2 * * *", timezone="Europe/Rome")
    # On 27 October 2024 Rome has 2:30 twice, at 0:30 and 1:30 UTC; on 31 March it has none, and 3:00 stands in.
    for begin, expected in (
        (datetime(2024, 10, 26, 12, tzinfo=UTC), ["27T00:30", "28T01:30", "29T01:30"]),
        (datetime(2024, 3, 30, 12, tzinfo=UTC), ["31T01:00", "01T00:30", "02T00:30"]),
    ):
        ticks = [begin]
        for _ in expected:
            ticks.append(tick_after(rome, ticks[-1]))
        assert [f"{tick:%dT%H:%M}" for tick in ticks[1:]] == expected
        assert [tick_before(rome, tick + timedelta(seconds=1)) for tick in ticks[1:]] == ticks[1:]


def test_an_hourly_tick_fires_in_both_hours_when_the_clocks_go_back() -> None:
    rome = Cron("30 * * * *", timezone="Europe/Rome")
    first = datetime(2024, 10, 27, 0, 30, tzinfo=UTC)
    assert tick_after(rome, first) == first + timedelta(hours=1)


def test_the_tick_before_is_the_inverse_of_the_tick_after() -> None:
    for seconds in (0.000001, 0.5, 1, 1799.5):
        moment = NOON + timedelta(seconds=seconds)
        assert tick_before(HOURLY, moment) == NOON
        assert tick_after(HOURLY, moment) == NOON + timedelta(hours=1)


def test_jitter_delays_by_a_fixed_share() -> None:
    cron = replace(HOURLY, jitter_s=600.0)
    late = [
        minute
        for minute in range(60)
        if plan(cron, name="s", last=NOON, now=NOON + timedelta(hours=1, minutes=minute)) is None
    ]
    assert late == list(range(len(late)))
    assert len(late) <= 10
    other = [
        plan(cron, name=str(n), last=NOON, now=NOON + timedelta(hours=1, minutes=5)) is None
        for n in range(40)
    ]
    assert 5 < sum(other) < 35  # half of the names, drawn by hash


def test_status_shows_the_last_tick_handled(used: Context) -> None:
    each = hourly()
    used = replace(used, clock=FixedClock(NOON + timedelta(hours=1)))
    run_due(used, now=NOON, schedules=[each])
    run_due(used, schedules=[each])
    (found,) = schedule.status(used, schedules=[each])
    assert (found.last_tick, found.fired) == (NOON + timedelta(hours=1), 1)
    assert found.next_tick == NOON + timedelta(hours=2)
    assert found.invocation_status == "queued"


def test_a_schedule_that_cannot_fire_does_not_block_others(used: Context) -> None:
    broken = Schedule("broken", tell, Cron("0 * * * *", arguments={"at": "never"}))
    run_due(used, now=NOON, schedules=[broken, hourly()])
    fired = run_due(used, now=NOON + timedelta(hours=1), schedules=[broken, hourly()])
    assert [each.schedule for each in fired] == ["hourly"]


def test_an_invalid_cron_expression_is_refused_at_declaration() -> None:
    for wrong in ({"expression": "61 * * * *"}, {"timezone": "Mars/Olympus"}, {"overlap": "perhaps"}):
        with pytest.raises(DeclarationError, match=next(iter(wrong.values())).split("/")[0].split()[0]):
            Cron(**({"expression": "0 0 * * *"} | wrong))  # type: ignore[arg-type]
