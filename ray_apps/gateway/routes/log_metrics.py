"""Prometheus series of the prediction log: the writers that vanished, and what they may have taken along."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from functions.prediction_log import losses_of
from functions.runtime.context import Context
from registry import RegistryError


def log_metrics(used: Context) -> bytes:
    """Render the losses of a workspace's log in Prometheus's text format; nothing if the store is away."""
    try:
        lost = losses_of(used).refresh()
    except RegistryError:
        return b""
    registry = CollectorRegistry()
    for name, text, value in (
        ("toque_log_writers_lost", "Writers of the log that vanished, ever.", lost.writers),
        ("toque_log_writers_missing", "Writers that vanished and did not come back.", len(lost.standing)),
        (
            "toque_log_requests_lost_at_most",
            "Answered requests whose rows may be missing.",
            lost.requests_at_most,
        ),
    ):
        Gauge(name, text, registry=registry).set(value)
    return generate_latest(registry)
