"""The code of docs/mlflow.md runs unchanged, by the client as it is installed, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.conftest import AskedPlatform
from tests.docs.pages import ROOT, Page


@pytest.mark.slow
def test_a_client_logs_registers_and_loads_as_the_page_says(asked: AskedPlatform, tmp_path: Path) -> None:
    page = Page(ROOT / "docs" / "mlflow.md")
    (code,) = (block.text for block in page.blocks if block.language == "python")
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {
            "MLFLOW_TRACKING_URI": asked.url,
            "MLFLOW_TRACKING_TOKEN": asked.token,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "ignore",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert asked.registry.get_version("late", "champion").author == "root"
