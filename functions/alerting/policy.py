"""Policy of a model's alerts: sinks, severities and runbooks, one value in the model's definition."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.monitoring import Alarm

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
_NAME = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")


class Webhook(BaseModel):
    """Webhook sink: a URL that alerts are posted to.

    url: or url_secret, the name of the secret that holds it (Slack's and PagerDuty's URLs are secrets: anyone who knows one may post).
    shape: what is posted. routing_key_secret: the secret with PagerDuty's integration key, needed for its shape.
    least: alerts of less severity are not sent here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["webhook"] = "webhook"
    name: str = _NAME
    shape: Literal["generic", "slack", "pagerduty"] = "generic"
    url: str | None = None
    url_secret: str | None = None
    routing_key_secret: str | None = None
    least: Severity = "info"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.url is None) == (self.url_secret is None):
            raise ValueError(f"webhook {self.name!r} needs either url or url_secret")
        if self.url is not None and urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"webhook {self.name!r}: url {self.url!r} is not http:// or https://")
        if (self.shape == "pagerduty") != (self.routing_key_secret is not None):
            raise ValueError(
                f"webhook {self.name!r}: routing_key_secret belongs to the shape pagerduty, and it needs one"
            )
        return self


class Email(BaseModel):
    """E-mail sink: mailboxes, reached by SMTP.

    security: STARTTLS, TLS from the start, or none (a relay on this machine). user, password_secret: both or neither.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["email"] = "email"
    name: str = _NAME
    host: str
    port: int = Field(default=587, ge=1, le=65_535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    to: tuple[str, ...] = Field(min_length=1)
    user: str | None = None
    password_secret: str | None = None
    least: Severity = "info"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.user is None) != (self.password_secret is None):
            raise ValueError(f"e-mail {self.name!r} needs user and password_secret together, or neither")
        wrong = [one for one in self.to if "@" not in one or any(char.isspace() for char in one)]
        if wrong:
            raise ValueError(f"e-mail {self.name!r}: {wrong} are no addresses")
        return self


Sink = Annotated[Webhook | Email, Field(discriminator="kind")]


class AlertPolicy(BaseModel):
    """Policy of a model's alerts: to which sinks they go, and how severe they are.

    owner: a person or team, named in every alert. runbook: link to what to do; runbooks: by monitor, where it differs.
    severity: by monitor; an alarm that an incident explains is never more than info. sinks: each gets every alert that is
    severe enough for it. repeat_after: a standing alert that was not acknowledged is sent again after so long; None: never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str = Field(min_length=1)
    runbook: str | None = None
    runbooks: dict[str, str] = {}
    severity: dict[str, Severity] = {
        "performance": "critical",
        "quality": "critical",
        "drift": "warning",
        "rollout": "critical",
        "service": "critical",
    }
    sinks: tuple[Sink, ...] = ()
    repeat_after: timedelta | None = timedelta(days=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [sink.name for sink in self.sinks]
        if len(set(names)) < len(names):
            raise ValueError(f"each sink needs its own name, got {names}")
        if self.repeat_after is not None and self.repeat_after <= timedelta(0):
            raise ValueError(f"repeat_after must be longer than zero, got {self.repeat_after}; None is never")
        links = [link for link in (self.runbook, *self.runbooks.values()) if link is not None]
        wrong = [link for link in links if urlsplit(link).scheme not in ("http", "https")]
        if wrong:
            raise ValueError(f"runbook links must begin with http:// or https://, got {wrong}")
        return self

    def severity_of(self, alarm: Alarm) -> Severity:
        """Return the severity of an alarm's alert."""
        return "info" if alarm.explained_by else self.severity.get(alarm.monitor, "warning")

    def runbook_of(self, alarm: Alarm) -> str | None:
        """Return the runbook link for an alarm, or None."""
        return self.runbooks.get(alarm.monitor, self.runbook)

    def sinks_for(self, severity: Severity) -> tuple[Sink, ...]:
        """Return the sinks that take an alert of this severity."""
        return tuple(one for one in self.sinks if SEVERITIES.index(one.least) <= SEVERITIES.index(severity))
