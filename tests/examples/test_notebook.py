"""The notebook runs from top to bottom in a fresh process, and its last cell answers as the labels say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_model.ipynb"
_CHECK = "assert trained.gate.passed and ((answers[:, 0] > 0.5) == known.tail(5)['target'].to_numpy()).mean() >= 0.8"


def cells() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(NOTEBOOK.read_text())["cells"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    code = ["".join(each["source"]) for each in cells() if each["cell_type"] == "code"]  # type: ignore[arg-type]
    (tmp_path / "notebook.py").write_text("\n\n".join([*code, _CHECK]))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("TOQUE_")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(  # the notebook's own code
        [sys.executable, "-W", "ignore", "notebook.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]


def test_the_notebook_is_stored_without_outputs() -> None:
    assert all(not each.get("outputs") and each.get("execution_count") is None for each in cells())
