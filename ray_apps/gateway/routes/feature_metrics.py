"""Prometheus gauges of feature views, such as freshness, from the last measurements of `record_feature_health`."""

from __future__ import annotations

from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from functions.features.jobs import latest_feature_health
from registry import ObjectStore, RegistryError

LOOK_BACK = timedelta(days=2)  # an earlier measurement says nothing about now

_GAUGES = {
    "rows": ("toque_feature_rows", "Rows of a view's offline table."),
    "freshness_s": ("toque_feature_freshness_seconds", "Age of a view's newest row when it was measured."),
    "recent_rows": ("toque_feature_recent_rows", "Rows in the newest span of a view."),
    "coverage": (
        "toque_feature_coverage_ratio",
        "Share of a view's recent keys that is online within its ttl.",
    ),
    "fill": ("toque_feature_fill_ratio", "Share of recent rows that have a value of a feature."),
}


def feature_metrics(store: ObjectStore, *, now: datetime) -> bytes:
    """Render the gauges in Prometheus's text format; if the store is away, only that it could not be read."""
    registry = CollectorRegistry()
    readable = Gauge(
        "toque_feature_health_readable", "1 if the table of measurements could be read.", registry=registry
    )
    try:
        rows = latest_feature_health(store, since=now - LOOK_BACK)
    except RegistryError:
        readable.set(0)
        return generate_latest(registry)
    readable.set(1)
    gauges = {
        metric: Gauge(name, text, ("view", "feature") if metric == "fill" else ("view",), registry=registry)
        for metric, (name, text) in _GAUGES.items()
    }
    measured = Gauge(
        "toque_feature_measured_timestamp_seconds", "When a view was measured.", ("view",), registry=registry
    )
    for row in rows:
        labels = [row["view"], row["feature"]] if row["metric"] == "fill" else [row["view"]]
        measured.labels(row["view"]).set(row["measured_at"].timestamp())
        if row["metric"] in gauges and row["value"] is not None:
            gauges[row["metric"]].labels(*labels).set(row["value"])
    return generate_latest(registry)
