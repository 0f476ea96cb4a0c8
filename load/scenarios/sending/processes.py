"""Runs a scenario by locust: starts its processes, adds up what they count, and ends them early if an objective breaks."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from toque.load.scenarios.plan import Plan, plan_of
from toque.load.scenarios.result import LoadRun, broken
from toque.load.scenarios.scenario import Scenario
from toque.load.scenarios.target import NotPossible, Target
from toque.load.scenarios.windows import Windows

_POLL_S = 0.25
_READY_S = 120.0  # a process imports numpy and gevent on a busy machine
_JOIN_S = 600.0  # for workers that a person starts elsewhere
_MOST_WINDOWS = 600  # of a run that is kept


def put_load(
    target: Target,
    name: str,
    scenario: Scenario,
    *,
    keys: Path | None = None,
    remote_workers: int = 0,
    report: Callable[[str], None] | None = None,
) -> LoadRun:
    """Run a scenario to its end, or until an objective breaks.

    keys: file of rows for the parts of the mix that name none; remote_workers: that join from other machines.
    report: told every few seconds how it goes. Raises: NotPossible if nothing could be sent; ValueError for what cannot be.
    """
    if keys:
        mix = tuple(ask if ask.keys else ask.model_copy(update={"keys": keys}) for ask in scenario.mix)
        scenario = scenario.model_copy(update={"mix": mix})
    plan = plan_of(target.url, target.model, scenario, metadata_of=target.metadata)
    plan = plan.model_copy(update={"processes": scenario.processes + remote_workers})
    started_at = datetime.now(UTC)
    with start_sending(plan, target.token, remote_workers=remote_workers) as sending:
        aborted = _watch(sending, scenario, report)
        busiest = sending.busiest()
    window_s = max(1, math.ceil(scenario.shape.seconds / _MOST_WINDOWS))
    packed = sending.windows.packed(window_s)
    if not packed:
        raise NotPossible(f"no request was due in {scenario.shape.seconds:g} s; raise the rate or the length")
    return LoadRun(
        scenario_name=name, scenario=scenario, url=target.url, model=target.model, started_at=started_at,
        window_s=window_s, windows=tuple(window.document() for window in packed),
        problems=dict(sending.windows.problems), aborted=aborted, client_busy=busiest,
    )  # fmt: skip


@contextmanager
def start_sending(plan: Plan, token: str | None, *, remote_workers: int = 0) -> Iterator[Sending]:
    """Start the processes of a plan, which begin together; what they count is in the value. Raises: NotPossible."""
    if find_spec("locust") is None:
        raise NotPossible("locust is not installed; run pip install 'toque[load]'")
    with tempfile.TemporaryDirectory(prefix="toque-load-") as folder:
        sending = Sending(Path(folder), plan)
        try:
            sending.start(token, remote_workers)
            yield sending
        finally:
            sending.end()


class Sending:
    """Locust's master and workers, and what they have counted. begin: of the shape, in seconds since the epoch."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.windows = Windows()
        self.begin = 0.0
        self._counts = folder / "counts.jsonl"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._offset, self._done = 0, False
        self._cpu_s: dict[str, float] = {}

    def start(self, token: str | None, remote_workers: int) -> None:
        """Start the master and the workers of this machine. Raises: NotPossible if they do not begin."""
        plan_file, workers = self.folder / "plan.json", self.plan.processes
        plan_file.write_text(self.plan.model_dump_json())
        environment = os.environ | ({"TOQUE_TOKEN": token} if token else {})
        environment |= {"TOQUE_LOAD_PLAN": str(plan_file), "TOQUE_LOAD_COUNTS": str(self._counts)}
        bound, joined = [], []
        if not remote_workers:  # which join at locust's own port
            port = str(free_port())
            bound = ["--master-bind-host", "127.0.0.1", "--master-bind-port", port]
            joined = ["--master-port", port]
        users = str(self.plan.scenario.connections * workers)
        master = ["--master", "--headless", "--expect-workers", str(workers), "--only-summary", *bound]
        self._start([*master, "--users", users, "--spawn-rate", users, "--host", self.plan.url], environment)
        for _ in range(workers - remote_workers):
            self._start(["--worker", *joined], environment)
        deadline = time.monotonic() + _READY_S + _JOIN_S * bool(remote_workers)
        begin = self.folder / "counts.jsonl.begin"
        while not begin.exists():
            if any(process.poll() is not None for process in self._processes) or time.monotonic() > deadline:
                raise NotPossible(f"locust does not begin:\n{self._errors()}")
            time.sleep(_POLL_S)
        self.begin = float(begin.read_text())

    def collect(self) -> bool:
        """Read what was counted since the last call; returns whether every worker has finished.

        Raises: NotPossible if a process ended before.
        """
        has_ended = any(process.poll() is not None for process in self._processes)
        self._read()
        if has_ended and not self._done:
            raise NotPossible(f"a process that sends ended before its time:\n{self._errors()}")
        return self._done

    def requests(self) -> list[dict[str, Any]]:
        """Read the lines of every request that has ended, where the plan asks for them."""
        texts = [path.read_text().rpartition("\n")[0] for path in sorted(self.folder.glob("*.requests"))]
        return [json.loads(line) for text in texts for line in text.splitlines()]

    def busiest(self) -> float | None:
        """Share of a core that the busiest worker took since it began; None where none has reported."""
        took_s = time.time() - self.begin + self.plan.scenario.warm_up_s
        return round(max(self._cpu_s.values()) / took_s, 3) if self._cpu_s else None

    def end(self) -> None:
        """End every process that is left, and collect what they still counted."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
        self._read()

    def _start(self, options: list[str], environment: dict[str, str]) -> None:
        program = [sys.executable, "-m", "locust", "-f", str(Path(__file__).parent / "locustfile.py")]
        with (self.folder / "errors").open("a") as errors:
            self._processes.append(
                subprocess.Popen(
                    [*program, "--loglevel", "ERROR", *options],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment,
                )
            )  # fmt: skip

    def _read(self) -> None:
        if not self._counts.exists():
            return
        with self._counts.open("rb") as counts:
            counts.seek(self._offset)
            whole = counts.read().rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        for line in whole.splitlines():
            changes = json.loads(line)
            self.windows.add(changes)
            self._cpu_s[changes["worker"]] = changes["cpu_s"]
            self._done = self._done or changes["done"]

    def _errors(self) -> str:
        return (self.folder / "errors").read_text()[-2000:]


def free_port() -> int:
    """Find a free port on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _watch(sending: Sending, scenario: Scenario, report: Callable[[str], None] | None) -> str:
    """Wait for the end; returns the objective that broke before it, in words, or nothing."""
    reported = time.monotonic()
    while not sending.collect():
        if scenario.abort_after_s and (problem := _abort(sending, scenario, scenario.abort_after_s)):
            return problem
        if report and time.monotonic() - reported > 5:
            reported = time.monotonic()
            total = sending.windows.measured(first=-math.inf)
            report(
                f"{total.due} due, {total.answered} answered, {total.failed} failed, {total.dropped} dropped"
            )
        time.sleep(_POLL_S)
    return ""


def _abort(sending: Sending, scenario: Scenario, window_s: float) -> str:
    """Say which objective the last seconds broke, those left out whose requests may still come in time."""
    allowed = max(scenario.objectives.p99_ms or 0.0, scenario.objectives.p50_ms or 0.0) / 1e3 + 1.0
    end = math.floor(time.time() - sending.begin - allowed)
    first = end - math.ceil(window_s)
    if first < 0:
        return ""
    finding = broken(sending.windows.measured(first, end), scenario.objectives)
    if finding is None:
        return ""
    return f"{finding.objective} was {finding.measured:.4g} from second {first} to {end}, objective {finding.limit:g}"
