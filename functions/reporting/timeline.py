"""Timeline of a model from its journals: versions, gates, approvals, rollouts, traffic, alarms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from toque.functions.monitoring import Alarm
from toque.registry import Entry

Kind = Literal["version", "gate", "approval", "champion", "traffic", "rollout", "alarm", "retrain"]


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """Event in the life of a model: time, kind, a sentence, and who caused it."""

    at: datetime
    kind: Kind
    text: str
    actor: str = ""


def timeline(*parts: Iterable[TimelineEvent]) -> list[TimelineEvent]:
    """Merge events into order of time."""
    return sorted((one for part in parts for one in part), key=lambda one: one.at)


def from_model(entries: Iterable[Entry]) -> list[TimelineEvent]:
    """Select the events of a model's journal in the registry."""
    described = ((entry, _described(entry.body)) for entry in entries)
    return [TimelineEvent(entry.at, *event, entry.actor) for entry, event in described if event is not None]


def from_rollouts(entries: Iterable[Entry]) -> list[TimelineEvent]:
    """Select the starts and stage changes of a model's rollouts, without ticks that held."""
    found, stage = [], ""
    for entry in entries:
        body = entry.body
        event = body["event"]
        at = datetime.fromisoformat(body["at"])
        if event == "started":
            stage = "shadow"
            text = f"rollout of version {body['challenger']} against {body['champion']}: shadow ({body['reason']})"
            found.append(TimelineEvent(at, "rollout", text, entry.actor))
        elif event == "decided" and body["stage"] != stage:
            stage = body["stage"]
            found.append(TimelineEvent(at, "rollout", f"{stage}: {_decided(body['decision'])}", entry.actor))
        elif event in ("paused", "resumed"):
            found.append(TimelineEvent(at, "rollout", event, entry.actor))
    return found


def from_retrains(entries: Iterable[Entry]) -> list[TimelineEvent]:
    """Select the retrains that began, resumed or ended, and the reasons why one did not begin."""
    found = []
    for entry in entries:
        body, at = entry.body, datetime.fromisoformat(entry.body["at"])
        if body["event"] == "finished":
            text = f"ended: {body['finished']['text']}"
        elif body["event"] == "skipped":
            text = f"no retrain for {body['alarm']['monitor']}, {_decided(body['decision'])}"
        else:
            text = f"{body['event']} for {body['alarm']['monitor']}: {body['alarm']['text']}"
        found.append(TimelineEvent(at, "retrain", text, entry.actor))
    return found


def from_alarms(alarms: Iterable[Alarm]) -> list[TimelineEvent]:
    """Select the alarms of the monitors, and their recoveries."""
    return [
        TimelineEvent(
            alarm.raised_at, "alarm", f"{alarm.monitor}: {alarm.text}{' (over)' if alarm.recovered else ''}"
        )
        for alarm in alarms
    ]


def _decided(decision: Mapping[str, Any]) -> str:
    """Return the text of the rule that decided."""
    texts = [finding["text"] for finding in decision["findings"] if finding["rule"] == decision["rule"]]
    return f"{decision['action']} by {decision['rule']}" + (f": {texts[0]}" if texts else "")


def _described(body: Mapping[str, Any]) -> tuple[Kind, str] | None:
    """Kind and sentence of an entry of a model's journal; None if it is no event of its life."""
    event: tuple[Kind, str] | None = None
    match body.get("kind"):
        case "version-created":
            event = "version", f"version {body['version']['version']} registered"
        case "gate":
            verdict = "passed" if body["passed"] else "failed"
            event = "gate", f"version {body['version']} {verdict} the gate {body['gate']!r}"
        case "review":
            verdict, comment = "approved" if body["approved"] else "rejected", body["comment"]
            event = "approval", f"version {body['version']} {verdict}{f': {comment}' if comment else ''}"
        case "alias":
            event = "champion", f"version {body['version']} became {body['alias']}"
        case "rollback":
            event = "champion", f"rolled back: version {body['version']} is {body['alias']} again"
        case "traffic" | "traffic-in-layer":
            event = "traffic", _traffic(body)
        case "holdout":
            event = "traffic", f"{body['share']:.2%} of the units held out as {body['holdout']!r}"
        case "holdout-ended":
            event = "traffic", f"holdout {body['holdout']!r} ended"
    return event


def _traffic(body: Mapping[str, Any]) -> str:
    arms = [f"{arm['name']} {arm['share']:.0%} to version {arm['version']}" for arm in body["arms"]]
    shadows = [f"shadow of version {version}" for version in body["shadows"]]
    layer = body.get("layer")
    inside = "" if layer is None else f" in layer {layer['name']!r}"
    return (", ".join([*arms, *shadows]) or "all traffic to the champion") + inside
