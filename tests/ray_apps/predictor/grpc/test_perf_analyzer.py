"""Triton's load generator, unmodified, against both protocols: what it needs of a server is served."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.ray_apps.predictor.grpc.conftest import Served

# The package `perf-analyzer` installs it beside the interpreter, which need not be on PATH.
BINARY = shutil.which("perf_analyzer", path=str(Path(sys.executable).parent)) or shutil.which("perf_analyzer")
pytestmark = pytest.mark.skipif(
    BINARY is None, reason="perf_analyzer is not installed: pip install perf-analyzer"
)

REQUESTS = 100
WAYS = {
    "HTTP": ["-i", "http"],
    "gRPC": ["-i", "grpc"],
    "gRPC, batches of 4": ["-i", "grpc", "-b", "4"],
    "gRPC, a stream": ["-i", "grpc", "--async", "--streaming"],
}


def executions(served: Served) -> int:
    """How many requests the model has computed so far, by its own statistics."""
    headers = {"Authorization": f"Bearer {served.token}"}
    answer = httpx.get(f"http://{served.http}/v2/models/typed/stats", headers=headers).json()
    return sum(version["execution_count"] for version in answer["model_stats"])


@pytest.mark.parametrize("way", WAYS)
def test_perf_analyzer_measures_a_model_and_reads_its_statistics(served: Served, way: str):
    address = served.http if way == "HTTP" else served.grpc
    command = [
        BINARY,
        "-m",
        "typed",
        "-u",
        address,
        *WAYS[way],
        "-H",
        f"authorization: Bearer {served.token}",
    ]
    command += ["--concurrency-range", "2", "--request-count", str(REQUESTS), "--input-data", "zero"]
    before = executions(served)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {
        name: int(value) for name, value in re.findall(r"^ +(\w+ count): (\d+)$", done.stdout, re.MULTILINE)
    }
    assert counts["Request count"] == REQUESTS, done.stdout + done.stderr
    assert executions(served) - before >= REQUESTS
    # It reads the statistics around its own measurement, some calls apart on a machine that is busy.
    assert 0 < counts["Execution count"] <= executions(served) - before, done.stdout
    rows = 4 if "batches" in way else 1
    assert counts["Inference count"] == rows * counts["Execution count"], done.stdout
