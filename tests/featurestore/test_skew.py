"""Skew reports list where served features differ from recomputed ones."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from toque.featurestore import Entity, FeatureStore, FeatureView, Field, Float64, String, skew_report

START = datetime(2013, 6, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
view = FeatureView(
    "late", [Entity("plane")], [Field("x", Float64), Field("s", String)], ttl=timedelta(hours=3)
)


@pytest.fixture
def served(fs: FeatureStore, clock: Any) -> pa.Table:
    """1,000 online reads between pushes, logged as a predictor would."""
    rng = random.Random(1)
    fs.apply([view])
    log: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for minute in range(250):
        clock.now = START + minute * MINUTE
        x, s = rng.choice([None, rng.random()]), rng.choice([None, "a", "b"])
        pushed = {"plane": f"N{rng.randrange(5)}", "x": x, "s": s, "event_timestamp": clock.now}
        history.append(pushed | {"created_timestamp": clock.now})
        fs.push(view, history[-1:], to="online")
        for _ in range(4):
            asked = {"plane": f"N{rng.randrange(6)}"}
            got = fs.get_online_features(view, [asked]).columns()
            log.append({**asked, "event_timestamp": clock.now, "x": got["x"][0], "s": got["s"][0]})
    fs.write_offline(view, history)
    return pa.Table.from_pylist(log)


def test_clean_data_has_no_skew(fs: FeatureStore, served: pa.Table, clock: Any) -> None:
    clock.now = START + 400 * MINUTE
    fs.push(view, [{"plane": "N1", "x": 9.0, "s": "late", "event_timestamp": START + 100 * MINUTE}])
    report = skew_report(fs, served, view)
    assert (report.rows, report.mismatches, report.rate) == (1000, {}, 0.0)
    assert report.examples.num_rows == 0


def test_an_injected_percent_is_found(fs: FeatureStore, served: pa.Table) -> None:
    rows = served.to_pylist()
    spoiled = sorted(random.Random(2).sample(range(1000), 10))
    for i in spoiled:
        rows[i]["x"] = None if rows[i]["x"] is not None else 1.0
    rows[7]["s"] = "z"
    report = skew_report(fs, rows, view)
    assert report.mismatches == {"x": 10, "s": 1}
    assert report.rate == pytest.approx(11 / 2000)
    listed = report.examples.to_pylist()
    assert [e["row"] for e in listed if e["feature"] == "x"] == spoiled
    assert [(e["row"], e["served"]) for e in listed if e["feature"] == "s"] == [(7, "z")]
