from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from toque.functions.monitoring import Alarm
from toque.functions.retraining.policy import (
    MOST_BUDGET,
    Blackout,
    Finished,
    RetrainingPolicy,
    RetrainState,
    Running,
    Situation,
    current_cooldown,
    decide,
    retrains_in_vain,
    step,
)
from toque.functions.retraining.windows import TrainingWindow
from toque.registry.journal import Entry

NOW = datetime(2013, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)
POLICY = RetrainingPolicy()


def alarm(**changes: Any) -> Alarm:
    fields: dict[str, Any] = {
        "key": "late/performance/loss/1/15000",
        "model": "late",
        "monitor": "performance",
        "subject": "loss",
        "version": 1,
        "raised_at": NOW,
        "start": NOW - 2 * DAY,
        "end": NOW - DAY,
        "text": "loss rose",
    }
    return Alarm(**(fields | changes))


def world(**changes: Any) -> Situation:
    fields: dict[str, Any] = {"champion": 1, "champion_since": NOW - 60 * DAY, "wall": NOW}
    return Situation(**(fields | changes))


def running(wall: datetime) -> Running:
    return Running(number=0, alarm=alarm(), at=NOW - DAY, wall=wall, champion=1)


def ended(version: int | None, days_ago: int = 30) -> Finished:
    outcome = "no_challenger" if version is None else "rolled_out"
    return Finished(number=0, started_at=NOW - days_ago * DAY, outcome=outcome, version=version)


def rule(state: RetrainState, *, policy: RetrainingPolicy = POLICY, **changes: Any) -> tuple[str, str]:
    decision = decide(state, changes.pop("alarm", alarm()), world(**changes), policy, NOW)
    assert decision.text
    return decision.action, decision.rule


def test_a_first_alarm_retrains() -> None:
    assert rule(RetrainState()) == ("retrain", "go")


@pytest.mark.parametrize(
    ("state", "changes", "expected"),
    [
        (RetrainState(running=running(NOW - timedelta(minutes=1))), {}, ("skip", "running")),
        (RetrainState(running=running(NOW - timedelta(hours=1))), {}, ("resume", "dead")),
        (RetrainState(), {"alarm": alarm(recovered=True)}, ("skip", "no_trigger")),
        (RetrainState(), {"alarm": alarm(version=2)}, ("skip", "other_champion")),
        (RetrainState(), {"champion": None}, ("skip", "other_champion")),
        (RetrainState(), {"rollout_open": True}, ("skip", "rollout_open")),
        (RetrainState(), {"champion_since": NOW - DAY, "ends": {1: "promoted"}}, ("skip", "settling")),
        (RetrainState(), {"champion_since": NOW - DAY, "ends": {1: "rolled_back"}}, ("retrain", "go")),
        (RetrainState(starts=(NOW - 5 * DAY,)), {}, ("skip", "cooldown")),
        (RetrainState(starts=(NOW - 15 * DAY,)), {}, ("retrain", "go")),
        (RetrainState(starts=tuple(NOW - (300 - i) * DAY for i in range(12))), {}, ("skip", "budget")),
    ],
)
def test_each_rule_has_its_say(
    state: RetrainState, changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert rule(state, **changes) == expected


def test_only_declared_monitors_trigger() -> None:
    policy = RetrainingPolicy(triggers=("performance",))
    assert rule(RetrainState(), policy=policy) == ("retrain", "go")
    assert rule(RetrainState(), policy=policy, alarm=alarm(monitor="drift")) == ("skip", "no_trigger")


def test_a_blackout_waits() -> None:
    policy = RetrainingPolicy(blackouts=(Blackout(start=NOW - DAY, end=NOW + DAY),))
    assert rule(RetrainState(), policy=policy) == ("skip", "blackout")


def test_retrains_in_vain_make_the_next_wait_longer_and_a_promotion_ends_that() -> None:
    vain = RetrainState(finished=(ended(7), ended(None), ended(8)), starts=(NOW - 30 * DAY,))
    assert retrains_in_vain(vain, {8: "rolled_back"}) == 3
    assert current_cooldown(vain, {8: "rolled_back"}, POLICY) == timedelta(
        days=90
    )  # 14 * 2**3 = 112, at most 90
    assert rule(vain, ends={8: "rolled_back"}) == ("skip", "cooldown")
    assert retrains_in_vain(vain, {8: "promoted"}) == 0
    assert current_cooldown(vain, {8: "promoted"}, POLICY) == timedelta(days=14)
    assert rule(vain, ends={8: "promoted"}) == ("retrain", "go")


def test_a_hundred_vain_retrains_do_not_overflow() -> None:
    state = RetrainState(finished=tuple(ended(None) for _ in range(100)))
    assert current_cooldown(state, {}, POLICY) == POLICY.max_cooldown


def folded(outcomes: list[str], every: timedelta) -> RetrainState:
    """State after retrains that ended so, the last of them just now."""
    state = RetrainState()
    for number, outcome in enumerate(outcomes):
        at = NOW - (len(outcomes) - 1 - number) * every
        begun = Running(number=number, alarm=alarm(), at=at, wall=at, champion=1).model_dump(mode="json")
        end = {"number": number, "started_at": at.isoformat(), "outcome": outcome}
        for body in ({"event": "started", "running": begun}, {"event": "finished", "finished": end}):
            state = step(state, Entry(number=number, at=at, actor="ada", body=body, txn="", previous=""))
    return state


@pytest.mark.parametrize("budget", [1, 12, 64, 65, 100, MOST_BUDGET])
@pytest.mark.parametrize("failures", [0, 1], ids=["none fails", "half fail"])
def test_any_budget_is_spent_by_so_many_retrains_and_by_none_that_failed(budget: int, failures: int) -> None:
    policy = RetrainingPolicy(
        budget=budget, cooldown=timedelta(0), max_cooldown=timedelta(0), settle=timedelta(0)
    )
    runs = [*["failed"] * failures, "no_challenger"]
    every = timedelta(hours=1)
    state = folded(runs * budget, every)
    assert rule(state, policy=policy) == ("skip", "budget")
    without_the_first = policy.model_copy(
        update={"budget_window": (len(runs) * budget - len(runs)) * every or every / 2}
    )
    assert rule(state, policy=without_the_first)[1] == ("go" if budget > 1 else "budget")


def test_all_findings_are_there_whatever_decided() -> None:
    decision = decide(RetrainState(), alarm(version=9), world(), POLICY, NOW)
    assert [finding.rule for finding in decision.findings] == [
        "running", "dead", "no_trigger", "unimportant", "explained", "broken_feed", "other_champion", "too_young",
        "no_quorum", "rollout_open", "settling", "blackout", "cooldown", "budget",
    ]  # fmt: skip


def test_policies_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="own name"):
        RetrainingPolicy(windows=(TrainingWindow(name="all"), TrainingWindow(name="all", days=3)))
    with pytest.raises(ValidationError, match="own name"):
        RetrainingPolicy(windows=())
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        RetrainingPolicy(budget=MOST_BUDGET + 1)
    with pytest.raises(ValidationError, match="holdout must be longer"):
        RetrainingPolicy(holdout=timedelta(0))
    with pytest.raises(ValueError, match="no time zone"):
        decide(RetrainState(), alarm(), world(), POLICY, datetime(2013, 6, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("limits", "changes", "expected"),
    [
        ({"persist": 2 * DAY}, {"alarm": alarm(raised_at=NOW - DAY)}, "too_young"),
        ({"persist": 2 * DAY}, {"alarm": alarm(raised_at=NOW - 2 * DAY)}, "go"),
        ({"persist": 2 * DAY}, {"alarm": alarm(monitor="manual")}, "go"),
        ({"quorum": 2}, {}, "no_quorum"),
        ({"quorum": 2}, {"standing": ("performance/loss",)}, "no_quorum"),
        ({"quorum": 2}, {"standing": ("performance/loss", "drift/features")}, "go"),
        ({"quorum": 2}, {"alarm": alarm(monitor="volume")}, "go"),
        ({"important": ("wind",)}, {"alarm": alarm(monitor="drift", columns=("hour",))}, "unimportant"),
        ({"important": ("wind",)}, {"alarm": alarm(monitor="drift", columns=("hour", "wind"))}, "go"),
        ({"important": ("wind",)}, {}, "go"),
    ],
)
def test_few_young_and_unimportant_alarms_wait(
    limits: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    assert rule(RetrainState(), policy=POLICY.model_copy(update=limits), **changes)[1] == expected


def test_a_schedule_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValidationError, match="no cron expression"):
        RetrainingPolicy(schedule="every monday")


def failed(days_ago: float) -> Finished:
    return Finished(number=0, started_at=NOW - days_ago * DAY, outcome="failed", text="InvalidRows: no rows")


def after(*ends: Finished) -> RetrainState:
    """State after retrains that ended so, the last one last."""
    return RetrainState(finished=ends, starts=tuple(one.started_at for one in ends))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (after(failed(0.01)), "go"),
        (after(failed(0.02), failed(0.01)), "cooldown"),  # a loop of failures does not spin
        (after(failed(2), failed(1)), "go"),
        (after(*(failed(days) for days in range(40, 0, -1))), "go"),
        (after(ended(None, 20), failed(2), failed(1)), "cooldown"),  # 28 days, after one in vain
        (after(ended(None, 30), *(failed(days) for days in range(9, 0, -1))), "go"),
        (after(ended(None, 5)), "cooldown"),
        (after(failed(6), ended(None, 5)), "cooldown"),
    ],
)
def test_a_retrain_that_failed_makes_none_wait(state: RetrainState, expected: str) -> None:
    assert rule(state)[1] == expected


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        (after(ended(None, 1)), {}),
        (after(failed(0.02), failed(0.01)), {}),
        (after(*(ended(None, days) for days in range(60, 0, -1))), {}),
        (RetrainState(starts=tuple(NOW - (300 - i) * DAY for i in range(12))), {}),
        (RetrainState(), {"champion_since": NOW - DAY, "ends": {1: "promoted"}}),
        (RetrainState(), {"policy": RetrainingPolicy(blackouts=(Blackout(start=NOW - DAY, end=NOW + DAY),))}),
    ],
)
def test_a_person_does_not_wait(state: RetrainState, changes: dict[str, Any]) -> None:
    assert rule(state, **changes)[0] == "skip"
    assert rule(state, **changes, alarm=alarm(monitor="manual")) == ("retrain", "go")


def test_a_person_waits_for_what_is_under_way() -> None:
    manual = alarm(monitor="manual")
    assert rule(RetrainState(running=running(NOW)), alarm=manual) == ("skip", "running")
    assert rule(RetrainState(), alarm=manual, rollout_open=True) == ("skip", "rollout_open")
