"""Disturbances on processes that call themselves replicas, on a gateway of a few lines, and on a disk that is really full."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.waiting import until
from toque.load.processes import platform_processes, spent_s
from toque.load.soak.__main__ import _small_disk
from toque.load.soak.disturbances import Disturbances
from toque.load.soak.verdict import held_by


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts a process that is named like a replica of the platform in `tmp_path`."""
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, program: str = "sleep 600") -> int:
        environment = os.environ | {"TOQUE_SESSION": str(tmp_path)}
        command = ["bash", "-c", f"exec -a 'ray::ServeReplica:{name}:Predictor' {program}"]
        running.append(subprocess.Popen(command, env=environment))
        until(lambda: any(name in held.role for held in held_by(tmp_path).values()))
        return running[-1].pid

    yield start
    for process in running:
        process.kill()
        process.wait(60)


def disturbances(
    home: Path, *, disk: Path | None = None, answers: Callable[[httpx.Request], httpx.Response]
) -> Disturbances:
    client = httpx.Client(base_url="http://here", transport=httpx.MockTransport(answers))
    return Disturbances(client, home, 0.01, disk, lambda: 3)


def test_the_youngest_replica_is_killed_and_its_successor_waited_for(
    tmp_path: Path, replica: Callable[..., int]
):
    old, young = replica("predictor-mlp"), replica("predictor-mlp")
    other = replica("ticker")
    made = disturbances(tmp_path, answers=lambda _: httpx.Response(500))
    killing = threading.Thread(target=made._kill, args=("predictor-mlp",))
    killing.start()
    until(lambda: young not in {pid for pid, held in held_by(tmp_path).items() if held.descriptors})
    assert killing.is_alive()
    successor = replica("predictor-mlp")
    killing.join(60)
    assert not killing.is_alive()
    assert {old, successor, other} <= set(held_by(tmp_path))
    [(began, gone)] = made.kills
    assert began < gone


def test_changes_wait_for_a_gateway_that_is_away_and_what_it_refuses_is_told(tmp_path: Path):
    asked: list[str] = []

    def answers(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path} {request.content.decode()}")
        if len(asked) == 1:
            return httpx.Response(503)
        if request.method == "GET":
            return httpx.Response(200, json={"aliases": {"champion": 1}})
        return httpx.Response(409 if "tabular" in request.url.path else 200, json={})

    made = disturbances(tmp_path, answers=answers)
    running = threading.Thread(target=made.run)
    running.start()
    until(lambda: len(made.events) >= 3)
    made.stop.set()
    running.join(60)
    assert [event.name for event in made.events[:3]] == ["promotion", "retrain", "kill a replica"]
    assert made.events[0].problem == ""
    assert '"version":2' in asked[2]
    assert "409" in made.events[1].problem
    assert "no process is a replica of predictor-mlp" in made.events[2].problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk_is_full_for_a_while_and_empty_again(tmp_path: Path):
    with _small_disk(tmp_path / "disk") as disk:
        if disk is None:
            pytest.skip("no disk may be mounted here")
        made = disturbances(tmp_path, disk=disk, answers=lambda _: httpx.Response(500))
        filling = threading.Thread(target=made._fill)
        filling.start()
        until(lambda: os.statvfs(disk).f_bavail == 0)
        with pytest.raises(OSError, match="No space left"):
            (disk / "more").write_bytes(b"1" * 100_000)
        made.stop.set()
        filling.join(60)
        assert os.statvfs(disk).f_bavail > 0
    assert not os.path.ismount(tmp_path / "disk")


def test_the_processor_time_of_a_replica_is_what_it_spent(tmp_path: Path, replica: Callable[..., int]):
    busy, namesake = replica("predictor-late", "yes > /dev/null"), replica("predictor-late-2")
    before = platform_processes(tmp_path, "late")
    until(lambda: spent_s(before, platform_processes(tmp_path, "late"))["replica"] > 0.2)
    assert {pid: before[pid][0] for pid in (busy, namesake)} == {busy: "replica", namesake: "other"}
