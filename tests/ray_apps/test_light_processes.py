"""Processes of the platform import what they use: libraries of tables only where tables are read, pandas nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = str(Path(__file__).parents[2])
TABLES = ("pyarrow", "polars", "deltalake", "pandas", "scipy", "torch")
FRAMES = ("pandas", "ray.data", "sklearn", "torch", "plotly", "faiss", "captum", "triton")


@pytest.mark.parametrize(
    ("imports", "without"),
    [
        (
            "ray.serve._private.proxy, toque.ray_apps.predictor.http.bypass",
            TABLES,
        ),  # Serve's proxy, and each replica
        (
            "ray.serve._private.replica, toque.ray_apps.serve.haproxy_supervisor, toque.functions.runtime.process",
            TABLES,
        ),
        ("ray.serve._private.replica, toque.ray_apps.predictor.grpc.deployment", TABLES),
        ("ray.serve._private.replica, toque.functions.runtime.catalog as all; all.discover()", FRAMES),
    ],
    ids=["proxy", "haproxy", "grpc", "functions"],
)
def test_a_process_imports_what_it_uses(imports: str, without: tuple[str, ...]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {_ROOT!r}); from toque.clusters.worker_hook import lighten; lighten(); "
        f"import {imports}; print([each for each in {without} if sys.modules.get(each)])"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "[]"
