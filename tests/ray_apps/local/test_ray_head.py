"""What is told of a head that does not start."""

import subprocess
import sys
from pathlib import Path

import pytest

from toque.ray_apps.local import ray_head
from toque.ray_apps.local.errors import StartFailed
from toque.ray_apps.local.processes import ProcessSession
from toque.ray_apps.local.settings import Ports, Settings
from toque.ray_apps.local.state_file import RunningPlatform


@pytest.mark.parametrize(
    ("program", "limit_s", "fault"),
    [
        ("print('no port is free'); raise SystemExit(3)", 60.0, "ended with status 3\nno port is free"),
        ("input()", 0.2, r"takes longer than 0.2 s; .* raise start_timeout_s in the cluster file"),
    ],
)
def test_a_head_that_does_not_start_says_why(
    home: Path, monkeypatch: pytest.MonkeyPatch, program: str, limit_s: float, fault: str
) -> None:
    with (home / "ray_start.log").open("wb") as log:
        starting = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=log)
    monkeypatch.setitem(ray_head._starters, starting.pid, starting)
    running = RunningPlatform(
        settings=Settings(home=home, start_timeout_s=limit_s),
        boot="",
        ports=Ports(),
        redis_url="",
        run_folder=home,
        sessions={"ray": ProcessSession.led_by(starting.pid)},
    )
    try:
        with pytest.raises(StartFailed, match=fault):
            ray_head.wait_ended(running)
    finally:
        starting.kill()
        starting.wait()
        assert starting.stdin is not None
        starting.stdin.close()
