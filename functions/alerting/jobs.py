"""Functions that alert people: each raised alarm is decided upon, and sent to the sinks of its model's policy.

Each sink gets the alert by a durable invocation of its own, under a key made of alert and sink: it is retried for two hours, then
left among the dead letters, from which it can be redriven, and no other sink waits for it. The invocations are submitted before the
alert is recorded as sent, so that a crash between the two sends nothing twice and loses nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Protocol, get_args

from pydantic import BaseModel, Field

from toque.clusters.did_you_mean import did_you_mean
from toque.functions.alerting import (
    Alert,
    AlertPolicy,
    AlertState,
    AlertVerdict,
    Silence,
    Sink,
    SinkDownError,
    SinkRefusedError,
    decide,
    deliver,
    step,
)
from toque.functions.arguments import Model, Reason
from toque.functions.monitoring import TOPIC, Alarm
from toque.functions.monitoring.alarms import Monitor
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import OnEvent, Retries
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.definitions import ProjectError, model_definition
from toque.functions.runtime.function import function
from toque.registry import Fold, Journal, NotFound

# Waits of 15 s, 30 s, … up to 15 minutes: two hours in all, half of that if every draw is the shortest.
_PATIENT = Retries(max_attempts=14, backoff_s=15.0, factor=2.0, max_backoff_s=900.0, on=(SinkDownError,))


class HasAlerts(Protocol):
    """Definition of a model that may declare an alert policy."""

    @property
    def alerts(self) -> AlertPolicy | None:
        """Where the model's alarms are sent; None: nowhere."""
        ...


class AlertOutcome(BaseModel, frozen=True):
    """Outcome of one raised alarm. sinks: to which the alert is being sent; empty where `verdict` holds it back."""

    model: str
    about: str
    verdict: AlertVerdict | None = None
    sinks: tuple[str, ...] = ()


@function(
    timeout_s=120,
    retries=Retries(max_attempts=5, never=(ProjectError,)),
    on=OnEvent(TOPIC, payload_as="alarm"),
)
def tell_people(
    alarm: Annotated[Alarm, Field(description="Alarm of the model's monitors, raised or recovered.")],
) -> AlertOutcome:
    """Decide whether people are alerted of `alarm`, and if so send it to every sink of its model's policy.

    Raises: ProjectError if the project does not define the model.
    """
    definition: HasAlerts = model_definition(context().project, alarm.model)
    policy = definition.alerts
    about = f"{alarm.monitor}/{alarm.subject}"
    if policy is None:
        return AlertOutcome(model=alarm.model, about=about)
    fold, now = alert_journal(alarm.model), context().clock()
    verdict = decide(fold.refresh(), alarm, policy, now)
    if not verdict.sends:
        return AlertOutcome(model=alarm.model, about=about, verdict=verdict)
    alert = Alert.of(alarm, policy, key=verdict.key, at=now)
    sinks = policy.sinks_for(alert.severity)
    for sink in sinks:
        send_alert.submit(alert, sink, key=f"alert {sink.name} {alert.key}")
    body = {
        "event": "told",
        "at": now.isoformat(),
        "key": verdict.key,
        "alarm": alarm.model_dump(mode="json"),
    }

    def body_if_new(state: AlertState) -> dict[str, Any] | None:
        return (
            body
            if decide(state, alarm, policy, now).key == verdict.key and verdict.key not in state.told
            else None
        )

    fold.transact(body_if_new)
    return AlertOutcome(
        model=alarm.model, about=about, verdict=verdict, sinks=tuple(one.name for one in sinks)
    )


@function(timeout_s=60, retries=_PATIENT, in_thread=True)
def send_alert(
    alert: Annotated[Alert, Field(description="Alert that is sent.")],
    sink: Annotated[
        Sink, Field(description="Sink that it is sent to, as the policy of the alert's model declares it.")
    ],
) -> str:
    """Send one alert to one sink of the policy that the project declares for its model; returns the sink's name.

    Any other sink is refused: a caller could else have secrets of the platform sent to an address of theirs.
    Raises: SinkDownError, which is retried; SinkRefusedError, which is not; ProjectError if the model is not defined.
    """
    definition: HasAlerts = model_definition(context().project, alert.alarm.model)
    if definition.alerts is None or sink not in definition.alerts.sinks:
        raise SinkRefusedError(
            f"the project declares no such sink {sink.name!r} for {alert.alarm.model!r}; add it to the alerts of its definition"
        )
    alarm, used = alert.alarm, context()
    page = used.page("monitors", alarm.model, monitor=alarm.monitor, subject=alarm.subject)
    deliver(alert.model_copy(update={"page": page}), sink, used.find_secret, hosts=used.alert_hosts)
    return sink.name


@function(
    http=True,
    timeout_s=60,
    command="alerts silence MODEL ABOUT",
    view=View(
        rows="silences",
        columns="about | until | by | reason",
        texts="reason",
        empty="nothing of {model} is silenced",
    ),
)
def silence_alerts(
    model: Model,
    about: Annotated[
        str,
        Field(
            description=(
                "What is silenced: `monitor/subject` as alerts name it, a monitor, or `*` for everything."
            )
        ),
    ],
    hours: Annotated[
        float,
        Field(
            ge=0,
            le=8_784,
            description="Hours from now that the silence lasts, at most a year; 0 ends a silence.",
        ),
    ],
    reason: Reason,
) -> AlertState:
    """Hold back alerts about a subject for some hours; an alarm that still stands then is sent.

    Raises: ValueError for a monitor that there is not.
    """
    monitor, known = about.partition("/")[0], get_args(Monitor)
    if monitor not in {"*", *known}:
        hint = did_you_mean(monitor, known) or f"there are {', '.join(known)}; "
        raise ValueError(f"about={about!r}: there is no monitor {monitor!r}; {hint}'*' silences all")
    fold, used = alert_journal(model), context()
    until = used.clock() + timedelta(hours=hours)
    silence = Silence(about=about, until=until, by=used.actor, reason=reason)
    body: dict[str, Any] = {"event": "silenced", "silence": silence.model_dump(mode="json")}
    fold.transact(lambda _: body if hours else {"event": "unsilenced", "about": about})
    return fold.state


@function(
    http=True,
    timeout_s=60,
    command="alerts ack MODEL ABOUT",
    view=View(
        text="{about} of {model} is acknowledged; only its recovery is sent",
    ),
)
def acknowledge_alert(
    model: Model,
    about: Annotated[str, Field(description="Subject of the alert: `monitor/subject`, as alerts name it.")],
) -> AlertState:
    """Acknowledge a standing alert: it is not sent again, but its recovery is.

    Raises: NotFound if no alert about it stands.
    """
    fold = alert_journal(model)
    body = {"event": "acknowledged", "about": about, "by": context().actor}
    if fold.transact(lambda state: body if about in state.standing else None) is None:
        raise NotFound(
            f"no alert about {about!r} of {model!r} stands; standing are {sorted(fold.state.standing)}"
        )
    return fold.state


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def alert_status(model: Model) -> AlertState:
    """Report a model's standing alerts, who acknowledged them, and what is silenced."""
    return alert_journal(model).refresh()


def alert_journal(model: str) -> Fold[AlertState]:
    """Open the journal of a model's alerts."""
    used = context()
    return Fold(
        Journal(used.store, f"alerts/{model}", actor=used.actor, clock=used.clock),
        AlertState(),
        step,
        encode=lambda state: state.model_dump(mode="json"),
        decode=AlertState.model_validate,
    )
