"""Faults of a running platform: each raises its own alert in Alertmanager within five minutes, no other, and clears."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clusters.monitoring.alert_watch import PROGRAMS, Told, until, watch
from tests.ports import free_port
from tests.registry import s3_servers
from toque.functions.prediction_log.writing.wal import default_wal_root
from toque.ray_apps.local import RunningPlatform, down, processes
from toque.ray_apps.local.state_file import find_platform

pytestmark = [
    pytest.mark.proof,
    pytest.mark.ray,
    pytest.mark.timeout(1800, func_only=True),
    pytest.mark.skipif(
        not all(map(shutil.which, PROGRAMS)),
        reason="needs apt-get install prometheus prometheus-alertmanager",
    ),
]

WITHIN_S = 300
AWS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
CLEARED_WITHIN_S = 600  # the longest window of an alert is five minutes
PROJECT = """
from datetime import timedelta

from toque.featurestore import Entity, FeatureView, Field, Float64
from toque.functions import Retries, context, function
from toque.functions.features.jobs import record_feature_health

VIEW = FeatureView("weather", [Entity("origin")], [Field("temp", Float64)])
FEATURES, MODELS = [VIEW], []

@function(http=True)
def sample_weather(hours_ago: float) -> None:
    features = context().features()
    features.apply(FEATURES)
    at = context().clock() - timedelta(hours=hours_ago)
    features.write_offline(VIEW, [{"origin": "JFK", "temp": 20.0, "event_timestamp": at}])
    record_feature_health()

@function(http=True, retries=Retries(max_attempts=1))
def sample_fail() -> int:
    raise RuntimeError("out of gas")
"""


@dataclass(frozen=True)
class Platform:
    """A platform on this machine, and what its people are told. log: folder of the prediction log, where it has a small disk."""

    home: Path
    running: RunningPlatform
    told: Told
    store: Store
    labels: Labels
    log: Path | None

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        given = {"Authorization": f"Bearer {self.running.token()}"} | headers
        answer = httpx.request(method, self.running.url + path, json=body, headers=given, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def toque(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "toque.ray_apps.cli", "--home", str(self.home), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=self.home.parent)
        return done.stdout.strip()

    def process(self, name: str) -> int:
        found = processes.of_platform(self.home, self.running.sessions.values())
        return next(each.pid for each in found if name in each.command)


@dataclass
class Store:
    """An S3 server whose answers may be late, and whose clock may be off."""

    url: str
    folder: Path

    def set(self, name: str, seconds: float) -> None:
        """Make answers late (`late`) or the clock fast (`ahead`) by so many seconds."""
        file = self.folder / f"{name}.new"
        file.write_text(str(seconds))
        file.replace(self.folder / name)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("s3")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in AWS.items():
            patched.setenv(name, value)
        made = Store("", folder)
        made.set("late", 0)
        made.set("ahead", 0)
        with s3_servers.moto(f"--late-by={folder}/late", f"--ahead-by={folder}/ahead") as endpoint:
            s3_servers.create_bucket(endpoint, "toque")
            yield replace(made, url=f"s3://toque/platform?endpoint={endpoint}")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("alerts")
    (folder / "sample_project.py").write_text(PROJECT)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOQUE_", "RAY_"))
    }
    home = folder / "home"
    log = default_wal_root(store.url)
    disk = small_disk(log)
    command = [
        sys.executable,
        "-m",
        "toque.ray_apps.cli",
        "--home",
        str(home),
        "up",
        "--project",
        "sample_project",
    ]
    try:
        started = subprocess.run(
            [*command, "--store", store.url, "--port", str(free_port())],
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
            labels = Labels(running)
            made = Platform(home, running, told, store, labels, log=log if disk else None)
            until(lambda: told.firing == {"Watchdog"} and measured(made), within_s=300)
            labels.start()
            yield made
            labels.stop()
    finally:
        down(home)
        if disk:
            subprocess.run(["umount", "--lazy", str(log)], check=True)


def small_disk(folder: Path) -> bool:
    """Give a folder a disk of its own that is soon full; whether this user may."""
    folder.mkdir(mode=0o700, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", str(folder)]
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
    given = {"Idempotency-Key": f"fail-{time.time()}", "Prefer": "respond-async"}
    platform.call("POST", "/functions/sample_fail", {}, **given)
    try:
        yield
    finally:
        for each in platform.call("GET", "/invocations?state=dead"):
            platform.toque("invocations", "purge", each["id"])


@contextmanager
def disk_fills(platform: Platform) -> Iterator[None]:
    if platform.log is None:
        pytest.skip("needs a user who may mount a disk")
    file = platform.log / "ballast"
    free = shutil.disk_usage(file.parent).free
    with file.open("wb") as written:
        os.posix_fallocate(written.fileno(), 0, int(0.95 * free))
    try:
        yield
    finally:
        file.unlink()


@contextmanager
def token_ends(platform: Platform) -> Iterator[None]:
    ends = datetime.now(UTC) + timedelta(seconds=5)
    secret = platform.toque("token", "create", "robot", "viewer", "--expires", ends.isoformat())
    until(lambda: refused(platform, secret), within_s=60)
    try:
        yield
    finally:
        platform.toque("token", "revoke", "robot")


def refused(platform: Platform, secret: str) -> bool:
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.get(f"{platform.running.url}/functions", headers=headers, timeout=30).status_code == 401


@contextmanager
def store_slows(platform: Platform) -> Iterator[None]:
    """Answers take seconds; whoever looks at the models meets it."""
    platform.store.set("late", 4)
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            with suppress(httpx.HTTPError):
                platform.call("GET", "/models")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for each in lookers:
        each.start()
    try:
        yield
    finally:
        platform.store.set("late", 0)
        over.set()
        for each in lookers:
            each.join()


@contextmanager
def clock_skews(platform: Platform) -> Iterator[None]:
    platform.store.set("ahead", 40)
    try:
        yield
    finally:
        platform.store.set("ahead", 0)


@contextmanager
def feed_stops(platform: Platform) -> Iterator[None]:
    """The newest row is of the day before yesterday, until another comes."""
    platform.call("POST", "/functions/sample_weather", {"hours_ago": 30})
    try:
        yield
    finally:
        platform.call("POST", "/functions/sample_weather", {"hours_ago": 0})


@contextmanager
def ticker_dies(platform: Platform) -> Iterator[None]:
    """Each ticker that Serve starts is killed again."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.5):
            with suppress(StopIteration, ProcessLookupError):
                os.kill(platform.process("ServeReplica:ticker"), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        over.set()
        killer.join()


@contextmanager
def replica_runs_out_of_memory(platform: Platform) -> Iterator[None]:
    """The kernel kills the gateway, which may take no more memory than it has, at its next large request."""
    group = Path("/sys/fs/cgroup/memory") / f"toque-alerts-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1 << 20))
    except OSError:
        pytest.skip("needs a user who may limit memory by a control group")
    pid = platform.process("ServeReplica:gateway")
    (group / "cgroup.procs").write_text(str(pid))

    def is_dead() -> bool:
        with suppress(httpx.HTTPError):
            platform.call("POST", "/feedback", "x" * (4 << 20))
        return not Path(f"/proc/{pid}").exists()

    try:
        until(is_dead, within_s=60)
        yield
    finally:
        group.rmdir()


@contextmanager
def labels_stop(platform: Platform) -> Iterator[None]:
    """Labels, which have come every second until now, come no more."""
    platform.labels.stop()
    try:
        yield
    finally:
        platform.labels.start()


class Labels:
    """A feed of labels: one a second, from `start` to `stop`; what is refused is not sent again."""

    def __init__(self, running: RunningPlatform) -> None:
        self._url, self._headers = (
            f"{running.url}/feedback",
            {"Authorization": f"Bearer {running.token()}"},
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._number = 0

    def start(self) -> None:
        self._over.clear()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        while not self._over.wait(1):
            self._number += 1
            label = {"prediction_id": f"p-{self._number}", "label": 1.0}
            with suppress(httpx.HTTPError):
                httpx.post(self._url, json=[label], headers=self._headers, timeout=30)


@pytest.mark.parametrize(
    ("alert", "fault"),
    [
        ("DeadLetters", invocation_dies),  # before all causes, which keep symptoms from being told
        ("TokenExpired", token_ends),
        ("RedisAway", redis_stops),
        ("DiskFills", disk_fills),
        ("FeaturesStale", feed_stops),
        ("ClockSkewed", clock_skews),
        ("NoLeader", ticker_dies),
        ("LabelsStopped", labels_stop),
        ("StoreSlow", store_slows),
        ("HaproxyRestarted", haproxy_dies),
        ("OutOfMemory", replica_runs_out_of_memory),
    ],
)
def test_a_fault_raises_its_own_alert_and_no_other(
    platform: Platform, alert: str, fault: Callable[[Platform], Any]
) -> None:
    """An alert of an earlier fault that looks back for minutes may stand yet; `test_each_alert_clears` waits for it."""
    platform.told.begin()
    before = set(platform.told.firing)
    with fault(platform):
        begun = time.monotonic()
        until(lambda: alert in platform.told.firing, within_s=WITHIN_S)
        raised_s = time.monotonic() - begun
    sys.stdout.write(f"{alert}: after {raised_s:.0f} s, load {os.getloadavg()[0]:.0f}\n")
    assert platform.told.ever - before == {alert}


def test_each_alert_clears(platform: Platform) -> None:
    until(lambda: platform.told.firing == {"Watchdog"}, within_s=CLEARED_WITHIN_S)
