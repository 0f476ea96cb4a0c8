"""What stands between Serve and HAProxy closes the pages and the socket that Serve leaves open."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from ray_apps.loopback import HAPROXY
from tests.ports import free_port


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """The file that this version of Serve writes, for doors on every address."""
    served = HAProxyConfig(
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        metrics_socket_path=str(tmp_path / "metrics.sock"),
        http_options=HTTPOptions(host="0.0.0.0", port=free_port()),  # noqa: S104  # it is read, not listened on
        grpc_options=gRPCOptions(),
        stats_port=free_port(),
        metrics_port=free_port(),
    )
    file = tmp_path / "haproxy.cfg"
    HAProxyApi(served, {}, str(file))._generate_config_file_internal()
    return file


def launch(configuration: Path, **environment: str) -> list[str]:
    """Let HAProxy check the file by way of the script; returns the lines that bind."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(HAPROXY), "-c", "-f", str(configuration)],
        env=os.environ | {"PATH": path, "RAY_SERVE_HAPROXY_BINARY_PATH": str(HAPROXY)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = configuration.read_text()
    assert "mode 600 level admin" in text
    assert "mode 666" not in text
    return [line.strip() for line in text.splitlines() if line.strip().startswith("bind ")]


def test_pages_of_statistics_leave_every_interface_but_the_doors_stay(configuration: Path) -> None:
    before = configuration.read_text()
    assert "mode 666 level admin" in before  # else the script is needless
    metrics, door, pages = launch(configuration)
    assert metrics.startswith("bind 127.0.0.1:")
    assert door.startswith("bind *:")
    assert pages.startswith("bind 127.0.0.1:")
    assert launch(configuration) == [metrics, door, pages]  # as after a reload that changed nothing


def test_the_pages_go_to_the_address_that_a_cluster_names(configuration: Path) -> None:
    metrics, _, pages = launch(configuration, TOQUE_METRICS_ADDRESS="127.0.0.2")
    assert [metrics.rpartition(":")[0], pages.rpartition(":")[0]] == ["bind 127.0.0.2"] * 2


def test_serve_may_run_the_script() -> None:
    assert stat.S_IMODE(HAPROXY.stat().st_mode) & stat.S_IXUSR
