"""Faults of a running platform: each raises its own alert in Alertmanager within five minutes, no other, and clears."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_apps.local import RunningPlatform, down, processes
from ray_apps.local.state_file import find_platform
from tests.clusters.monitoring.alert_watch import PROGRAMS, Told, until, watch
from tests.ports import free_port

pytestmark = [
    pytest.mark.proof,
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)),
        reason="needs apt-get install prometheus prometheus-alertmanager",
    ),
]

WITHIN_S = 300
PROJECT = """
from functions import Retries, function
FEATURES, MODELS = [], []

@function(http=True, retries=Retries(max_attempts=1))
def sample_fail() -> int:
    raise RuntimeError("out of gas")
"""


@dataclass(frozen=True)
class Platform:
    """A platform on this machine, and what its people are told."""

    home: Path
    running: RunningPlatform
    told: Told
    disk: bool

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        given = {"Authorization": f"Bearer {self.running.token()}"} | headers
        answer = httpx.request(method, self.running.url + path, json=body, headers=given, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def toque(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "ray_apps.cli", "--home", str(self.home), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=self.home.parent)
        return done.stdout.strip()

    def process(self, name: str) -> int:
        found = processes.of_platform(self.home, self.running.sessions.values())
        return next(each.pid for each in found if name in each.command)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("alerts")
    (folder / "sample_project.py").write_text(PROJECT)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOQUE_", "RAY_"))
    }
    home = folder / "home"
    disk = small_disk(home / "store")
    command = [sys.executable, "-m", "ray_apps.cli", "--home", str(home), "up", "--project", "sample_project"]
    try:
        started = subprocess.run(
            [*command, "--port", str(free_port())],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        running = find_platform(home)
        assert running is not None
        (folder / "watch").mkdir()
        door = running.url.removeprefix("http://")
        haproxy = f"127.0.0.1:{running.ports.metrics}"
        with watch(folder / "watch", door=door, haproxy=haproxy, token=running.token()) as told:
            made = Platform(home, running, told, disk=disk)
            until(lambda: told.firing == {"Watchdog"} and measured(made), within_s=300)
            yield made
    finally:
        down(home)
        if disk:
            subprocess.run(["umount", "--lazy", str(home / "store")], check=True)


def small_disk(folder: Path) -> bool:
    """Give a folder a disk of its own that is soon full; whether this user may."""
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=400m,mode=700", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def measured(platform: Platform) -> bool:
    headers = {"Authorization": f"Bearer {platform.running.token()}"}
    text = httpx.get(f"{platform.running.url}/metrics", headers=headers, timeout=30).text
    return all(
        f"\n{name}" in text
        for name in ("toque_redis_up", "toque_ticker_leader", "toque_haproxy_restarts_total")
    )


@contextmanager
def redis_stops(platform: Platform) -> Iterator[None]:
    pid = platform.process("redis-server 127")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def haproxy_dies(platform: Platform) -> Iterator[None]:
    os.kill(platform.process("haproxy -db"), signal.SIGKILL)
    yield


@contextmanager
def invocation_dies(platform: Platform) -> Iterator[None]:
    platform.call(
        "POST", "/functions/sample_fail?wait=false", {}, **{"Idempotency-Key": f"fail-{time.time()}"}
    )
    yield
    for each in platform.call("GET", "/invocations?state=dead"):
        platform.toque("invocations", "purge", each["id"])


@contextmanager
def disk_fills(platform: Platform) -> Iterator[None]:
    if not platform.disk:
        pytest.skip("needs a user who may mount a disk")
    file = platform.home / "store" / "ballast"
    free = shutil.disk_usage(file.parent).free
    with file.open("wb") as written:
        os.posix_fallocate(written.fileno(), 0, int(0.95 * free))
    yield
    file.unlink()


@contextmanager
def token_ends(platform: Platform) -> Iterator[None]:
    ends = datetime.now(UTC) + timedelta(seconds=5)
    secret = platform.toque("token", "create", "robot", "viewer", "--expires", ends.isoformat())
    until(lambda: refused(platform, secret), within_s=60)
    yield
    platform.toque("token", "revoke", "robot")


def refused(platform: Platform, secret: str) -> bool:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.get(f"{platform.running.url}/functions", headers=headers, timeout=30).status_code == 401


@pytest.mark.parametrize(
    ("alert", "fault"),
    [
        ("RedisAway", redis_stops),
        ("DeadLetters", invocation_dies),
        ("TokenExpired", token_ends),
        ("DiskFills", disk_fills),
        ("HaproxyRestarted", haproxy_dies),
    ],
)
def test_a_fault_raises_its_own_alert_and_no_other(
    platform: Platform, alert: str, fault: Callable[[Platform], Any]
) -> None:
    platform.told.begin()
    begun = time.monotonic()
    with fault(platform):
        until(lambda: alert in platform.told.firing, within_s=WITHIN_S)
        raised = time.monotonic()
    until(lambda: alert not in platform.told.firing, within_s=600)
    sys.stdout.write(
        f"{alert}: after {raised - begun:.0f} s, cleared {time.monotonic() - raised:.0f} s later\n"
    )
    assert platform.told.ever - {"Watchdog"} == {alert}
