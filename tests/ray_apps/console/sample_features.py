"""A feature view with rows, a service that serves it, figures of its health on some days, and a batch source with a load."""

import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.ray_apps.console.sample_platform import NOW
from toque.featurestore import (
    BatchSource,
    CsvFiles,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    Float64,
    String,
)
from toque.functions.features.jobs import HEALTH_TABLE
from toque.registry import ObjectStore, Table

VIEW, SOURCE = "flight_weather", "rain_gauges"
UNREADABLE = "<b>april<i>.csv"


def fill_features(store: ObjectStore) -> None:
    """Apply a view and its service, write a day of rows, and record ten days of its health."""
    features = FeatureStore(store, clock=lambda: NOW, actor="ada")
    airport = Entity("airport", join_keys=[Field("origin", String)])
    view = FeatureView(
        VIEW,
        entities=[airport],
        schema=[Field("wind", Float64), Field("sky", String)],
        ttl=timedelta(hours=6),
        owner="operations",
        description="Weather at the airport an hour before departure",
    )
    old = FeatureView(
        "old_weather", entities=[airport], schema=[Field("rain", Float64)], ttl=timedelta(hours=1)
    )
    services = [FeatureService("late_flights", [view]), FeatureService("old_flights", [old])]
    features.apply([airport, view, old, *services])
    yesterday = {"origin": ["EWR"], "event_timestamp": [NOW - timedelta(days=1)], "rain": [0.5]}
    features.write_offline(old, pa.table(yesterday))
    rng = np.random.default_rng(3)
    rows = 400
    features.write_offline(
        view,
        pa.table(
            {
                "origin": rng.choice(["EWR", "JFK", "LGA"], rows).tolist(),
                "event_timestamp": [NOW - timedelta(minutes=3 * each) for each in range(rows)],
                "wind": [None if each % 9 == 0 else float(v) for each, v in enumerate(rng.gamma(3, 4, rows))],
                "sky": rng.choice(["clear", "cloud", "<b>rain</b>"], rows).tolist(),
            }
        ),
    )
    rows_of_health = [
        {
            "view": VIEW,
            "metric": metric,
            "feature": feature,
            "value": value,
            "measured_at": NOW - timedelta(days=day),
        }
        for day in range(10)
        for metric, feature, value in (
            ("fill", "wind", 0.9 - 0.01 * day),
            ("fill", "sky", 1.0),
            ("freshness_s", None, 300.0 + 40 * day),
        )
    ]
    Table(store, HEALTH_TABLE).append(pa.Table.from_pylist(rows_of_health, schema=_SCHEMA))
    _load_source(features)


def _load_source(features: FeatureStore) -> None:
    """Apply a source and load it once: a row that fits, one that does not, and a file that nobody can read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "march.csv").write_text(
            "airport,at,rain\nEWR,2026-03-01 10:00,0.5\nJFK,<b>yesterday</b>,0.1\n"
        )
        Path(folder, UNREADABLE).write_text("something else\n1\n")
        source = BatchSource(
            SOURCE,
            CsvFiles(f"{folder}/*.csv"),
            [Field("origin", String), Field("rain", Float64)],
            "at",
            timezone="UTC",
            columns={"origin": "airport"},
            owner="operations",
            bad_share=0.5,
        )
        features.apply([source])
        features.source_table(SOURCE).load(lambda name: name)


_SCHEMA = pa.schema(
    [
        pa.field("view", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("feature", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("measured_at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)
