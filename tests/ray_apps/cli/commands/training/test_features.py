"""`toque features list`, against a gateway on a real port."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from toque.featurestore import Entity, FeatureView, Field, Float64, String
from toque.functions import use_context
from toque.functions.features.jobs import HEALTH_TABLE, record_feature_health
from toque.ray_apps.cli import main
from toque.registry import Table

weather = FeatureView(
    "weather", [Entity("origin")], [Field("temp", Float64), Field("sky", String)], owner="met"
)


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
    row = dict(zip(heading.split("\t"), line.split("\t"), strict=True))
    assert (row["view"], row["rows"], row["owner"]) == ("weather", "4", "met")
    assert row["fill"] == "75.0%"  # of the least filled feature


def test_a_view_is_shown_feature_by_feature_with_samples(filled: Any, capsys: Any) -> None:
    assert main(["features", "weather", "--hours", "1.5"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("\t")[1:] for line in out.splitlines()]
    assert rows[0] == ["feature", "fill", "row 1", "row 2", "row 3"]
    assert ["temp", "50.0%", "", "1.0", ""] in rows
    assert ["origin", "", "A0", "A1", ""] in rows


def test_an_unknown_view_is_told(filled: Any, capsys: Any) -> None:
    assert main(["features", "whether"]) == 1
    assert "no feature view 'whether'; did you mean 'weather'?" in capsys.readouterr().err


def test_figures_are_recorded_for_a_schedule(filled: Any) -> None:
    with use_context(filled.context):
        record_feature_health()
        record_feature_health(["weather"])
    rows = Table(filled.context.store, HEALTH_TABLE).read().to_pylist()
    assert [r["value"] for r in rows if (r["metric"], r["feature"]) == ("fill", "temp")] == [0.75, 0.75]
    assert {r["metric"] for r in rows} == {"rows", "freshness_s", "recent_rows", "coverage", "fill"}


def test_the_catalogue_is_searched_by_words(filled: Any, capsys: Any) -> None:
    assert main(["catalog", "TEMP", "met"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    row = dict(zip(heading.split("\t"), line.split("\t"), strict=True))
    assert (row["view"], row["features"], row["rows"], row["owner"]) == ("weather", "temp, sky", "4", "met")
    assert main(["catalog", "--unused", "-o", "json"]) == 0
    assert '"sky"' in capsys.readouterr().out
    assert main(["catalog", "volcano"]) == 0
    assert "no view has all these words" in capsys.readouterr().err
