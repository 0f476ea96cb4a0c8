"""`toque features vectors` and `toque features search`, against a gateway on a real port; and an erasure that takes an index along."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from toque.featurestore import Entity, FeatureView, Field, Metric, String, Vector, VectorIndex
from toque.featurestore.vectors.opened import Measured
from toque.functions import use_context
from toque.functions.features import IndexRefreshError, refresh_vector_indexes
from toque.functions.maintenance.erasure.jobs import drop_indexes
from toque.ray_apps.cli import main

pages = FeatureView(
    "pages",
    [Entity("doc")],
    [Field("v", Vector(2)), Field("lang", String)],
    indexes=[VectorIndex("v", Metric.L2)],
)


@pytest.fixture
def filled(platform: Any) -> Any:
    features = platform.context.features()
    features.apply([pages])
    hour = datetime.now(UTC) - timedelta(hours=1)
    rows = [
        {"doc": f"d{n}", "v": [float(n), 0.0], "lang": "de" if n % 2 else "en", "event_timestamp": hour}
        for n in range(20)
    ]
    features.write_offline(pages, rows)
    return platform


def test_rows_are_found_and_indexes_refreshed(filled: Any, capsys: Any) -> None:
    assert main(["search", "pages", "--vector", "[2.2, 0]", "--where", '{"lang": "de"}', "--limit", "2"]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.split("\t")[:2] == ["key", "distance"]
    assert first.split("\t")[:3] == ["doc=d3", "0.8", "lang=de"]
    assert second.split("\t")[0] == "doc=d1"
    assert main(["search", "pages", "--key", '{"doc": "d0"}', "-o", "json", "--limit", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["found"][0]["key"] == {"doc": "d1"}
    assert main(["search", "pages", "--text", "x"]) == 1
    assert "text_model" in capsys.readouterr().err
    assert main(["vectors"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    before = dict(zip(heading.split("\t"), line.split("\t"), strict=True))
    assert (before["view"], before["build"], before["behind"]) == ("pages", "", "20")
    assert main(["vectors", "pages", "--refresh"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    after = dict(zip(heading.split("\t"), line.split("\t"), strict=True))
    assert (after["rows"], after["behind"], after["recall"]) == ("20", "0", "1.0")


def test_an_index_that_fails_is_told_after_the_others_and_an_erasure_drops_it(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with use_context(filled.context):
        assert [done.build for done in refresh_vector_indexes()] == [0]
        features = filled.context.features()
        assert drop_indexes(features, ["features/default/pages", "features/default/sources/x", "labels"]) == 1
        assert features.builds("pages", "v").newest() is None
        monkeypatch.setattr(
            "toque.featurestore.vectors.opened.measured", lambda *_, **__: Measured(0, 0.5, 200)
        )
        with pytest.raises(IndexRefreshError, match=r"finds 0\.500 of the ten nearest"):
            refresh_vector_indexes(["pages"])
