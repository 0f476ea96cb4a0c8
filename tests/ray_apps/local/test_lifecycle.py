"""Starts, calls, kills and ends a platform on free ports: no process is left, and no acknowledged result is lost."""

import os
import re
import signal
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton

from tests.ports import free_port
from tests.ray_apps.local.shared_platform import SharedPlatform, toque
from tests.waiting import until
from toque.clusters.telemetry.metrics import parse
from toque.ray_apps.local import RunningPlatform, down, processes, status
from toque.ray_apps.local.settings import LISTENING, open_sockets
from toque.ray_apps.local.state_file import find_platform

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    down(tmp_path / "home")


def call(running: RunningPlatform, path: str, body: Any = None, **headers: str) -> Any:
    given = {"Authorization": f"Bearer {running.token()}"} | headers
    method = "GET" if body is None else "POST"
    answer = httpx.request(method, running.url + path, json=body, headers=given, timeout=120)
    answer.raise_for_status()
    return answer.json()


def left(home: Path, running: RunningPlatform) -> list[str]:
    return [each.command for each in processes.of_platform(home, running.sessions.values())]


def kill(home: Path, running: RunningPlatform, name: str) -> None:
    [victim] = [
        each for each in processes.of_platform(home, running.sessions.values()) if name in each.command
    ]
    os.kill(victim.pid, signal.SIGKILL)


def series(running: RunningPlatform) -> dict[tuple[str, str], float]:
    """Series at `/metrics`, summed by name and function or role."""
    login = {"Authorization": f"Bearer {running.token()}"}
    answer = httpx.get(f"{running.url}/metrics", headers=login, timeout=120).raise_for_status()
    found: dict[tuple[str, str], float] = defaultdict(float)
    for sample in (sample for metric in parse(answer.content) for sample in metric.samples):
        found[sample.name, sample.labels.get("function", sample.labels.get("role", ""))] += sample.value
    return found


def answers(running: RunningPlatform, path: str, body: Any = None) -> bool:
    try:
        call(running, path, body)
    except httpx.HTTPError:
        return False
    return True


def listening(found: Iterable[processes.Process]) -> list[tuple[str, str]]:
    """Addresses in the kernel's hexadecimal at which these processes listen, each with a command."""
    listeners = [
        fields
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if (fields := line.split())[3] == LISTENING
    ]
    addresses = {f"socket:[{fields[9]}]": fields[1].partition(":")[0] for fields in listeners}
    return [
        (addresses[name], each.command[:60])
        for each in found
        for name in open_sockets(Path(f"/proc/{each.pid}"))
        if name in addresses
    ]


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same in IPv6's form, and ::1."""


def test_a_platform_restarts_after_kills_with_its_results_and_leaves_no_process(
    shared: SharedPlatform,
) -> None:
    home, running = shared.home, shared.up()
    assert call(running, "/functions/sample_add", {"a": 2}) == 3
    assert call(running, "/functions/sample_add", {"a": 5}, **{"Idempotency-Key": "five"}) == 6
    own = {
        "apply_retention", "compact_open_days", "compact_tables", "finish_erasures", "sum_costs", "watch_language_models",
    }  # fmt: skip
    assert {each["name"] for each in call(running, "/schedules")} == own
    assert any("haproxy" in each for each in left(home, running))
    with triton.InferenceServerClient(running.grpc_address) as client:
        login = {"authorization": f"Bearer {running.token()}"}
        assert client.get_server_metadata(headers=login).name == "toque"
        assert list(client.get_model_repository_index(headers=login).models) == []
    again = shared.toque("up")
    assert "already up" in again.communicate(timeout=60)[0]
    assert again.returncode == 0
    other = shared.toque("up", "--project", "json")
    assert "project: the platform in" in other.communicate(timeout=60)[0]
    assert other.returncode != 0
    until(
        lambda: re.fullmatch(
            r".+/\d+ leads", {each.name: each.where for each in status(home).parts}["ticker"]
        )
    )
    assert status(home).healthy

    found = processes.of_platform(home, running.sessions.values())
    heard = listening(found)
    assert {address for address, _ in heard} <= LOOPBACK, [each for each in heard if each[0] not in LOOPBACK]
    assert len(heard) > 15  # all parts were seen
    [admin_socket] = (running.run_folder / "ha").glob("*/a.sock")
    for path, mode in (
        (home, 0o700),
        (running.run_folder, 0o700),
        (home / "store", 0o700),
        (admin_socket, 0o600),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path

    until(lambda: series(running)["toque_ticker_leader", ""] == 1.0)
    before = series(running)
    assert before["toque_function_runs_total", "sample_add"] >= 2.0
    assert before["toque_function_queue_seconds_count", "sample_add"] >= 1.0
    assert all(before["toque_processes", role] > 0 for role in ("gateway", "ticker", "grpc"))
    kill(home, running, "redis-server 127")
    kill(home, running, "ServeReplica:gateway")
    until(lambda: status(home).healthy)
    until(lambda: answers(running, "/functions/sample_add", {"a": 3}))
    after = series(running)
    assert after["toque_function_runs_total", "sample_add"] >= 3.0
    counted = [name for name in before if name[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    assert [name for name in counted if after[name] < before[name]] == []  # none went back

    # A killed head is not restarted: `up` starts a new platform, on the same store.
    kill(home, running, "gcs_server")
    second = shared.up()
    assert call(second, "/functions/sample_add", {"a": 5}, **{"Idempotency-Key": "five"}) == 6
    assert second.token() == running.token()

    assert down(home) > 0
    assert left(home, running) == left(home, second) == []
    assert down(home) == 0
    assert not status(home).healthy


@pytest.mark.parametrize(
    ("sent", "part"), [(signal.SIGINT, "ray"), (signal.SIGKILL, "ray"), (signal.SIGINT, "jobs")]
)
def test_an_interrupted_up_leaves_no_process(home: Path, sent: signal.Signals, part: str) -> None:
    starting = toque(home.parent, home, "up", "--port", str(free_port()))
    until(lambda: (running := find_platform(home)) is not None and part in running.sessions)
    running = find_platform(home)
    assert running is not None
    starting.send_signal(sent)
    out, _ = starting.communicate(timeout=120)
    if sent is signal.SIGINT:
        assert starting.returncode == 130, out
        assert find_platform(home) is None
    else:
        assert down(home) > 0
    assert left(home, running) == []
