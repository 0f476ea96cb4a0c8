"""Place in a topic from which a workflow waits, where the machines of publisher and submitter differ in their clocks."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conditions.clocks import FAR_SKEWS, SKEWS, skewed
from tests.waiting import until
from toque.functions import Context, Invocation, function, wait_for_event
from toque.functions.runtime.durable.invocation import run_pending
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.triggers.events import first_since, topic_of, wake_waiters
from toque.registry.journal import Journal
from toque.registry.times import utc_now

ALL_SKEWS = SKEWS | FAR_SKEWS
any_publisher = pytest.mark.parametrize("publisher", ALL_SKEWS.values(), ids=ALL_SKEWS.keys())
any_submitter = pytest.mark.parametrize("submitter", ALL_SKEWS.values(), ids=ALL_SKEWS.keys())


@function
def wait_for_delivery(order: int) -> dict[str, Any]:
    return wait_for_event("deliveries", where={"order": order})


def publish_on(used: Context, skew: timedelta, by: str, clock: Callable[[], datetime] = utc_now) -> int:
    """Publish an event of order 7 on a machine whose clock differs; returns its number."""
    topic = topic_of(used, "deliveries")
    topic.refresh()
    journal = Journal(used.store, "events/deliveries", actor="b", clock=skewed(clock, skew))
    body: dict[str, Any] = {"payload": {"order": 7, "by": by}, "key": None, "chain": []}
    return journal.append(body, at=topic.next).number


def pass_moment(used: Context) -> None:
    """Wait until the store dates what is written later than what was; some file systems do so every few milliseconds."""
    written = used.store.now()
    until(lambda: used.store.now() > written)


@any_publisher
@any_submitter
def test_a_workflow_gets_what_was_published_since_its_submission_whatever_the_clocks_say(
    used: Context, publisher: timedelta, submitter: timedelta
) -> None:
    for _ in range(3):
        publish_on(used, publisher, "before")
    pass_moment(used)
    ledger = Ledger(used.store, actor="ada", clock=skewed(utc_now, submitter))
    submitted = ledger.journal(ledger.submit(wait_for_delivery, {"order": 7}))
    pass_moment(used)
    number = publish_on(used, publisher, "after")
    publish_on(used, publisher, "later")
    stored_at = used.store.find_modified_at(submitted.key(0))
    assert stored_at is not None
    by_clock = submitted.entry(0).at
    assert first_since(topic_of(used, "deliveries"), stored_at, by_clock=by_clock) == number


@pytest.mark.parametrize("skew", FAR_SKEWS.values(), ids=FAR_SKEWS.keys())
def test_a_wait_that_is_reached_after_its_event_returns_it_whatever_the_publisher_s_clock_says(
    used: Context, skew: timedelta, eventually: Callable[..., None]
) -> None:
    publish_on(used, skew, "before")
    pass_moment(used)
    invocation: Invocation[Any] = wait_for_delivery.submit(7)
    pass_moment(used)
    publish_on(used, skew, "after")

    def waits() -> bool:
        run_pending(used)
        return invocation.status() == "waiting"

    eventually(waits)
    assert wake_waiters(used) == 1
    assert invocation.result(60) == {"order": 7, "by": "after"}


@any_publisher
def test_no_event_of_the_second_in_which_a_store_dates_the_submission_is_missed(
    used: Context, monkeypatch: pytest.MonkeyPatch, publisher: timedelta
) -> None:
    second = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
    submitted_at = second + timedelta(milliseconds=300)
    monkeypatch.setattr(type(used.store), "find_modified_at", lambda *_: second)
    publish_on(used, publisher, "before", clock=lambda: second + timedelta(milliseconds=100))
    number = publish_on(used, publisher, "after", clock=lambda: second + timedelta(milliseconds=500))
    since = first_since(topic_of(used, "deliveries"), second, by_clock=submitted_at)
    assert since <= number
    if abs(publisher) < timedelta(milliseconds=100):  # else nothing tells which came first
        assert since == number
