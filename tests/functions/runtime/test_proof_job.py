"""`ray job submit … -- python -m toque.functions run NAME --json …`: an exit code and a result that a script can use."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.ray]
RAY = (sys.executable, "-m", "ray.scripts.scripts")


@pytest.fixture(scope="module")
def job_cluster() -> Iterator[dict[str, str]]:
    """Start a cluster with a job server, and yield the environment of its clients."""
    gcs, door, agent, client, metrics = free_ports(5)
    folder = Path("/tmp") / f"rj{os.getpid()}"  # noqa: S108  # a Unix socket's path is short
    options = {
        "node-ip-address": "127.0.0.1",
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": door,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 4,
        "temp-dir": folder,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    environment = os.environ | token
    head = subprocess.Popen(
        [*RAY, "start", "--head", "--block", "--disable-usage-stats", *flags],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for url in (f"{door}/api/version", f"{agent}/api/local_raylet_healthz"):  # the agent runs the jobs
            _wait_for(f"http://127.0.0.1:{url}", token["RAY_AUTH_TOKEN"], head)
        yield environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{door}"}
    finally:
        for pid in _session(head.pid):
            _kill(pid)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str, token: str, head: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 90
    while True:
        assert head.poll() is None, "ray start has ended"
        assert time.monotonic() < deadline, f"{url} does not answer"
        try:
            _get(url, token)
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return


def _get(url: str, token: str) -> httpx.Response:
    return httpx.get(url, headers={"Authorization": f"Bearer {token}"}).raise_for_status()


def _session(leader: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-s", str(leader), "-o", "pid="], capture_output=True, text=True, check=False
    )
    return [int(each) for each in found.stdout.split()]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended with another of them
        return


@pytest.fixture
def submit(job_cluster: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    """Start `ray job submit` of a function of a user's project, shipped with the working directory."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(Path(__file__).with_name("sample_functions.py"), project / "user_project.py")
    given = {"TOQUE_STORE": f"file://{tmp_path}/store", "TOQUE_PROJECT": "user_project"}

    def submitted(job: str, name: str, **arguments: Any) -> Any:
        shipped = ("--working-dir", str(project), "--runtime-env-json", json.dumps({"env_vars": given}))
        command = ("toque.functions", "run", name, "--json", json.dumps(arguments))
        return subprocess.Popen(
            [*RAY, "job", "submit", "--submission-id", job, *shipped, "--", sys.executable, "-m", *command],
            env=job_cluster,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return submitted


@pytest.mark.long
def test_a_job_gives_a_script_its_exit_code_and_its_result(
    submit: Any, job_cluster: dict[str, str], tmp_path: Path
) -> None:
    submitted = {
        "well": submit("well", "append_word", path=str(tmp_path / "t"), word="x"),
        "failing": submit("failing", "append_word", path="/", word="x"),
        "unknown": submit("unknown", "nope"),
    }
    output = {job: process.communicate(timeout=120)[0] for job, process in submitted.items()}
    assert {job: process.returncode for job, process in submitted.items()} == {
        "well": 0,
        "failing": 1,
        "unknown": 1,
    }, output

    def last_line(job: str) -> Any:
        logs = _get(
            f"{job_cluster['RAY_API_SERVER_ADDRESS']}/api/jobs/{job}/logs", job_cluster["RAY_AUTH_TOKEN"]
        )
        return json.loads(logs.json()["logs"].splitlines()[-1])

    assert last_line("well") == "x"
    assert (tmp_path / "t").read_text() == "x\n"
    assert last_line("failing")["error"]["type"] == "IsADirectoryError"
    assert last_line("unknown")["error"]["exit_code"] == 1
