"""Payloads of an alert in the shape that each kind of sink understands."""

from __future__ import annotations

from email.message import EmailMessage
from email.utils import format_datetime
from hashlib import sha256
from typing import Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict

from toque.functions.alerting.decide import alert_subject
from toque.functions.alerting.policy import AlertPolicy, Email, Severity
from toque.functions.monitoring import Alarm

_SUMMARY = 1_000  # characters of PagerDuty's summary; it takes 1,024
_COLOURS: dict[Severity, str] = {"info": "#5b7083", "warning": "#c98a00", "critical": "#c0392b"}
_RECOVERED = "#0b6e4f"


class Alert(BaseModel):
    """Alert that people get for an alarm.

    key: of this sending; thread: shared by all alerts on a subject, recovery included. page: of the console about the subject,
    known where the alert is sent.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    thread: str
    alarm: Alarm
    severity: Severity
    owner: str
    runbook: str | None = None
    at: AwareDatetime
    page: str | None = None

    @classmethod
    def of(cls, alarm: Alarm, policy: AlertPolicy, *, key: str, at: AwareDatetime) -> Self:
        """Make the alert for an alarm under its model's policy."""
        return cls(
            key=key,
            thread=f"{alarm.model}/{alert_subject(alarm)}",
            alarm=alarm,
            severity=policy.severity_of(alarm),
            owner=policy.owner,
            runbook=policy.runbook_of(alarm),
            at=at,
        )

    @property
    def title(self) -> str:
        """Title of the alert in one line."""
        state = "RECOVERED" if self.alarm.recovered else self.severity.upper()
        return f"[{state}] {self.alarm.model}: {alert_subject(self.alarm)}"

    @property
    def facts(self) -> dict[str, str]:
        """Facts that a reader needs beside the text, by name."""
        alarm = self.alarm
        facts = {
            "model": f"{alarm.model}, version {alarm.version}",
            "predictions": f"{alarm.start:%Y-%m-%d %H:%M} to {alarm.end:%Y-%m-%d %H:%M} UTC",
            "owner": self.owner,
            "runbook": self.runbook or "",
            "page": self.page or "",
            "explained by": ", ".join(alarm.explained_by),
        }
        return {name: value for name, value in facts.items() if value}


def generic(alert: Alert) -> dict[str, Any]:
    """Make the generic JSON payload: every field, with the schema's name."""
    return {
        "schema": "toque.alert/1",
        "status": "recovered" if alert.alarm.recovered else "raised",
        **alert.model_dump(mode="json"),
    }


def slack(alert: Alert) -> dict[str, Any]:
    """Make the message of a Slack incoming webhook."""
    fields = [{"title": name, "value": _slack(value), "short": True} for name, value in alert.facts.items()]
    return {
        "text": _slack(alert.title),
        "attachments": [
            {
                "color": _RECOVERED if alert.alarm.recovered else _COLOURS[alert.severity],
                "text": _slack(alert.alarm.text),
                "fields": fields,
                "ts": int(alert.at.timestamp()),
            }
        ],
    }


def pagerduty(alert: Alert, routing_key: str) -> dict[str, Any]:
    """Make an event of PagerDuty's Events API v2."""
    named = {"runbook": alert.runbook, "page": alert.page}
    links = [{"href": link, "text": name} for name, link in named.items() if link]
    return {
        "routing_key": routing_key,
        "event_action": "resolve" if alert.alarm.recovered else "trigger",
        "dedup_key": alert.thread[-255:],
        "links": links,
        "payload": {
            "summary": f"{alert.title}: {alert.alarm.text}"[:_SUMMARY],
            "source": f"toque/{alert.alarm.model}",
            "severity": alert.severity,
            "timestamp": alert.at.isoformat(),
            "component": alert.alarm.model,
            "group": alert.alarm.monitor,
            "custom_details": {**alert.facts, "text": alert.alarm.text},
        },
    }


def mail(alert: Alert, sink: Email) -> EmailMessage:
    """Make an e-mail; a repeated one has the same id, by which mail readers drop it."""
    made = EmailMessage()
    made["Subject"] = alert.title.replace("\n", " ")
    made["From"], made["To"] = sink.sender, ", ".join(sink.to)
    made["Date"] = format_datetime(alert.at)
    made["Message-ID"] = _message_id(alert.key, sink)
    made["References"] = _message_id(alert.thread, sink)
    lines = [alert.alarm.text, "", *(f"{name}: {value}" for name, value in alert.facts.items())]
    made.set_content("\n".join(lines))
    return made


def _message_id(name: str, sink: Email) -> str:
    return f"<{sha256(name.encode()).hexdigest()[:32]}@{sink.sender.rpartition('@')[2]}>"


def _slack(text: str) -> str:
    """Escape the three characters that Slack treats as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
