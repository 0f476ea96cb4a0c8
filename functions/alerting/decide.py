"""Policy of alerts, and whether people get one of an alarm: pure, over what was sent, silenced and acknowledged.

An alert is about one subject of one monitor. However many alarms there are about it, it is sent once, then again only
if nobody acknowledged it for long; its recovery is sent to the same sinks.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, Field, model_validator

from toque.functions.monitoring import Alarm
from toque.registry import Entry

Rule = Literal["new", "again", "recovered", "told", "silenced", "acknowledged", "standing", "never_told"]
Severity = Literal["info", "warning", "critical"]
SENDS: tuple[Rule, ...] = ("new", "again", "recovered")
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
_MAX_KEYS = 512  # keys that the fold keeps
_SINK_NAME = Field(
    pattern=r"^[a-z0-9][a-z0-9_-]*$", description="Name of the sink; no other of the policy has the same."
)


class Silence(BaseModel, frozen=True):
    """Silence that holds back alerts about a subject until a moment.

    about: "monitor/subject", "monitor", or "*" for everything.
    """

    about: str
    until: AwareDatetime
    by: str
    reason: str

    def covers(self, alarm: Alarm, now: datetime) -> bool:
        """Whether the silence holds back this alarm now."""
        return now < self.until and self.about in ("*", alarm.monitor, alert_subject(alarm))


class Standing(BaseModel, frozen=True):
    """Alert that was sent and has not recovered. key: of the alarm sent last, at `told_at`."""

    key: str
    told_at: AwareDatetime
    acknowledged_by: str | None = None


class AlertState(BaseModel, frozen=True):
    """State folded from the journal `alerts/{model}`. told: keys of the last alerts sent; standing: by subject."""

    told: tuple[str, ...] = ()
    standing: dict[str, Standing] = {}
    silences: tuple[Silence, ...] = ()


class AlertVerdict(BaseModel, frozen=True):
    """Verdict on an alarm, and the rule that gave it. key: of the alert; one key is not sent twice."""

    rule: Rule
    key: str
    text: str

    @property
    def sends(self) -> bool:
        """Whether the alert is sent to people."""
        return self.rule in SENDS


def alert_subject(alarm: Alarm) -> str:
    """Return the subject of an alarm, "monitor/subject"; alarms about one subject are one alert."""
    return f"{alarm.monitor}/{alarm.subject}"


def decide(state: AlertState, alarm: Alarm, policy: AlertPolicy, now: datetime) -> AlertVerdict:
    """Decide whether `alarm` is sent to people. Raises: ValueError if `now` has no time zone."""
    if now.tzinfo is None:
        raise ValueError(f"now {now} has no time zone; pass an aware UTC time")
    standing = state.standing.get(alert_subject(alarm))
    if alarm.recovered:
        rule, text = _of_recovery(state, alarm, standing)
    elif (silence := next((one for one in state.silences if one.covers(alarm, now)), None)) is not None:
        rule, text = "silenced", f"silenced until {silence.until} by {silence.by}: {silence.reason}"
    elif standing is not None:
        rule, text = _of_standing(standing, policy, now)
    elif alarm.key in state.told:
        rule, text = "told", "this alarm was told before, and is over"
    else:
        rule, text = "new", "nothing about it stands yet"
    key = f"{alarm.key}/since/{standing.told_at.isoformat()}" if rule == "again" and standing else alarm.key
    return AlertVerdict(rule=rule, key=key, text=text)


def _of_recovery(state: AlertState, alarm: Alarm, standing: Standing | None) -> tuple[Rule, str]:
    if alarm.key in state.told:
        return "told", "this recovery was told before"
    if standing is None:
        return "never_told", "it recovered from what nobody was told of"
    return "recovered", f"what was told at {standing.told_at} is over"


def _of_standing(standing: Standing, policy: AlertPolicy, now: datetime) -> tuple[Rule, str]:
    if standing.acknowledged_by is not None:
        return "acknowledged", f"{standing.acknowledged_by} looks after it"
    if policy.repeat_after is not None and now - standing.told_at >= policy.repeat_after:
        return "again", f"nobody acknowledged what was told at {standing.told_at}"
    return "standing", f"told at {standing.told_at}"


def step(state: AlertState, entry: Entry) -> AlertState:
    """Fold one entry of `alerts/{model}`. Raises: ValueError for an event that is not of this journal."""
    body: dict[str, Any] = entry.body
    event = body["event"]
    if event == "told":
        return _told(state, Alarm.model_validate(body["alarm"]), body["key"], body["at"])
    if event == "silenced":
        added = Silence.model_validate(body["silence"])
        kept = [one for one in state.silences if one.until > entry.at and one.about != added.about]
        return state.model_copy(update={"silences": (*kept, added)})
    if event == "unsilenced":
        kept = [one for one in state.silences if one.about != body["about"]]
        return state.model_copy(update={"silences": tuple(kept)})
    if event == "acknowledged":
        standing = dict(state.standing)
        if body["about"] in standing:
            by = {"acknowledged_by": body["by"]}
            standing[body["about"]] = standing[body["about"]].model_copy(update=by)
        return state.model_copy(update={"standing": standing})
    raise ValueError(
        f"entry {entry.number}: unknown event {event!r}; it was written by a newer Toque: upgrade this one"
    )


def _told(state: AlertState, alarm: Alarm, key: str, at: str) -> AlertState:
    standing = {name: one for name, one in state.standing.items() if name != alert_subject(alarm)}
    if not alarm.recovered:
        standing[alert_subject(alarm)] = Standing(key=alarm.key, told_at=datetime.fromisoformat(at))
    told = (*state.told, alarm.key, *([key] if key != alarm.key else []))[-_MAX_KEYS:]
    return state.model_copy(update={"told": told, "standing": standing})


class Webhook(BaseModel, frozen=True, extra="forbid"):
    """Webhook sink: a URL that alerts are posted to.

    Either its URL is given, or the secret that holds it. Slack's and PagerDuty's are secrets: anyone who knows one may post.
    """

    kind: Literal["webhook"] = Field(default="webhook", description="Kind of the sink.")
    name: str = _SINK_NAME
    shape: Literal["generic", "slack", "pagerduty"] = Field(
        default="generic", description="Form of the JSON that is posted."
    )
    url: str | None = Field(
        default=None,
        description="URL, http:// or https://, that alerts are posted to, where it is no secret.",
    )
    url_secret: str | None = Field(default=None, description="Name of the secret that holds the URL.")
    routing_key_secret: str | None = Field(
        default=None,
        description=(
            "Name of the secret that holds PagerDuty's integration key; "
            "of the shape `pagerduty`, which needs it."
        ),
    )
    least: Severity = Field(default="info", description="Least severity of the alerts that are sent here.")

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


class Email(BaseModel, frozen=True, extra="forbid"):
    """E-mail sink: mailboxes, reached by SMTP. User and password are given both or neither."""

    kind: Literal["email"] = Field(default="email", description="Kind of the sink.")
    name: str = _SINK_NAME
    host: str = Field(description="Host of the SMTP server.")
    port: int = Field(default=587, ge=1, le=65_535, description="Port of the SMTP server.")
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls",
        description="STARTTLS, TLS from the start, or none, as for a relay on this machine.",
    )
    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$", description="Address that the mails come from.")
    to: tuple[str, ...] = Field(min_length=1, description="Addresses that each alert is mailed to.")
    user: str | None = Field(
        default=None, description="User that logs in to the SMTP server; nobody does unless given."
    )
    password_secret: str | None = Field(
        default=None, description="Name of the secret that holds the user's password."
    )
    least: Severity = Field(default="info", description="Least severity of the alerts that are sent here.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.user is None) != (self.password_secret is None):
            raise ValueError(f"e-mail {self.name!r} needs user and password_secret together, or neither")
        wrong = [one for one in self.to if "@" not in one or any(char.isspace() for char in one)]
        if wrong:
            raise ValueError(f"e-mail {self.name!r}: {wrong} are no addresses")
        return self


Sink = Annotated[Webhook | Email, Field(discriminator="kind")]


class AlertPolicy(BaseModel, frozen=True, extra="forbid"):
    """Policy of a model's alerts: to which sinks they go, and how severe they are.

    owner: a person or team, named in every alert. runbook: link to what to do; runbooks: by monitor, where it differs.
    severity: by monitor; an alarm that an incident explains is never more than info. sinks: each gets every alert that is
    severe enough for it. repeat_after: a standing alert that was not acknowledged is sent again after so long; None: never.
    """

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
