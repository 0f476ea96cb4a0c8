"""Every kind of replica has a version's files loaded within limits first: a shared one, and a version's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ray_apps.predictor.conftest import SIGNATURE
from toque.functions.model_formats.sandbox import SandboxLimits
from toque.ray_apps.predictor.deploy import dedicated
from toque.ray_apps.predictor.deploy.deployment import build_predictor
from toque.ray_apps.predictor.deploy.options import PredictorOptions
from toque.ray_apps.predictor.versions.loaded import LoadError
from toque.registry import Registry, open_store

WORDS = "ended the process that loaded it, by signal SIGSEGV"


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PredictorOptions:
    """Of a platform whose model `late` has a sound champion, 1, and a version that crashes what loads it, 2."""
    monkeypatch.setenv("TOQUE_PROJECT", "tests.functions.model_formats.sandbox.hostile")
    url = f"file://{tmp_path}/store"
    registry = Registry(open_store(url), actor="ada")
    registry.create_model("late")
    for scorer in ("nothing", "crash"):
        path = tmp_path / scorer
        path.mkdir()
        (path / "python_model.json").write_text(json.dumps({"scorer": scorer}))
        registry.create_version("late", path=path, signature=SIGNATURE)
    registry.promote("late", 1)
    registry.set_traffic("late", {"canary": (2, 0.5)})
    limits = SandboxLimits(cpu_s=29)  # of no other test, for a process has one sandbox for the same limits
    return PredictorOptions(store_url=url, authentication=False, log=False, sandbox=limits)


def test_replicas_outlive_a_version_that_crashes_what_loads_it(options: PredictorOptions) -> None:
    engine = build_predictor("late", options).predictor.engine
    assert engine.loaded == [1]
    assert WORDS in engine.failures[2]
    engine.stop()
    with pytest.raises(LoadError, match=WORDS):
        dedicated._load("late", 2, options)
