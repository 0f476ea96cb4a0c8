"""`toque features`, against a gateway on a real port."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from featurestore import Entity, FeatureView, Field, Float64, String
from functions import use_context
from functions.features.jobs import HEALTH_TABLE, record_feature_health
from ray_apps.cli import main
from ray_apps.cli import output as show
from registry import Table

weather = FeatureView(
    "weather", [Entity("origin")], [Field("temp", Float64), Field("sky", String)], owner="met"
)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "out", show.Console(highlight=False, soft_wrap=True, width=200))
    monkeypatch.setattr(show, "err", show.Console(stderr=True, highlight=False, soft_wrap=True))


@pytest.fixture
def filled(platform: Any) -> Any:
    features = platform.context.features()
    features.apply([weather])
    now = datetime.now(UTC)
    rows = [
        {
            "origin": f"A{n}",
            "temp": float(n) if n else None,
            "sky": "haze",
            "event_timestamp": now - timedelta(hours=n),
        }
        for n in range(4)
    ]
    features.write_offline(weather, rows)
    return platform


def test_views_are_listed_with_their_freshness_and_fill(filled: Any, capsys: Any) -> None:
    assert main(["features"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["view", "rows"]
    assert line.startswith("weather")
    assert "75.0%" in line  # the least filled feature
    assert line.rstrip().endswith("met")


def test_a_view_is_shown_feature_by_feature_with_samples(filled: Any, capsys: Any) -> None:
    assert main(["features", "weather", "--hours", "1.5"]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("temp")] == [
        ["temp", "50.0%", "-", "1"]
    ]
    assert "row 1: origin A0, event_timestamp " in out


def test_an_unknown_view_is_told(filled: Any, capsys: Any) -> None:
    assert main(["features", "rain"]) != 0
    assert "no feature view 'rain' is applied" in capsys.readouterr().err


def test_figures_are_recorded_for_a_schedule(filled: Any) -> None:
    with use_context(filled.context):
        record_feature_health()
        record_feature_health(["weather"])
    rows = Table(filled.context.store, HEALTH_TABLE).read().to_pylist()
    assert [r["value"] for r in rows if (r["metric"], r["feature"]) == ("fill", "temp")] == [0.75, 0.75]
    assert {r["metric"] for r in rows} == {"rows", "freshness_s", "recent_rows", "coverage", "fill"}
