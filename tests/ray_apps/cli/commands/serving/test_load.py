"""Loads from the command line: kept at the platform, compared from there, and judged by the exit code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toque.load.scenarios.knee
import toque.load.scenarios.sending.processes
from tests.load.scenarios.load_runs import run_of
from toque.load.scenarios.knee import Knee, Step
from toque.load.scenarios.scenario import Objectives
from toque.ray_apps.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the next loads give; nothing is sent."""
    coming: list[Any] = []
    monkeypatch.setattr(toque.load.scenarios.sending.processes, "put_load", lambda *_, **__: coming.pop(0))
    return coming


def test_runs_are_kept_and_compared_with_an_exit_code(
    platform: Any, loads: list[Any], tmp_path: Path, capsys: Any
):
    rng = np.random.default_rng(5)
    loads += [run_of(rng), run_of(rng, slower=2.0)]
    ids = []
    for _ in range(2):
        code, out, _ = run(capsys, "load", "run", "--model", "m", "--json")
        assert code == 0
        ids.append(json.loads(out)["run"])
    assert "load" in run(capsys, "experiments")[1]
    assert {line.split("\t")[0] for line in run(capsys, "runs", "list", "load")[1].splitlines()[1:]} == set(
        ids
    )
    code, out, _ = run(capsys, "load", "compare", *ids)
    assert code == 1
    rows = {line.split("\t")[0]: line.split("\t") for line in out.splitlines()}
    assert rows["p50_ms"][-1] == "worse"
    assert rows["error_share"][-1] == "no difference seen"
    assert run(capsys, "load", "compare", ids[1], ids[1])[0] == 0


def test_a_missed_objective_is_an_exit_code_and_a_file_is_as_good_as_a_run(
    home: Path, loads: list[Any], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOQUE_URL", "http://127.0.0.1:9")  # nobody is asked
    made = run_of(np.random.default_rng(1), failing=0.2)
    loads.append(
        made.model_copy(
            update={"scenario": made.scenario.model_copy(update={"objectives": Objectives(error_share=0.01)})}
        )
    )
    kept = tmp_path / "run.json"
    code, out, _ = run(capsys, "load", "run", "--model", "m", "--no-store", "--save", str(kept))
    assert code == 1
    assert "MISSED  error_share" in out
    assert run(capsys, "load", "compare", str(kept), str(kept))[0] == 0
    code, _, err = run(capsys, "load", "run", "--scenario", "stedy", "--model", "m")
    assert (code, "no scenario 'stedy'" in err) == (2, True)


def test_the_knee_of_a_model_is_kept(platform: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    steps = (
        Step(20, held=True, p99_ms=9, error_share=0, requests_per_s=20),
        Step(40, False, float("inf"), 1, 0),
    )
    monkeypatch.setattr(toque.load.scenarios.knee, "find_knee", lambda *_, **__: Knee(20.0, 40.0, steps))
    code, out, _ = run(capsys, "load", "find-knee", "m")
    assert code == 0
    assert out.splitlines()[1].split("\t")[:3] == ["m", "20.0", "40.0"]
    assert "knee m" in run(capsys, "runs", "list", "load")[1]
