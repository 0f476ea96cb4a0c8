"""The door on real Serve while HAProxy, its manager or an application is killed or replaced, at 200 requests a second."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import httpx
import pytest

from tests.ports import free_port
from tests.waiting import until
from toque.ray_apps.serve.haproxy_supervisor import processes_of
from toque.ray_apps.serve.settings import HAPROXY, loopback_environment, serve_settings

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(480)]

RATE, LATE_S = 200, 6
"""Requests a second, each on a connection of its own, at times that are set beforehand; and how long a HAProxy takes to start
while the file `late` is there, as on a machine without free processor time."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Doors:
    """A running Serve: its address, its folder, its process, and where HAProxy counts."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    metrics_port: int

    @property
    def configuration(self) -> Path:
        return next(self.folder.glob("ha/*/haproxy.cfg"))

    def haproxies(self) -> list[int]:
        """Pids of HAProxy, without what the script that starts it runs before."""
        running = processes_of(str(self.configuration))
        return [pid for pid in running if _text(Path(f"/proc/{pid}/comm")) == b"haproxy\n"]

    def manager(self) -> int:
        """Pid of the actor that manages HAProxy, once there is one that has not been killed."""
        until(lambda: len(self._managers()) == 1)
        return self._managers()[0]

    def _managers(self) -> list[int]:
        managers = [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit()
            and b"SupervisedManager" in _text(folder / "cmdline")
            and str(self.folder).encode() in _text(folder / "environ")
        ]
        # Between its fork and its exec a HAProxy to be looks like the manager.
        return [pid for pid in managers if _parent(pid) not in managers]

    def raylet(self) -> int:
        """Pid of the node's raylet, the manager's parent."""
        return _parent(self.manager())

    def pid(self, path: str) -> int:
        """Pid of an application's replica, once it answers."""
        until(lambda: answers(f"{self.url}{path}"))
        return int(httpx.get(f"{self.url}{path}", timeout=60).text)

    def through_python_proxy(self) -> int:
        """Requests that HAProxy handed to Serve's Python proxy since it started."""
        said = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text
        counts = re.findall(
            r'^haproxy_server_sessions_total\{.*server="SERVE_PROXY_ACTOR.*\} (\S+)$', said, re.MULTILINE
        )
        assert counts, "HAProxy no longer counts what it hands to the Python proxy"
        return sum(int(float(each)) for each in counts)

    def deploy_again(self) -> None:
        """Replace the replicas of both applications; returns when Serve says that the new ones run."""
        self.process.send_signal(signal.SIGHUP)
        until(lambda: b"deployed\n" in _text(self.folder / "log"), within_s=150)


def _text(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    """Pid of a process's parent; 0 if the process has ended."""
    status = _text(Path(f"/proc/{pid}/stat")).rpartition(b") ")[2].split()
    return int(status[1]) if status else 0


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    folder = Path(tempfile.mkdtemp(prefix="tq-", dir="/tmp"))
    port, place = free_port(), folder / "ha"
    place.mkdir()
    paths = {
        "CONFIG_FILE_LOC": place / "haproxy.cfg",
        "SOCKET_PATH": place / "a.sock",
        "SERVER_STATE_BASE": place,
        "SERVER_STATE_FILE": place / "state",
        "METRICS_SOCKET_PATH": place / "m.sock",
        "METRICS_PORT": free_port(),
        "STATS_PORT": free_port(),
        "NBTHREAD": 1,
    }
    late = folder / "haproxy.sh"
    late.write_text(f'#!/bin/sh\n[ -e {folder}/late ] && sleep {LATE_S}\nexec {HAPROXY} "$@"\n')
    late.chmod(0o755)
    environment = os.environ | serve_settings() | loopback_environment()
    environment |= {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(late),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),  # not that of another Serve on this machine
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
    }
    environment |= {f"RAY_SERVE_HAPROXY_{name}": str(value) for name, value in paths.items()}
    environment |= {"RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_apps.served_doors", str(port)],
            env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
        )  # fmt: skip
    made = Doors(f"http://127.0.0.1:{port}", folder, process, int(str(paths["METRICS_PORT"])))
    try:
        until(lambda: b"ready\n" in _text(folder / "log") or process.poll() is not None, within_s=120)
        assert process.poll() is None, _text(folder / "log")[-3000:].decode()
        until(lambda: answers(f"{made.url}/pid") and answers(f"{made.url}/other/pid"))
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        for configuration in folder.glob("ha/*/haproxy.cfg"):  # none if Serve did not start
            kill(processes_of(str(configuration)))
        shutil.rmtree(folder, ignore_errors=True)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


class Outcome(NamedTuple):
    """End of a request: when it was due and when it ended, and its status: 0 if it was refused."""

    due: float
    status: int
    retry_after: str
    ended: float


@dataclass
class Load:
    """Requests at a constant rate."""

    address: tuple[str, int]
    path: str
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(64)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(lambda: len(self.outcomes) > RATE / 2)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._pool.submit(self._ask, due)
            due += 1 / RATE
            time.sleep(max(0.0, due - time.monotonic()))

    def _ask(self, due: float) -> None:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request("GET", self.path, headers={"connection": "close"})
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.outcomes.append(Outcome(due, 0, type(error).__name__, time.monotonic()))
        else:
            retry = answer.headers.get("retry-after", "")
            self.outcomes.append(Outcome(due, answer.status, retry, time.monotonic()))
        finally:
            connection.close()

    def failed(self, since: float) -> list[Outcome]:
        return sorted(each for each in self.outcomes if each.due >= since and each.status != 200)

    def good_since(self, moment: float) -> int:
        return len(self.good(moment))

    def good(self, since: float) -> list[Outcome]:
        return [each for each in self.outcomes if each.due >= since and each.status == 200]


def load_of(doors: Doors, path: str) -> Load:
    return Load(("127.0.0.1", int(doors.url.rpartition(":")[2])), path)


def kill(pids: list[int]) -> float:
    killed = time.monotonic()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # one that a reload replaced may end by itself
            os.kill(pid, signal.SIGKILL)
    return killed


def start_s(doors: Doors) -> float:
    """Seconds that a start of HAProxy takes beside all that runs now, until it has read its configuration."""
    copy = shutil.copy(doors.configuration, doors.folder / "copy.cfg")
    begun = time.monotonic()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([HAPROXY, "-c", "-f", copy], env=environment, capture_output=True, check=True)
    return time.monotonic() - begun


def test_a_killed_haproxy_is_back_within_a_second_or_what_its_start_takes(doors: Doors) -> None:
    with load_of(doors, "/pid") as load:
        within_s = max(1.0, 4 * start_s(doors))
        killed = kill(doors.haproxies())
        until(lambda: load.good_since(killed + within_s) > RATE)
    failed = [each.due - killed for each in load.failed(killed - 1)]
    assert failed, "nothing noticed: HAProxy was not killed"
    assert max(failed) < within_s, failed
    until(lambda: len(doors.haproxies()) == 1)


def test_the_next_manager_takes_over_from_the_haproxy_of_one_that_was_killed(doors: Doors) -> None:
    manager, before = doors.manager(), set(doors.haproxies())
    with load_of(doors, "/other/pid") as load:
        killed = kill([manager])
        until(lambda: not before.intersection(now := doors.haproxies()) and len(now) == 1)
        until(lambda: load.good_since(time.monotonic() - 0.5) > RATE / 4)
    failed = load.failed(killed - 1)
    assert len(failed) < RATE  # a second of them
    assert 404 not in {each.status for each in failed}
    assert doors.manager() != manager


def test_the_death_of_the_only_replica_is_a_wait_or_a_503_never_a_404(doors: Doors) -> None:
    """The replica that follows is known to the HAProxy that was started anew, so reloads go on."""
    replica = doors.pid("/pid")
    with load_of(doors, "/pid") as load:
        kill([replica])
        gone = time.monotonic()
        until(lambda: load.good_since(gone + 1) > RATE)
    followed = min(each.ended for each in load.good(gone))
    # Until Serve's own proxy has heard of the end, it hands requests to a replica that is gone.
    before = [each for each in load.failed(gone - 1) if each.due <= followed]
    later = [each for each in load.failed(gone - 1) if each.due > followed]
    assert {each.status for each in before} <= {0, 502, 503}
    assert sum(each.status != 503 for each in before) < RATE  # a second of them
    assert {(each.status, each.retry_after) for each in later} <= {(503, "1")}
    assert doors.pid("/pid") != replica


@pytest.mark.long
def test_a_replica_answers_until_a_haproxy_that_learns_late_knows_its_successor(doors: Doors) -> None:
    before = {path: doors.pid(path) for path in ("/pid", "/other/pid")}
    indirect = doors.through_python_proxy()
    (doors.folder / "late").touch()
    with load_of(doors, "/other/pid") as load:
        begun = time.monotonic()
        doors.deploy_again()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before.values()), within_s=120)
        ended = time.monotonic()
        until(lambda: load.good_since(ended) > RATE)
    (doors.folder / "late").unlink()
    assert ended - begun > LATE_S, "nothing was late"
    assert load.failed(begun) == []
    assert doors.through_python_proxy() == indirect


def test_a_door_stays_shut_once_its_node_is_gone(doors: Doors) -> None:
    """The manager outlives its raylet and must not start anew what ended with the node."""
    manager, raylet = doors.manager(), doors.raylet()
    assert answers(f"{doors.url}/pid")
    kill([raylet])
    until(lambda: not doors.haproxies())
    for _ in range(30):  # three seconds, in which it came back before
        assert not answers(f"{doors.url}/pid")
        time.sleep(0.1)  # nothing to wait for: that nothing comes is what is seen
    assert doors.haproxies() == []
    assert Path(f"/proc/{manager}").exists(), (
        "the manager ended with its raylet: this proves nothing any more"
    )
