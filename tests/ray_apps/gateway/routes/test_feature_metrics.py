"""Gauges of feature views at the gateway's `/metrics`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from featurestore import Entity, FeatureView, Field, Float64
from functions import Context, use_context
from functions.features.jobs import record_feature_health
from ray_apps.gateway.routes.feature_metrics import feature_metrics
from registry import RegistryError, open_store

NOW = datetime(2013, 6, 2, tzinfo=UTC)
view = FeatureView("weather", [Entity("origin")], [Field("temp", Float64), Field("rain", Float64)])


def read(text: bytes) -> dict[tuple[str, str], float]:
    """Samples by name and label, that of the feature if there is one."""
    samples = [s for family in text_string_to_metric_families(text.decode()) for s in family.samples]
    return {(s.name, s.labels.get("feature", s.labels.get("view", ""))): s.value for s in samples}


def test_views_are_gauges_while_their_measurement_is_recent(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    context = Context(open_store(url), url, clock=lambda: NOW)
    assert read(feature_metrics(context.store, now=NOW)) == {("toque_feature_health_readable", ""): 1.0}
    with use_context(context):
        context.features().apply([view])
        at = NOW - timedelta(hours=2)
        rows = [{"origin": f"A{n}", "temp": 1.0, "rain": None, "event_timestamp": at} for n in range(3)]
        context.features().write_offline(view, [*rows, rows[0] | {"rain": 2.0}])
        record_feature_health()
    found = read(feature_metrics(context.store, now=NOW + timedelta(hours=1)))
    assert found == {
        ("toque_feature_health_readable", ""): 1.0,
        ("toque_feature_rows", "weather"): 4.0,
        ("toque_feature_freshness_seconds", "weather"): 7200.0,
        ("toque_feature_recent_rows", "weather"): 4.0,
        ("toque_feature_fill_ratio", "temp"): 1.0,
        ("toque_feature_fill_ratio", "rain"): 0.25,
        ("toque_feature_measured_timestamp_seconds", "weather"): NOW.timestamp(),
    }
    assert len(read(feature_metrics(context.store, now=NOW + timedelta(days=3)))) == 1


def test_a_store_that_is_away_sets_the_gauge_readable_to_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise RegistryError("the store does not answer")

    monkeypatch.setattr("ray_apps.gateway.routes.feature_metrics.latest_feature_health", away)
    store = open_store(f"file://{tmp_path}")
    assert read(feature_metrics(store, now=NOW)) == {("toque_feature_health_readable", ""): 0.0}
