"""Delivery of an alert to a sink in its own shape, tried once; the caller retries where that can help."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable, Collection
from email.message import EmailMessage
from email.utils import format_datetime
from hashlib import sha256
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
from pydantic import AwareDatetime, BaseModel, Field

from toque.functions.alerting.decide import AlertPolicy, Email, Severity, Sink, Webhook, alert_subject
from toque.functions.monitoring import Alarm

FindSecret = Callable[[str], str | None]
TIMEOUT_S = 10.0
_TAKEN_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
_SMTP_PERMANENT = 500  # the code from which on a retry does not help
_MOST_SUMMARY = 1_000  # characters of PagerDuty's summary; it takes 1,024
_COLOURS: dict[Severity, str] = {"info": "#5b7083", "warning": "#c98a00", "critical": "#c0392b"}
_RECOVERED_COLOUR = "#0b6e4f"


class SinkDownError(ValueError):
    """Raised where a sink does not take the alert now but later may; a ValueError, since the platform itself works."""


class SinkRefusedError(ValueError):
    """Raised where a sink will not take the alert however often it is sent."""


def deliver(
    alert: Alert, sink: Sink, find_secret: FindSecret, *, hosts: Collection[str] | None = None
) -> None:
    """Send one alert to one sink; errors name the sink and never its address, which may be a secret.

    hosts: to which alerts may be sent, `*.example.com` for all below a domain; None: to any.
    Raises: SinkDownError, SinkRefusedError.
    """
    if isinstance(sink, Webhook):
        _post(alert, sink, find_secret, hosts)
    else:
        _check_host(sink.name, sink.host, hosts)
        _send_mail(alert, sink, find_secret)


def _check_host(sink: str, host: str, hosts: Collection[str] | None) -> None:
    """Check that alerts may be sent to a host. Raises: SinkRefusedError."""
    if hosts is None:
        return
    named = host.lower().rstrip(".")
    if not any(named.endswith(each[1:]) if each.startswith("*.") else named == each for each in hosts):
        raise SinkRefusedError(
            f"sink {sink!r}: its host is not among TOQUE_ALERT_HOSTS; ask who runs the platform to add it"
        )


def _post(alert: Alert, sink: Webhook, find_secret: FindSecret, hosts: Collection[str] | None) -> None:
    url = sink.url if sink.url_secret is None else _secret(sink.name, sink.url_secret, find_secret)
    _check_host(sink.name, urlsplit(str(url)).hostname or "", hosts)
    headers = {"Idempotency-Key": alert.key[-255:]}
    try:
        answer = httpx.post(
            str(url),
            json=_shaped(alert, sink, find_secret),
            headers=headers,
            timeout=TIMEOUT_S,
            follow_redirects=False,
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise SinkRefusedError(
            f"sink {sink.name!r}: its url cannot be read; it needs http:// or https://"
        ) from error
    except httpx.TransportError as error:
        raise SinkDownError(f"sink {sink.name!r} does not answer: {type(error).__name__}") from None
    if answer.is_success:
        return
    problem = (
        f"sink {sink.name!r} answered {answer.status_code}"  # and no more: its text may be anybody's secret
    )
    if answer.is_server_error or answer.status_code in _TAKEN_LATER:
        raise SinkDownError(problem)
    raise SinkRefusedError(problem)


def _shaped(alert: Alert, sink: Webhook, find_secret: FindSecret) -> dict[str, Any]:
    if sink.shape == "slack":
        return slack(alert)
    if sink.routing_key_secret is not None:
        return pagerduty(alert, _secret(sink.name, sink.routing_key_secret, find_secret))
    return generic(alert)


def _send_mail(alert: Alert, sink: Email, find_secret: FindSecret) -> None:
    password = None if sink.password_secret is None else _secret(sink.name, sink.password_secret, find_secret)
    secure = ssl.create_default_context() if sink.security != "none" else None
    try:
        with _connected(sink, secure) as server:
            if sink.security == "starttls":
                server.starttls(context=secure)
            if sink.user is not None and password is not None:
                server.login(sink.user, password)
            refused = server.send_message(mail(alert, sink), to_addrs=list(sink.to))
    except smtplib.SMTPRecipientsRefused as error:
        raise _smtp_error(sink, max(code for code, _ in error.recipients.values())) from None
    except smtplib.SMTPResponseException as error:
        raise _smtp_error(sink, error.smtp_code) from None
    except ssl.SSLCertVerificationError as error:
        raise SinkRefusedError(
            f"sink {sink.name!r}: its certificate is not valid: {error.verify_message}"
        ) from None
    except (OSError, smtplib.SMTPException) as error:
        raise SinkDownError(f"sink {sink.name!r} does not answer: {type(error).__name__}") from None
    if refused:
        raise SinkRefusedError(f"sink {sink.name!r} took it for some, but not for {sorted(refused)}")


def _connected(sink: Email, secure: ssl.SSLContext | None) -> smtplib.SMTP:
    if sink.security == "tls":
        return smtplib.SMTP_SSL(sink.host, sink.port, timeout=TIMEOUT_S, context=secure)
    return smtplib.SMTP(sink.host, sink.port, timeout=TIMEOUT_S)


def _smtp_error(sink: Email, code: int) -> Exception:
    kind = SinkRefusedError if code >= _SMTP_PERMANENT else SinkDownError
    return kind(f"sink {sink.name!r} answered {code}")


def _secret(sink: str, name: str, find: FindSecret) -> str:
    value = find(name)
    if not value:
        raise SinkRefusedError(
            f"sink {sink!r}: no secret {name!r} here; set the variable {name}, or put a file of that name into TOQUE_SECRETS"
        )
    return value


class Alert(BaseModel, frozen=True):
    """Alert that people get for an alarm."""

    key: str = Field(description="Key of this sending, by which a sink knows a repeated one.")
    thread: str = Field(description="Key that all alerts on a subject share, recovery included.")
    alarm: Alarm = Field(description="Alarm that people are told of.")
    severity: Severity = Field(description="Severity, by the policy of the model.")
    owner: str = Field(description="Person or team that looks after the model.")
    runbook: str | None = Field(default=None, description="Link to what to do, if there is one.")
    at: AwareDatetime = Field(
        description="Moment when it was decided to send the alert, with an offset from UTC."
    )
    page: str | None = Field(
        default=None,
        description="Link to the console's page about the subject, known where the alert is sent.",
    )

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
                "color": _RECOVERED_COLOUR if alert.alarm.recovered else _COLOURS[alert.severity],
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
            "summary": f"{alert.title}: {alert.alarm.text}"[:_MOST_SUMMARY],
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
