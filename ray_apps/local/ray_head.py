"""A Ray head on loopback, with the settings that make Serve fast and nothing that is not needed.

Measured on two cores: with its dashboard Ray takes 15 s until a driver can connect, without it 4 to 5 s; the job
door, the one part of the dashboard that we need, is started on its own (`jobs`), beside everything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ray_apps.local.errors import StartFailed
from ray_apps.local.processes import Session, marked
from ray_apps.local.running import Running

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds our packages
_LOG = "ray_start.log"
_STARTING = 8  # processes at once; by default as many as CPUs, and a platform at rest has twelve


def environment(running: Running, inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables of the cluster's processes and of a driver that deploys on it.

    inherited: what they start from; what belongs to another platform or cluster is left out.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith(("TOQUE_", "RAY_"))}
    return kept | platform_environment(running) | serve_environment(running) | _paths(inherited)


def platform_environment(running: Running) -> dict[str, str]:
    """What a function, a replica or a driver of this platform reads; without any bearer token."""
    return running.environment() | {"TOQUE_ACTOR": "platform"}


def serve_environment(running: Running) -> dict[str, str]:
    """Serve behind HAProxy with throughput settings, its files in our folder, its ports ours.

    HAProxy's own listeners cannot be bound to loopback only; they show numbers, and take no commands. Ray starts its
    workers at niceness 15, below all else on the machine; here they serve, so they start at 0, and trainers step back.
    """
    folder = running.run_folder / "ha"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(running.ports.metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(running.ports.stats),
        "RAY_TMPDIR": str(running.run_folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_worker_maximum_startup_concurrency": str(_STARTING),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ray_apps.predictor.http.bypass.middlewares",
        "RAY_START_HOOK": "ray_apps.local.start_hook.without_client_server",
        "DASHBOARD_METRIC_PORT": str(running.ports.door_metrics),
    }


def command(running: Running) -> list[str]:
    """The `ray start` that begins the head."""
    settings, ports = running.settings, running.ports
    options = {
        "node-ip-address": settings.host,
        "port": ports.gcs,
        "dashboard-agent-listen-port": ports.agent,
        "include-dashboard": "false",
        "include-log-monitor": "false",
        "min-worker-port": 0,  # any free one, instead of ten thousand reserved
        "max-worker-port": 0,
        "num-cpus": settings.num_cpus,
        "object-store-memory": settings.object_store_bytes,
        "temp-dir": running.run_folder,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--no-monitor"]
    return [*program, "--disable-usage-stats", *flags]


def start(running: Running, inherited: Mapping[str, str]) -> Session:
    """Begin the head in a session of its own; `wait` tells when it is there."""
    (running.run_folder / "ha").mkdir(parents=True, exist_ok=True)
    with (running.run_folder / _LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # our own program
            command(running),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=marked(environment(running, inherited), running.settings.home),
            cwd=running.run_folder,
            start_new_session=True,
        )
    _starters[process.pid] = process
    return Session.led_by(process.pid)


def wait_ended(running: Running) -> None:
    """Wait for `ray start` to end well: then every daemon of the head is there.

    Raises: StartFailed with what it printed.
    """
    process = _starters[running.sessions["ray"].leader]
    deadline = time.monotonic() + running.settings.start_timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if process.returncode != 0:
        told = (running.run_folder / _LOG).read_text(errors="replace").splitlines()[-25:]
        raise StartFailed("Ray's head did not start:\n" + "\n".join(told))


_starters: dict[int, subprocess.Popen[bytes]] = {}  # so that an ended `ray start` is not left a zombie


def _paths(inherited: Mapping[str, str]) -> dict[str, str]:
    """Where the processes find our packages and, in the current folder, the user's project; a job's `python` is ours."""
    modules = [os.getcwd(), str(ROOT), *inherited.get("PYTHONPATH", "").split(os.pathsep)]  # noqa: PTH109
    programs = [str(Path(sys.executable).parent), *inherited.get("PATH", os.defpath).split(os.pathsep)]
    return {
        name: os.pathsep.join(dict.fromkeys(place for place in places if place))
        for name, places in (("PYTHONPATH", modules), ("PATH", programs))
    }
