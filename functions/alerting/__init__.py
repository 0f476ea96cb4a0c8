"""Alerts that are sent to people for an alarm: to which sinks, how severe, and when not.

Knows alarms and sinks. Must not know what raised an alarm, nor what a project or a retrain is.
"""

from toque.functions.alerting.decide import (
    AlertPolicy,
    AlertState,
    AlertVerdict,
    Email,
    Severity,
    Silence,
    Sink,
    Webhook,
    decide,
    step,
)
from toque.functions.alerting.sinks import Alert, SinkDownError, SinkRefusedError, deliver

__all__ = [
    "Alert",
    "AlertPolicy",
    "AlertState",
    "AlertVerdict",
    "Email",
    "Severity",
    "Silence",
    "Sink",
    "SinkDownError",
    "SinkRefusedError",
    "Webhook",
    "decide",
    "deliver",
    "step",
]
