"""Timeline of a model from its journals: versions, gates, approvals, rollouts, traffic, alarms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    described = ((entry, _MODEL.get(str(entry.body.get("kind")))) for entry in entries)
    return [_event(entry, *tell(entry.body)) for entry, tell in described if tell is not None]


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


def _event(entry: Entry, kind: Kind, text: str) -> TimelineEvent:
    return TimelineEvent(entry.at, kind, text, entry.actor)


def _version(body: Mapping[str, Any]) -> tuple[Kind, str]:
    version = body["version"]
    return "version", f"version {version['version']} registered"


def _gate(body: Mapping[str, Any]) -> tuple[Kind, str]:
    verdict = "passed" if body["passed"] else "failed"
    return "gate", f"version {body['version']} {verdict} the gate {body['gate']!r}"


def _review(body: Mapping[str, Any]) -> tuple[Kind, str]:
    verdict = "approved" if body["approved"] else "rejected"
    comment = f": {body['comment']}" if body["comment"] else ""
    return "approval", f"version {body['version']} {verdict}{comment}"


def _alias(body: Mapping[str, Any]) -> tuple[Kind, str]:
    return "champion", f"version {body['version']} became {body['alias']}"


def _rollback(body: Mapping[str, Any]) -> tuple[Kind, str]:
    return "champion", f"rolled back: version {body['version']} is {body['alias']} again"


def _traffic(body: Mapping[str, Any]) -> tuple[Kind, str]:
    arms = [f"{arm['name']} {arm['share']:.0%} to version {arm['version']}" for arm in body["arms"]]
    shadows = [f"shadow of version {version}" for version in body["shadows"]]
    layer = body.get("layer")
    inside = "" if layer is None else f" in layer {layer['name']!r}"
    return "traffic", (", ".join([*arms, *shadows]) or "all traffic to the champion") + inside


def _held_out(body: Mapping[str, Any]) -> tuple[Kind, str]:
    return "traffic", f"{body['share']:.2%} of the units held out as {body['holdout']!r}"


def _holdout_ended(body: Mapping[str, Any]) -> tuple[Kind, str]:
    return "traffic", f"holdout {body['holdout']!r} ended"


_MODEL: dict[str, Callable[[Mapping[str, Any]], tuple[Kind, str]]] = {
    "version-created": _version,
    "gate": _gate,
    "review": _review,
    "alias": _alias,
    "rollback": _rollback,
    "traffic": _traffic,
    "traffic-in-layer": _traffic,
    "holdout": _held_out,
    "holdout-ended": _holdout_ended,
}
