"""A node that does not start at first is started again, on ports that nothing of the first attempt holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.ports import free_port
from toque.clusters.profile import Profile
from toque.ray_apps.deployment import node
from toque.ray_apps.deployment.errors import DeploymentError
from toque.ray_apps.deployment.node import NODE_PORTS, NodeStart, node_environment, ray_start, start_node

ATTEMPT = """
import os, pathlib, socket, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
attempts = folder / "attempts"
attempts.write_text(attempts.read_text() + "x" if attempts.exists() else "x")
daemon = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); print(flush=True); time.sleep(600)"
started = subprocess.Popen([sys.executable, "-c", daemon], stdout=subprocess.PIPE)
if not started.stdout.readline():
    sys.exit(2)  # the port is taken
sys.exit(0 if len(attempts.read_text()) > {failures} else 1)
"""


@pytest.fixture
def ray_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stand for `ray start` with a program that starts a daemon, and fails as often as `failures` says."""
    monkeypatch.setenv("TOQUE_STORE", "s3://bucket")
    monkeypatch.setenv("TOQUE_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setattr(node, "PAUSE_S", 0.0)
    monkeypatch.setattr(node, "GRACE_S", 1.0)
    script = tmp_path / "ray.py"
    monkeypatch.setattr(node, "ray_start", lambda *_, **__: [sys.executable, str(script), str(tmp_path)])
    return script


def test_what_a_failed_attempt_left_is_ended_before_the_next(ray_command: Path, tmp_path: Path) -> None:
    ray_command.write_text(ATTEMPT.format(port=free_port(), failures=2))
    said: list[str] = []
    assert start_node(NodeStart(None, "head"), report=said.append) == 0
    assert (tmp_path / "attempts").read_text() == "xxx"
    assert all("15 s" in line for line in said)
    assert len(said) == 2


def test_a_node_that_never_starts_fails_with_its_exit_code(ray_command: Path, tmp_path: Path) -> None:
    ray_command.write_text(ATTEMPT.format(port=free_port(), failures=99))
    with pytest.raises(DeploymentError, match="exit code 1"):
        start_node(NodeStart("10.0.0.4", "serve"))
    assert (tmp_path / "attempts").read_text() == "x" * node.ATTEMPTS


def test_ports_that_are_said_are_not_waited_for_and_yield_to_those_of_a_given_command() -> None:
    given = NodeStart("10.0.0.4", "serve", more=("--metrics-export-port=9999",))
    command = ray_start(given, Profile(), {})
    for name, port in NODE_PORTS.items():
        assert command.count(f"--{name}={9999 if name == 'metrics-export-port' else port}") == 1


def health_checks(**variables: str) -> tuple[int, int, int]:
    """Milliseconds between two checks and for an answer, and how many failures are a node's death."""
    inherited = {"TOQUE_STORE": "s3://bucket", "TOQUE_REDIS_URL": "redis://10.0.0.2:6379"}
    environment = node_environment(NodeStart("10.0.0.4", "serve"), inherited | variables)
    period, timeout, failures = (
        int(environment[f"RAY_health_check_{name}"])
        for name in ("period_ms", "timeout_ms", "failure_threshold")
    )
    return period, timeout, failures


def test_a_node_that_is_cut_off_for_half_a_minute_is_not_given_up() -> None:
    period, _, failures = health_checks()
    assert (failures - 1) * period > 32_000  # if each check fails at once, as without a route


def test_a_fast_head_gives_a_node_up_within_eight_seconds_but_not_one_that_stalls_for_five() -> None:
    period, timeout, failures = health_checks(TOQUE_NODE_LOSS="fast")
    assert period + failures * timeout + (failures - 1) * period < 8_000
    stalled_ms = 5_000
    missed = sum(start + timeout <= stalled_ms for start in range(0, stalled_ms, timeout + period))
    assert missed < failures
