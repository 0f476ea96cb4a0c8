"""`toque capacity` from points in a file: what is needed, its price, bounds that a predictor takes, and an exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from toque.load.capacity_model.fit import Point, write_points
from toque.ray_apps.cli import main
from toque.ray_apps.predictor.deploy.options import PredictorOptions


@pytest.fixture
def points(tmp_path: Path) -> str:
    """200 µs and 5 µs a row, beside a tenth of a core that each replica takes anyway, and 40 µs at the door."""
    path = tmp_path / "points.json"
    made = [
        Point(rows=rows, rate=rate, replica_s=0.1 / rate + 200e-6 + 5e-6 * rows, door_s=40e-6)
        for rows in (1, 20, 60)
        for rate in (100, 400)
    ]
    write_points(path, made)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["capacity", "late", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_rate_is_told_with_its_price_and_bounds_that_a_predictor_takes(
    points: str, home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOQUE_PRICES", '{"currency": "EUR", "cpu_hour": 0.05, "gpu_hour": 1}')
    code, out, _ = run(capsys, "--rps", "10000", "--points", points, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["replicas"]["value"] == 5  # 2.05 cores, .5 of each replica
    # 2.05 cores, .5 that five replicas take anyway, .4 at the door and .12 in Redis, all paid at .6
    assert found["price_hour"]["value"] == pytest.approx((2.05 + 0.5 + 0.4 + 0.12) / 0.6 * 0.05, rel=1e-3)
    (options,) = yaml.safe_load(found["profile"])["models"].values()
    assert PredictorOptions(store_url="file:///x", **options).scale["autoscaling_config"]["max_replicas"] == 6
    assert "EUR an hour" in run(capsys, "--rps", "10000", "--points", points)[1]


def test_a_part_that_breaks_is_an_exit_code(points: str, home: Path, capsys: Any):
    code, out, err = run(capsys, "--rps", "500000", "--points", points)
    assert code == 1
    assert "drain" in next(line for line in out.splitlines() if "breaks" in line)
    assert "no price list" in err


def test_a_wrong_command_line_is_told(points: str, home: Path, tmp_path: Path, capsys: Any):
    assert run(capsys, "--rps", "10", "--points", points, "--utilisation", "1.5")[0] == 2
    assert run(capsys, "--rps", "10", "--points", str(tmp_path / "none.json"))[0] == 2
    code, _, err = run(capsys, "--rps", "10", "--measure-rows", "1,x")
    assert (code, "1,16,64" in err) == (2, True)
    code, _, err = run(capsys, "--rps", "10")
    assert (code, "up.json does not exist" in err) == (1, True)
