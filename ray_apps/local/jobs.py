"""Starts the job endpoint: the one part of Ray's dashboard that `ray job submit` needs.

The whole dashboard is ten processes, which cost 10 s of start-up and 900 MB; the job endpoint is four.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

from toque.ray_apps.local.errors import StartFailed
from toque.ray_apps.local.processes import ProcessSession, with_mark
from toque.ray_apps.local.ray_head import environment
from toque.ray_apps.local.state_file import RunningPlatform

MODULES = "JobHead,NodeHead"  # NodeHead registers the head node, on which jobs run
_LOG = "job_door.log"


def start(running: RunningPlatform, *, cluster_id: str) -> ProcessSession:
    """Start the endpoint in a process session of its own.

    cluster_id: id of the running Ray cluster, in hex.
    """
    session = (running.ray_folder / "session_latest").resolve()
    options = {
        "host": running.settings.host,
        "port": running.ports.jobs,
        "port-retries": 0,
        "temp-dir": running.ray_folder,
        "log-dir": session / "logs",
        "session-dir": session,
        "gcs-address": running.ray_address,
        "cluster-id-hex": cluster_id,
        "node-ip-address": running.settings.host,
        "modules-to-load": MODULES,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    with (running.run_folder / _LOG).open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # our own program
            [sys.executable, "-m", "ray.dashboard.dashboard", *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=with_mark(environment(running, os.environ), running.settings.home),
            start_new_session=True,
            umask=0o077,
        )
    return ProcessSession.led_by(process.pid)


def wait(running: RunningPlatform) -> None:
    """Wait until the endpoint answers. Raises: StartFailed with the end of its log."""
    deadline = time.monotonic() + running.settings.start_timeout_s
    while not answers(running):
        if time.monotonic() > deadline:
            log_end = (running.run_folder / _LOG).read_text(errors="replace").splitlines()[-20:]
            raise StartFailed(
                f"the job endpoint did not answer at {running.jobs_url}:\n" + "\n".join(log_end)
            )
        time.sleep(0.05)


def answers(running: RunningPlatform) -> bool:
    """Whether the job endpoint answers, with Ray's token."""
    token = running.settings.ray_token_file.read_text().strip()
    request = urllib.request.Request(  # noqa: S310  # our own http address
        f"{running.jobs_url}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310  # our own http address
            return bool(response.status == 200)  # noqa: PLR2004  # OK
    except (urllib.error.URLError, OSError):
        return False
