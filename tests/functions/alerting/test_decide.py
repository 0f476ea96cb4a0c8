"""Who hears of what, and when not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from toque.functions.alerting import AlertPolicy, AlertState, Email, Webhook, decide, step
from toque.functions.monitoring import Alarm
from toque.registry import Entry

T0 = datetime(2013, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
POLICY = AlertPolicy(owner="ada", repeat_after=timedelta(days=1))


def alarm(number: int = 1, **changes: Any) -> Alarm:
    fields: dict[str, Any] = {
        "key": f"late/drift/{number}", "model": "late", "monitor": "drift", "subject": "features", "version": 1,
        "raised_at": T0, "start": T0 - HOUR, "end": T0, "text": "wind: effect .3",
    }  # fmt: skip
    return Alarm(**(fields | changes))


def after(state: AlertState, body: dict[str, Any], at: datetime = T0) -> AlertState:
    entry = Entry(number=0, body=body, actor="x", at=at, txn="t", previous="0" * 64)
    return step(state, entry)


def told(one: Alarm, at: datetime = T0, state: AlertState | None = None) -> AlertState:
    state = state or AlertState()
    key = decide(state, one, POLICY, at).key
    body = {"event": "told", "at": at.isoformat(), "key": key, "alarm": one.model_dump(mode="json")}
    return after(state, body)


def rule(state: AlertState, one: Alarm, now: datetime = T0 + HOUR) -> str:
    return decide(state, one, POLICY, now).rule


def test_what_stands_is_told_once_however_many_alarms_say_it() -> None:
    assert rule(AlertState(), alarm()) == "new"
    state = told(alarm())
    assert {rule(state, alarm(number)) for number in range(1, 101)} == {"standing"}
    assert rule(state, alarm(subject="other", key="late/other")) == "new"


def test_what_nobody_looks_after_is_told_again_each_time_under_a_key_of_its_own() -> None:
    state = told(alarm())
    first = decide(state, alarm(2), POLICY, T0 + 24 * HOUR)
    assert first.rule == "again"
    state = told(alarm(2), T0 + 24 * HOUR, state)
    assert rule(state, alarm(2), T0 + 47 * HOUR) == "standing"
    second = decide(state, alarm(2), POLICY, T0 + 48 * HOUR)
    assert second.rule == "again"
    assert len({first.key, second.key, alarm().key, alarm(2).key}) == 4
    never = POLICY.model_copy(update={"repeat_after": None})
    assert decide(state, alarm(2), never, T0 + 480 * HOUR).rule == "standing"


def test_who_acknowledges_is_told_of_the_recovery_alone() -> None:
    about = "drift/features"
    state = after(told(alarm()), {"event": "acknowledged", "about": about, "by": "ada"})
    assert rule(state, alarm(2), T0 + 72 * HOUR) == "acknowledged"
    well = alarm(3, recovered=True)
    assert rule(state, well) == "recovered"
    state = told(well, T0 + 2 * HOUR, state)
    assert rule(state, well) == "told"
    assert rule(state, alarm()) == "told"  # the old event, delivered once more
    assert rule(state, alarm(4)) == "new"  # what comes back is nobody's yet


@pytest.mark.parametrize("about", ["*", "drift", "drift/features"])
def test_a_silence_holds_what_it_covers_until_it_ends(about: str) -> None:
    silence = {
        "about": about,
        "until": (T0 + 5 * HOUR).isoformat(),
        "by": "ada",
        "reason": "works on the feed",
    }
    state = after(AlertState(), {"event": "silenced", "silence": silence})
    assert rule(state, alarm()) == "silenced"
    assert rule(state, alarm(monitor="quality", subject="nulls")) == ("silenced" if about == "*" else "new")
    assert rule(state, alarm(), T0 + 5 * HOUR) == "new"
    assert rule(state, alarm(recovered=True)) == "never_told"
    assert rule(after(state, {"event": "unsilenced", "about": about}), alarm()) == "new"
    assert (
        rule(after(told(alarm()), {"event": "silenced", "silence": silence}), alarm(9, recovered=True))
        == "recovered"
    )


def test_severity_follows_the_monitor_and_sinks_take_what_is_severe_enough() -> None:
    sinks = (
        Webhook(name="all", url="http://x.example"),
        Webhook(name="loud", url="http://x.example", least="critical"),
    )
    policy = AlertPolicy(
        owner="ada", runbook="https://x.example/a", runbooks={"drift": "https://x.example/b"}, sinks=sinks
    )
    loss = alarm(monitor="performance")
    explained = alarm(monitor="performance", explained_by=("late/quality/1",))
    assert [policy.severity_of(one) for one in (alarm(), loss, explained)] == ["warning", "critical", "info"]
    assert [one.name for one in policy.sinks_for("critical")] == ["all", "loud"]
    assert [one.name for one in policy.sinks_for("warning")] == ["all"]
    assert [policy.runbook_of(one) for one in (alarm(), loss)] == [
        "https://x.example/b",
        "https://x.example/a",
    ]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Webhook(name="a"), "either url or url_secret"),
        (lambda: Webhook(name="a", url="ftp://x.example"), "not http"),
        (lambda: Webhook(name="a", url="http://x.example", shape="pagerduty"), "routing_key_secret"),
        (lambda: Email(name="a", host="h", sender="a@b", to=("nobody",)), "no addresses"),
        (lambda: Email(name="a", host="h", sender="a@b", to=("a@b",), user="u"), "password_secret together"),
        (lambda: AlertPolicy(owner="a", runbook="wiki/x"), "must begin with http"),
        (lambda: AlertPolicy(owner="a", repeat_after=timedelta(0)), "longer than zero"),
        (lambda: AlertPolicy(owner="a", sinks=(Webhook(name="a", url="http://x"),) * 2), "its own name"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_where_it_is_declared(make: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make()


def test_a_naive_time_and_an_unknown_event_are_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        decide(AlertState(), alarm(), POLICY, datetime(2013, 1, 1))  # noqa: DTZ001 - the point
    with pytest.raises(ValueError, match="unknown event"):
        after(AlertState(), {"event": "sung"})
