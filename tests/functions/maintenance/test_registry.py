import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from toque.functions import Context, use_context
from toque.functions.maintenance.registry import tidy_registry
from toque.functions.runtime import catalog
from toque.registry import open_store


def test_unused_files_and_lost_runs_are_tidied_and_the_rest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"file://{tmp_path}/store"
    context = Context(open_store(url), url, actor="tests")
    registry = context.registry()
    (tmp_path / "weights").write_bytes(b"w")
    registry.create_model("m")
    registry.create_version("m", tmp_path / "weights")
    orphan = "models/m/blobs/00000000/" + "0" * 64
    registry.store.put(orphan, b"left by a killed registration")
    killed = tmp_path / "store" / ".tmp" / "killed"
    killed.write_bytes(b"half")
    long_ago = time.time() - 100 * 3600
    os.utime(killed, (long_ago, long_ago))
    run = registry.start_run("exp")
    with use_context(context):
        tidied = tidy_registry(grace_days=0.0)
        assert (tidied.files, tidied.lost_runs, tidied.left_over) == ([orphan], [], 1)
        monkeypatch.setattr("toque.registry.runs.record.LOST_AFTER", timedelta(0))
        assert tidy_registry().lost_runs == [run.id]
        tidied = tidy_registry()
    assert (tidied.files, tidied.lost_runs, tidied.left_over) == ([], [], 0)
    assert registry.verify("m").blobs == 1
    run.finish()


def test_the_platform_has_it_declared():
    assert "toque.functions.maintenance.registry" in catalog.PLATFORM
    assert "tidy_registry" in {
        each.name for each in catalog.discover(["toque.functions.maintenance.registry"])
    }
