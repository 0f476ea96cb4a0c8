"""Starts a Ray head on loopback, with settings that make Serve fast and without parts that are not needed.

Measured on two cores: with its dashboard Ray takes 15 s until a driver can connect, without it 4 to 5 s; the job
endpoint, the one part of the dashboard that is needed, is started on its own (`jobs`), in parallel.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import toque
from toque.ray_apps.local.errors import StartFailed
from toque.ray_apps.local.processes import ProcessSession, with_mark
from toque.ray_apps.local.state_file import RunningPlatform
from toque.ray_apps.serve.settings import serve_settings

ROOT = Path(toque.__file__).resolve().parents[1]  # the folder that has the package
_LOG = "ray_start.log"
# Names no platform: where the heads of its journals are published, prices, memory, and what is seen of its processes.
_PASSED_ON = {
    "TOQUE_AUDIT_HEADS",
    "TOQUE_ACCESS_LOG",
    "TOQUE_LOG_FORMAT",
    "TOQUE_LOG_LEVEL",
    "TOQUE_POOL_MEMORY_GB",
    "TOQUE_PRICES",
    "TOQUE_TRACE_HEADERS_FILE",
    "TOQUE_TRACE_SHARE",
    "TOQUE_TRACE_SLOW_MS",
}
_WORKER_HOOK = (
    "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"  # of ray_constants: a function that each worker calls first
)
_STARTING = 8  # workers started at once; by default as many as CPUs, while an idle platform has twelve


def environment(running: RunningPlatform, inherited: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of the cluster's processes and of a driver that deploys on it.

    inherited: the environment to start from; variables of another platform or cluster are left out.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if name in _PASSED_ON or not name.startswith(("TOQUE_", "RAY_"))
    }
    return kept | platform_environment(running) | serve_environment(running) | _paths(inherited)


def platform_environment(running: RunningPlatform) -> dict[str, str]:
    """List the variables that functions, replicas and drivers of this platform read; no bearer token is among them."""
    return running.environment() | {"TOQUE_ACTOR": "platform", "TOQUE_WORKSPACE": "default"}


def serve_environment(running: RunningPlatform) -> dict[str, str]:
    """List Serve's variables, with the files and ports of HAProxy in their place.

    HAProxy's pages of statistics go to loopback by way of `clusters/haproxy.sh`.
    """
    folder = running.run_folder / "ha"
    return serve_settings() | {
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(running.ports.metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(running.ports.stats),
        "RAY_TMPDIR": str(running.ray_folder),
        "RAY_worker_maximum_startup_concurrency": str(_STARTING),
        "RAY_START_HOOK": "toque.ray_apps.local.start_hook.without_client_server",
        _WORKER_HOOK: "toque.clusters.worker_hook.lighten",
        "DASHBOARD_METRIC_PORT": str(running.ports.door_metrics),
    }


def command(running: RunningPlatform) -> list[str]:
    """Build the `ray start` command of the head."""
    settings, ports = running.settings, running.ports
    options = {
        "node-ip-address": settings.host,
        "port": ports.gcs,
        "dashboard-agent-listen-port": ports.agent,
        "include-dashboard": "false",
        "include-log-monitor": "false",
        "min-worker-port": 0,  # any free port, instead of ten thousand reserved ones
        "max-worker-port": 0,
        "num-cpus": settings.num_cpus,
        "object-store-memory": settings.object_store_bytes,
        "temp-dir": running.ray_folder,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--no-monitor"]
    return [*program, "--disable-usage-stats", *flags]


def start(running: RunningPlatform, inherited: Mapping[str, str]) -> ProcessSession:
    """Start the head in a process session of its own; `wait_ended` returns when it has started."""
    (running.run_folder / "ha").mkdir(parents=True, exist_ok=True)
    with (running.run_folder / _LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # our own program
            command(running),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=with_mark(environment(running, inherited), running.settings.home),
            cwd=running.run_folder,
            start_new_session=True,
            umask=0o077,
        )
    _starters[process.pid] = process
    return ProcessSession.led_by(process.pid)


def wait_ended(running: RunningPlatform) -> None:
    """Wait until `ray start` has ended well, and so every daemon of the head runs.

    Raises: StartFailed with the end of its output.
    """
    process, limit_s = _starters[running.sessions["ray"].leader], running.settings.start_timeout_s
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        fault = (
            f"takes longer than {limit_s:g} s; on a slow machine raise start_timeout_s in the cluster file"
        )
    else:
        if code == 0:
            return
        fault = f"ended with status {code}"
    log_end = (running.run_folder / _LOG).read_text(errors="replace").splitlines()[-25:]
    raise StartFailed(f"Ray's head did not start: `ray start` {fault}\n" + "\n".join(log_end))


_starters: dict[int, subprocess.Popen[bytes]] = {}  # kept to reap each ended `ray start`


def _paths(inherited: Mapping[str, str]) -> dict[str, str]:
    """Extend PYTHONPATH by our packages and the current folder, with the user's project, and PATH by this `python`."""
    modules = [os.getcwd(), str(ROOT), *inherited.get("PYTHONPATH", "").split(os.pathsep)]  # noqa: PTH109
    programs = [str(Path(sys.executable).parent), *inherited.get("PATH", os.defpath).split(os.pathsep)]
    return {
        name: os.pathsep.join(dict.fromkeys(place for place in places if place))
        for name, places in (("PYTHONPATH", modules), ("PATH", programs))
    }
