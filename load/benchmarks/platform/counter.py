"""Benchmark of serving beside trainings: p99 of a served model with two dozen experiments, and alone.

python -m toque.load.benchmarks.platform.counter [--rounds 3] [--seconds 30] [--rate 50] [--experiments 24] [--at-once 2]

A platform of its own, in a temporary folder and on free ports, serves a small MLP; one row is sent about `rate` times a second,
whatever became of those before, and its time is from when it was due. Windows alone and windows beside experiments take
turns, so that a noisy neighbour hits both. For the latter so many trainings are submitted, each the tabular default of 160,000
rows; the quota of everyone lets `--at-once` of them run, the others wait, and when the window is over all are cancelled. How late
the caller's own timer was is printed too: no answer can be steadier than that. Run by root, the caller has real-time priority, as if it
were on a machine of its own; else it waits for a CPU that trainings fill, and that counts.

The exit code is 1 if the p99 beside experiments is more than twice the one alone, or a training has not stepped back; 2 if nothing was
measured: the platform did not start, a request failed, or nobody waited any more when a window ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from toque.functions.runtime.declaration import NICENESS
from toque.load.benchmarks.platform.counter_project import MODELS
from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.benchmarks.serving.models import BenchmarkModel, register
from toque.load.benchmarks.serving.throughput import free_port, json_body
from toque.load.benchmarks.timing import print_machine
from toque.load.benchmarks.training.tabular import COLUMNS, synthetic_table
from toque.load.scenarios.sending.open_loop import OpenLoop, ask_steadily, at_once
from toque.registry import Table, TableSnapshot, open_store

MOST = 2.0  # times the p99 alone
CPUS = 2
START_S, BEGIN_S, WARM_S = 600, 180, 5
MODEL = MODELS[0].name
TRAINER = b"ray::train_tabular"  # how Ray names the process of a training


class NotPossible(Exception):  # noqa: N818 - a state of the world, said to a person
    """Raised where nothing could be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Platform:
    """Running platform that is measured.

    client: with the administrator's token; home: its state folder, whose name its processes carry.
    """

    client: httpx.Client
    home: Path

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        """Call a function and return its result. Raises: httpx.HTTPError."""
        return self.client.post(f"/functions/{function}", json=arguments).raise_for_status().json()

    def submit(self, rows: TableSnapshot, number: int) -> str:
        """Submit a training to the queue and return its invocation. Raises: httpx.HTTPError."""
        arguments = {
            "model": f"experiment-{number}",
            "training_set": rows.model_dump(mode="json"),
            "label": COLUMNS.label,
            "numeric": list(COLUMNS.numeric),
            "categorical": list(COLUMNS.categorical),
            "params": {"seed": number},
            "register": False,
        }
        queued = {"Prefer": "respond-async"}
        answer = self.client.post("/functions/train_tabular", json=arguments, headers=queued)
        return str(answer.raise_for_status().json()["id"])

    def count(self, state: str) -> int:
        """Count the invocations in a state; read from the ledger, since a function might itself wait for a CPU.

        Raises: httpx.HTTPError.
        """
        found = self.client.get("/invocations", params={"state": state, "limit": 1000})
        return len(found.raise_for_status().json())

    def trainers(self) -> dict[int, int]:
        """Read the niceness of each training process, by process id."""
        return self.niceness(TRAINER)

    def niceness(self, command: bytes) -> dict[int, int]:
        """Read the niceness of the platform's processes whose command begins so, by process id."""
        found, mark = {}, f"TOQUE_SESSION={self.home}\0".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                named = (folder / "cmdline").read_bytes().startswith(command)
                if named and mark in (folder / "environ").read_bytes():
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    found[int(folder.name)] = int(fields[16])
        return found


@dataclass(frozen=True, slots=True)
class Window:
    """Window of requests under measurement. normal, niced: CPUs that the machine spent meanwhile at niceness 0 or less, and above 0.

    trainers: niceness of each process that trained when the window began or ended; waiting: experiments without a turn at its end.
    """

    sent: OpenLoop
    normal: float
    niced: float
    trainers: list[int] = field(default_factory=list)
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class PooledLatencies:
    """Latencies pooled over several windows, in ms."""

    requests: int
    p50: float
    p99: float
    late_p99: float

    @classmethod
    def of(cls, windows: list[Window]) -> PooledLatencies:
        """Pool the latencies of all windows. Raises: NotPossible if one failed."""
        failed = sum(each.sent.failed for each in windows)
        if failed:
            raise NotPossible(f"{failed} requests failed")
        took = np.concatenate([each.sent.latencies_ms for each in windows])
        late = np.concatenate([each.sent.late_ms for each in windows])
        p50, p99 = np.quantile(took, [0.5, 0.99])
        return cls(len(took), float(p50), float(p99), float(np.quantile(late, 0.99)))

    def __str__(self) -> str:
        return (
            f"p50 {self.p50:6.2f} ms  p99 {self.p99:6.2f} ms  {self.requests} requests, "
            f"the caller's timer late by {self.late_p99:.2f} ms (p99)"
        )


def main() -> None:
    """Start a platform, measure it alone and beside experiments, print both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="of each window")
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--experiments", type=int, default=24)
    parser.add_argument("--at-once", type=int, default=2, help="of them, by the quota of everyone")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    print_machine("ray", "torch")
    try:
        with tempfile.TemporaryDirectory(prefix="counter-") as folder:
            sys.exit(measured(Path(folder).resolve(), given))
    except (NotPossible, httpx.HTTPError, OSError) as error:
        print(f"counter: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("counter: interrupted; the platform has been ended")


def measured(folder: Path, given: argparse.Namespace) -> int:
    """Run the measurement on a new platform; returns 1 if a bound is passed.

    Raises: NotPossible, httpx.HTTPError, OSError.
    """
    store_url = (folder / "store").as_uri()
    token = register(store_url, folder / "artifacts", {MODEL: BenchmarkModel(small_mlp())})
    rows = Table(open_store(store_url), "rows").append(synthetic_table())
    alone, beside = list[Window](), list[Window]()
    with started(folder / "home", store_url) as platform:

        def ask(seconds: float = given.seconds) -> OpenLoop:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            url = f"{platform.client.base_url}/v2/models/{MODEL}/infer"
            with at_once():
                return ask_steadily(
                    url, headers, json_body(), rate=given.rate, seconds=seconds, connections=16
                )

        platform.call("set_quota", {"team": "everyone", "at_once": given.at_once})
        ask(WARM_S)
        for number in range(given.rounds):
            alone.append(watched(ask, platform))
            tell(f"{number} alone", alone[-1])
            with experiments(platform, rows, given.experiments, given.at_once):
                beside.append(watched(ask, platform))
            tell(f"{number} beside", beside[-1])
    return verdict(alone, beside)


def verdict(alone: list[Window], beside: list[Window]) -> int:
    """Print both and their ratio; returns 1 if a bound is passed. Raises: NotPossible."""
    if not all(each.waiting for each in beside):
        raise NotPossible("no experiment waited any more when a window ended: raise --experiments")
    before, after = PooledLatencies.of(alone), PooledLatencies.of(beside)
    niceness = {nice for each in beside for nice in each.trainers}
    print(f"alone:  {before}\nbeside: {after}")
    print(
        f"p99 beside {after.p99 / before.p99:.2f} x alone (at most {MOST:g}); trainings ran at niceness "
        f"{sorted(niceness)} (at least {NICENESS}) and took {np.mean([each.niced for each in beside]):.2f} CPUs"
    )
    stepped_back = bool(niceness) and min(niceness) >= NICENESS
    return int(after.p99 > MOST * before.p99 or not stepped_back)


def watched(ask: Callable[[], OpenLoop], platform: Platform) -> Window:
    """Measure one window, with CPU times and niceness before and after."""
    trainers, before, began = platform.trainers(), cpu_seconds(), time.perf_counter()
    sent = ask()
    normal, niced = (cpu_seconds() - before) / (time.perf_counter() - began)
    trainers |= platform.trainers()
    return Window(sent, float(normal), float(niced), list(trainers.values()), platform.count("queued"))


def tell(name: str, window: Window) -> None:
    """Print one line on a window."""
    print(
        f"{name}: {PooledLatencies.of([window])}; CPUs {window.normal:.2f} + {window.niced:.2f} niced, "
        f"trainings at niceness {window.trainers}, {window.waiting} waiting",
        flush=True,
    )


@contextlib.contextmanager
def started(
    home: Path,
    store_url: str,
    *,
    project: str = "toque.load.benchmarks.platform.counter_project",
    cpus: int = CPUS,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Platform]:
    """Start a platform on this store, and end it afterwards. Raises: NotPossible if it does not start."""
    toque = [sys.executable, "-m", "toque.ray_apps.cli", "--home", str(home)]
    start = [
        "up",
        "--store",
        store_url,
        "--project",
        project,
        "--port",
        str(free_port()),
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOQUE_", "RAY_"))}
    kept |= environment or {}
    running: dict[str, Any] = {}
    # A session of their own: Ctrl-C reaches us alone, and we end the platform.
    how: dict[str, Any] = {"env": kept, "capture_output": True, "text": True, "start_new_session": True}
    try:
        begun = subprocess.run([*toque, *start, "--cpus", str(cpus)], timeout=START_S, check=False, **how)
        if begun.returncode != 0:
            raise NotPossible(f"the platform does not start:\n{begun.stdout}{begun.stderr}")
        running = json.loads((home / "up.json").read_text())
        url = f"http://127.0.0.1:{running['ports']['http']}"
        headers = {"Authorization": f"Bearer {(home / 'token').read_text().strip()}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            yield Platform(client, home)
    finally:
        subprocess.run([*toque, "down"], timeout=START_S, check=False, **how)
        if running:  # sockets and logs, which are not in the home
            shutil.rmtree(running["run_folder"], ignore_errors=True)


@contextlib.contextmanager
def experiments(platform: Platform, rows: TableSnapshot, count: int, at_once: int) -> Iterator[None]:
    """Submit so many trainings, `at_once` of them running, and cancel all afterwards.

    Raises: NotPossible, httpx.HTTPError.
    """
    submitted = [platform.submit(rows, number) for number in range(count)]
    until(lambda: platform.count("running") >= at_once, f"{at_once} experiments have not begun")
    yield
    for each in submitted:
        platform.client.delete(f"/invocations/{each}").raise_for_status()
    until(lambda: not platform.trainers(), "cancelled trainings have not ended")


def until(there: Callable[[], bool], otherwise: str) -> None:
    """Wait until a condition holds. Raises: NotPossible."""
    deadline = time.monotonic() + BEGIN_S
    while not there():
        if time.monotonic() > deadline:
            raise NotPossible(f"{otherwise} within {BEGIN_S} s")
        time.sleep(0.2)


def cpu_seconds() -> npt.NDArray[np.float64]:
    """Read the seconds (2,) that all CPUs have spent at niceness 0 or less, the kernel's included, and above 0."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return np.array([user + system, nice]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
