"""Alarms that reflexes raise: a rollout that was rolled back, and a champion that breaks."""

from __future__ import annotations

from datetime import datetime, timedelta

from toque.functions.live_counts import WINDOW_S, window_at
from toque.functions.monitoring import Alarm
from toque.functions.reflexes.champion import SPANS, ServiceFinding
from toque.functions.rollout import Outcome, TickResult

_BY_HAND = "by_hand"  # who rolled it back knows


def rollback_alarm(model: str, ended: Outcome, decided: TickResult, now: datetime) -> Alarm | None:
    """Make the alarm of a rollout that rules have rolled back, with one key for ever; None if it ended otherwise."""
    if ended.stage != "rolled_back" or ended.rule == _BY_HAND:
        return None
    why = f": {decided.text}" if (decided.rollout, decided.rule) == (ended.rollout, ended.rule) else ""
    return Alarm(
        key=f"{model}/rollout/{ended.rollout}/rolled_back",
        model=model,
        monitor="rollout",
        subject=f"rollout-{ended.rollout}",
        version=ended.challenger,
        raised_at=now,
        start=ended.started_at,
        end=ended.ended_at,
        text=f"version {ended.challenger} was rolled back by {ended.rule}; users get version {ended.champion}{why}",
    )


def service_alarm(
    model: str, version: int, finding: ServiceFinding, now: datetime, *, canary: int | None = None
) -> Alarm:
    """Make the alarm of a champion whose last minutes are not as they should be; one key in each window.

    canary: version that could take its place, which is for a person to say.
    """
    way_out = "" if canary is None else f"; if its canary {canary} serves: toque rollout promote {model}"
    return Alarm(
        key=f"{model}/service/{finding.subject}/{version}/{window_at(now.timestamp())}",
        model=model,
        monitor="service",
        subject=finding.subject,
        version=version,
        raised_at=now,
        start=now - timedelta(seconds=max(SPANS) * WINDOW_S),
        end=now,
        text=f"version {version}: {finding.text}{way_out}",
        statistic=finding.value,
        threshold=finding.limit,
    )


def recovery_of(alarm: Alarm, now: datetime, text: str) -> Alarm:
    """Make the alarm that says that another is over."""
    return alarm.model_copy(
        update={
            "key": f"{alarm.key}/recovered",
            "recovered": True,
            "raised_at": now,
            "end": now,
            "text": text,
        }
    )
