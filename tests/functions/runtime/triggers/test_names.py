"""Schedules and subscriptions of a function whose declaration is reordered, extended, cut and changed between releases."""

import json
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conditions.definitions import added, put_first, reordered
from toque.functions import Context, Cron, OnEvent, context, function
from toque.functions.runtime import catalog
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.triggers import events, names, schedule
from toque.functions.runtime.triggers.events import publish, run_events
from toque.functions.runtime.triggers.names import TriggerKey, match
from toque.functions.runtime.triggers.schedule import run_due
from toque.registry.journal import Journal
from toque.registry.store.requests import REQUESTS

SIX = datetime(2024, 3, 1, 6, 0, tzinfo=UTC)
TOPICS = ("web-orders", "shop-orders", "orders")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_declared", {})
    monkeypatch.setattr(events, "_added", {})
    monkeypatch.setattr(schedule, "_added", {})


def release(**triggers: Any) -> None:
    """Start other code, in a process that knows nothing yet."""
    for state in (
        catalog._declared,
        events._topic_readers,
        schedule._runners,
        names._cache,
        names._folds,
    ):
        state.clear()

    @function(**triggers)
    def ship(kind: str = "", n: int = 0) -> None: ...


def deliveries(used: Context) -> Counter[tuple[str, int]]:
    ledger = ledger_of(used)
    arguments = (ledger.arguments(record) for record in ledger.invocations(limit=10_000))
    return Counter((values["kind"], values["n"]) for values in arguments)


def send(topic: str) -> int:
    """Publish an event that carries its topic and number."""
    number = len(list(Journal(context().store, f"events/{topic}", actor="a").entries()))
    return publish(topic, {"kind": topic, "n": number})


@pytest.mark.parametrize("seed", range(12))
def test_each_topic_s_later_events_run_once_however_releases_declare_the_topics(
    used: Context, seed: int
) -> None:
    draw = random.Random(seed)
    counts, begins = dict.fromkeys(TOPICS, 0), dict[str, int]()

    def send_some() -> None:
        for topic in TOPICS:
            for _ in range(draw.randrange(3)):
                counts[topic] = send(topic) + 1

    for last in (False, False, False, False, True):
        topics = draw.sample(TOPICS, len(TOPICS) if last else draw.randint(1, len(TOPICS)))
        send_some()  # while no ticker runs
        release(on=tuple(OnEvent(topic) for topic in topics))
        for topic in topics:
            begins.setdefault(topic, counts[topic])
        run_events(used)
        send_some()
        run_events(used)
    assert deliveries(used) == {
        (topic, number): 1 for topic in TOPICS for number in range(begins[topic], counts[topic])
    }


DAILY = Cron("0 6 * * *", catch_up="all", overlap="replace", arguments={"kind": "daily"})
HALF = Cron("30 * * * *", catch_up="all", overlap="replace", arguments={"kind": "half"})
HOURLY = Cron("0 * * * *", catch_up="all", overlap="replace", arguments={"kind": "hourly"})
RELEASES: dict[str, Callable[[list[Cron]], list[Cron]]] = {
    "unchanged": list,
    "another one after": lambda crons: added(crons, HOURLY),
    "another one before": lambda crons: put_first(crons, HOURLY),
    "another order": reordered,
    "another one before, in another order": lambda crons: put_first(reordered(crons), HOURLY),
    "the first one dropped": lambda crons: crons[1:],
    "the first one moved to another hour": lambda crons: [HOURLY, *crons[1:]],
}


def ticks(used: Context, at: datetime) -> set[tuple[str, datetime]]:
    """Kind and tick of what fires at a time."""
    crons = {trigger.name: trigger.cron.arguments["kind"] for trigger in schedule.declared(used, record=True)}
    return {(crons[fired.schedule], fired.tick) for fired in run_due(used, now=at) if not fired.skipped}


@pytest.mark.parametrize("change", RELEASES.values(), ids=RELEASES.keys())
def test_a_schedule_goes_on_after_its_last_tick_and_a_new_one_begins_now_however_they_are_declared(
    used: Context, change: Callable[[list[Cron]], list[Cron]]
) -> None:
    release(schedule=(DAILY, HALF))
    run_due(used, now=SIX - timedelta(hours=1))
    assert ticks(used, SIX) == {("daily", SIX), ("half", SIX - timedelta(minutes=30))}
    crons = change([DAILY, HALF])
    release(schedule=tuple(crons))
    outage = {("half", SIX + timedelta(minutes=30 + 60 * hour)) for hour in range(6)}
    assert ticks(used, SIX + timedelta(hours=6, minutes=10)) == outage
    later = {("half", SIX + timedelta(hours=6, minutes=30)), ("hourly", SIX + timedelta(hours=7))}
    assert ticks(used, SIX + timedelta(hours=7)) == {
        (kind, tick) for kind, tick in later if kind in {cron.arguments["kind"] for cron in crons}
    }
    assert ("daily", SIX + timedelta(days=1)) in ticks(used, SIX + timedelta(days=1)) or DAILY not in crons


def test_a_schedule_with_other_arguments_goes_on(used: Context) -> None:
    release(schedule=(DAILY, HALF))
    run_due(used, now=SIX - timedelta(hours=1))
    ticks(used, SIX)
    other = Cron("30 * * * *", catch_up="all", overlap="replace", arguments={"kind": "other"})
    release(schedule=(other, DAILY))
    assert ticks(used, SIX + timedelta(minutes=40)) == {("other", SIX + timedelta(minutes=30))}


def test_triggers_alike_in_their_source_are_told_by_the_rest() -> None:
    def keys(*words: str) -> list[TriggerKey]:
        return [TriggerKey.of(OnEvent("orders", where={"kind": word})) for word in words]

    before = {"ship": [*keys("web")[0], True], "ship-2": [*keys("shop")[0], True]}
    assert match(before, keys("shop", "web")) == ["ship-2", "ship"]
    assert match(before, keys("shop", "fax")) == ["ship-2", "ship"]
    assert match(before, keys("fax", "web", "shop")) == [None, "ship", "ship-2"]
    assert match(before, keys("web", "web")) == ["ship", "ship-2"]
    former = {"ship": [*keys("web")[0], False]}
    assert match(former, keys("fax")) == [None]  # not the one that was dropped long ago
    assert match(former, keys("web")) == ["ship"]


def test_names_are_read_once(used: Context) -> None:
    release(on=(OnEvent("web-orders"), OnEvent("shop-orders")))
    assert [trigger.name for trigger in events.declared(used)] == ["ship", "ship-2"]
    before = sum(REQUESTS.by_part().values())
    events.declared(used)
    assert sum(REQUESTS.by_part().values()) == before


def stored_by_place(used: Context, *cursors: int) -> None:
    """Store cursors as a release that named subscriptions by their places did."""
    for number, cursor in enumerate(cursors, 1):
        name = "ship" if number == 1 else f"ship-{number}"
        used.store.put(f"subscriptions/{name}.json", json.dumps({"next": cursor}).encode())


def test_what_was_stored_by_place_is_taken_over_once(used: Context) -> None:
    for topic in TOPICS:
        for _ in range(4):
            send(topic)
    stored_by_place(used, 2, 3)
    release(on=(OnEvent("web-orders"), OnEvent("shop-orders")))
    run_events(used)
    taken = Counter({("web-orders", 2): 1, ("web-orders", 3): 1, ("shop-orders", 3): 1})
    assert deliveries(used) == taken
    stored_by_place(used, 2, 3)  # its last process died before it stored the cursors
    release(on=(OnEvent("shop-orders"), OnEvent("web-orders")))
    run_events(used)
    assert deliveries(used) == taken
    release(on=(OnEvent("orders"), OnEvent("shop-orders")))
    run_events(used)
    assert deliveries(used) == taken  # a topic that is new to it begins with its next event
    send("orders")
    run_events(used)
    assert deliveries(used) == taken + Counter([("orders", 4)])


def test_a_cursor_beyond_a_topic_s_end_is_not_taken_for_the_topic_s(used: Context) -> None:
    stored_by_place(used, 30)
    release(on=(OnEvent("shop-orders"),))
    run_events(used)
    send("shop-orders")
    run_events(used)
    assert deliveries(used) == {("shop-orders", 0): 1}


@pytest.mark.parametrize("crons", [(DAILY, HALF), (HALF, DAILY)], ids=["in its place", "moved"])
def test_a_schedule_that_was_stored_by_place_goes_on(used: Context, crons: tuple[Cron, ...]) -> None:
    journal = Journal(used.store, "schedules/ship", actor="older")
    journal.append({"kind": "begun", "tick": (SIX - timedelta(days=2, hours=1)).isoformat()}, at=0)
    for number, days in enumerate((2, 1), 1):
        body = {"kind": "fired", "tick": (SIX - timedelta(days=days)).isoformat(), "invocation": "0" * 32}
        journal.append(body, at=number)
    release(schedule=crons)
    assert ticks(used, SIX + timedelta(minutes=10)) == {("daily", SIX)}
