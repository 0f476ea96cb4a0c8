"""Submissions bring packages and variables into processes of a real Ray cluster, made by Ray from wheels, without a network.

Ray copies the virtual environment that its node runs in. Here that is a thin one, which finds all packages in this process's own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.functions.runtime.environments.thin import thin_python
from tests.functions.runtime.environments.wheels import write_wheel

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[4]


def ran(folder: Path, num_workers: int) -> dict[str, Any]:
    """What became of the trainings that the driver submitted."""
    (folder / "wheels").mkdir()
    write_wheel(folder / "wheels", "tiny", "1.0", "SCALE = 2.0\n")
    command = [thin_python(folder / "thin"), "-m", "tests.functions.runtime.environments.brought_driver"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    clean = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "RAY_ADDRESS"}}
    done = subprocess.run(
        [*command, folder, str(num_workers)],
        cwd=ROOT,
        env=clean | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.proof)])
def test_a_training_runs_with_what_was_submitted_with_it(tmp_path: Path, num_workers: int) -> None:
    assert "tiny" not in sys.modules
    found = ran(tmp_path, num_workers)
    brought = found["brought"]
    assert brought["status"] == "succeeded", brought["failure"]
    wanted = {"packages": ["tiny==1.0"], "variables": {"BROUGHT": "yes"}}
    assert brought["receipt"]["environment"] == wanted
    assert found["run"]["tags"]["environment"] == "tiny==1.0 BROUGHT=yes"
    assert found["run"]["facts"]["environment"]["packages"]["tiny"] == "1.0"

    absent = found["absent"]
    assert (absent["status"], absent["lost"]) == ("dead", 0)
    assert absent["failure"]["type"] == "EnvironmentFailed"
    said = "a node could not make its environment: ERROR: Could not find a version that satisfies the requirement tiny==9.9"
    assert said in absent["failure"]["message"]

    bare = found["bare"]  # another run's environment is not in its process
    assert bare["status"] == "dead"
    assert bare["failure"]["type"] == "ModuleNotFoundError"
    assert bare["receipt"]["environment"] is None
    assert not found["here"]
