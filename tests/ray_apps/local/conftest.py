import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_apps.local import processes
from ray_apps.local.processes import Session


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def begin(home: Path) -> Iterator[Callable[..., Session]]:
    """Start a shell command as the platform in `home` would; whatever is left is killed at the end."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(command: str, *, mark: bool = True) -> Session:
        environment = processes.marked({"PATH": "/usr/bin:/bin"}, home) if mark else {"PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(["/bin/sh", "-c", command], env=environment, start_new_session=True)
        begun.append(process)
        return Session.led_by(process.pid)

    yield start
    processes.end(home, [Session.led_by(each.pid) for each in begun if each.poll() is None], grace_s=0)
    for each in begun:
        each.wait()
