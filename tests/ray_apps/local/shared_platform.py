"""One platform that several modules of tests ask in turn, since it takes twenty seconds of a processor to start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.ports import free_port
from toque.ray_apps.local import RunningPlatform, down, status
from toque.ray_apps.local.state_file import find_platform

SAMPLE = '''
from toque.functions import function
FEATURES, MODELS = [], []

@function(http=True)
def sample_add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b
'''
# Each run is a process that starts: a schedule of every second would take more than the tests beside it.
PAYMENTS = '''
from toque.functions import function
from toque.functions.runtime.declaration import Cron

@function(http=True)
def charge(amount: float) -> float:
    """Charge an amount with its tax."""
    return round(amount * 1.2, 2)

@function(http=True, role="viewer", schedule=Cron("* * * * * */10"))
def heartbeat() -> str:
    """Say that the team is there."""
    return "payments"
'''


def toque(folder: Path, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command in a folder, for the platform in `home`, as a person would."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOQUE_", "RAY_"))
    }
    command = [sys.executable, "-m", "toque.ray_apps.cli", "--home", str(home), *arguments]
    # A shell that runs the tests in the background has them ignore Ctrl-C, and what they start inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


class SharedPlatform:
    """Platform of two projects: one of the workspace `default`, and one of a team's, `payments`.

    A test may kill parts of it or end it: `up` starts it anew for the next one, on the same store.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.home = folder, folder / "home"
        (folder / "sample_project.py").write_text(SAMPLE)
        (folder / "team_payments.py").write_text(PAYMENTS)

    def up(self) -> RunningPlatform:
        """Start it, unless it is healthy."""
        if not status(self.home).healthy:
            projects = "sample_project,payments=team_payments"
            started = self.toque("up", "--project", projects, "--port", str(free_port()))
            out, _ = started.communicate(timeout=300)
            assert started.returncode == 0, out
        running = find_platform(self.home)
        assert running is not None
        return running

    def toque(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command on it."""
        return toque(self._folder, self.home, *arguments)

    def end(self) -> None:
        """End what runs of it."""
        down(self.home)
