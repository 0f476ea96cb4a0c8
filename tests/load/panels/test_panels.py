"""The platform that fills every panel: its project, and all of it watched by a real Prometheus."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from tests.language_model import language_model_weights
from toque.clusters.monitoring.panels import DASHBOARDS
from toque.functions.placement import Placement
from toque.functions.project import load_project
from toque.load.panels.__main__ import fill
from toque.load.panels.project import ANSWERING, CODES, KEYED, POOLED


def test_the_project_serves_models_alone_and_more_in_a_pool():
    models = load_project("toque.load.panels.project").models
    assert {name for name, each in models.items() if each.placement == Placement()} == {
        ANSWERING, CODES, KEYED,
    }  # fmt: skip
    assert {name for name, each in models.items() if each.placement.pool} == set(POOLED)


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.timeout(1800, func_only=True)
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs apt-get install prometheus")
def test_no_panel_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = argparse.Namespace(
        weights=language_model_weights(), minutes=12.0, folder=tmp_path / "panels", pictures=tmp_path / "pictures",
        hold=None,
    )  # fmt: skip
    assert fill(given) == 0, capsys.readouterr().out
    for each in DASHBOARDS:
        assert (tmp_path / "pictures" / f"{each.name}.png").stat().st_size < 150_000
