"""The job door: the part of Ray's dashboard that `ray job submit` needs, and no other.

The whole dashboard is ten processes, which cost 10 s of start-up and 900 MB; this is four.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

from ray_apps.local.errors import StartFailed
from ray_apps.local.processes import Session, marked
from ray_apps.local.ray_head import environment
from ray_apps.local.running import Running

MODULES = "JobHead,NodeHead"  # NodeHead makes the head node known, where jobs run
_LOG = "job_door.log"


def start(running: Running, *, cluster_id: str) -> Session:
    """Start the door in a session of its own.

    cluster_id: of the Ray cluster that is up, in hex.
    """
    session = (running.run_folder / "session_latest").resolve()
    options = {
        "host": running.settings.host,
        "port": running.ports.jobs,
        "port-retries": 0,
        "temp-dir": running.run_folder,
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
            env=marked(environment(running, os.environ), running.settings.home),
            start_new_session=True,
        )
    return Session.led_by(process.pid)


def wait(running: Running) -> None:
    """Wait until the door answers. Raises: StartFailed with the end of its log."""
    deadline = time.monotonic() + running.settings.start_timeout_s
    while not answers(running):
        if time.monotonic() > deadline:
            told = (running.run_folder / _LOG).read_text(errors="replace").splitlines()[-20:]
            raise StartFailed(f"the job door did not answer at {running.jobs_url}:\n" + "\n".join(told))
        time.sleep(0.05)


def answers(running: Running) -> bool:
    """Whether the door answers."""
    token = running.settings.ray_token_file.read_text().strip()
    request = urllib.request.Request(  # noqa: S310  # our own http address
        f"{running.jobs_url}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310  # the same
            return bool(response.status == 200)  # noqa: PLR2004  # OK
    except (urllib.error.URLError, OSError):
        return False
