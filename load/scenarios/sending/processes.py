"""Runs a scenario: starts the processes that send, adds up what they count, and ends them early if an objective breaks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toque.load.scenarios.plan import Plan, plan_of
from toque.load.scenarios.result import LoadRun, broken
from toque.load.scenarios.scenario import Scenario
from toque.load.scenarios.sending.connections import Address
from toque.load.scenarios.target import NotPossible, Target
from toque.load.scenarios.windows import Windows

__all__ = ["NotPossible", "Sending", "put_load", "start_sending"]

_POLL_S = 0.25
_READY_S = 120.0  # a process imports numpy on a busy machine
_MOST_WINDOWS = 600  # of a run that is kept
_LEAD_S = 0.2


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

    keys: file of rows for the parts of the mix that name none; remote_workers: of locust, that join from other machines.
    report: told every few seconds how it goes. Raises: NotPossible if nothing could be sent; ValueError for what cannot be.
    """
    if keys:
        mix = tuple(ask if ask.keys else ask.model_copy(update={"keys": keys}) for ask in scenario.mix)
        scenario = scenario.model_copy(update={"mix": mix})
    if remote_workers and scenario.client != "locust":
        raise ValueError(
            f"remote_workers={remote_workers} with the {scenario.client} client: only locust has workers elsewhere"
        )
    plan = plan_of(target.url, target.model, scenario, metadata_of=target.metadata)
    plan = plan.model_copy(update={"processes": scenario.processes + remote_workers})
    started_at = datetime.now(UTC)
    with start_sending(plan, target.token, remote_workers=remote_workers) as sending:
        aborted = _watch(sending, scenario, report)
        busiest = sending.busiest()
    return _run_of(sending.windows, name, target, scenario, started_at, aborted, busiest)


@contextmanager
def start_sending(plan: Plan, token: str | None, *, remote_workers: int = 0) -> Iterator[Sending]:
    """Start the processes of a plan, which begin together; what they count is in the value. Raises: NotPossible."""
    with tempfile.TemporaryDirectory(prefix="toque-load-") as folder:
        sending = Sending(Path(folder), plan)
        try:
            if plan.scenario.client == "locust":
                sending.start_locust(token, remote_workers)
            else:
                sending.start_native(token)
            yield sending
        finally:
            sending.end()


class Sending:
    """Processes that send, and what they have counted. begin: in seconds since the epoch; of the shape, after the warm-up."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.windows = Windows()
        self.begin = 0.0
        self._processes: list[subprocess.Popen[str]] = []
        self._read: dict[Path, int] = {}
        self._done: set[str] = set()
        self._cpu_s: dict[Path, float] = {}
        self._plan_file = folder / "plan.json"
        self._plan_file.write_text(plan.model_dump_json())

    def start_native(self, token: str | None) -> None:
        """Start a native client for each process of the plan. Raises: NotPossible if one does not come up."""
        Address.of(self.plan.url)  # raises before a process does
        environment = os.environ | ({"TOQUE_TOKEN": token} if token else {})
        for index in range(self.plan.processes):
            self._start(
                ["toque.load.scenarios.sending.client", str(self._plan_file), str(index), str(self._counts(index))], environment
            )  # fmt: skip
        for process in self._processes:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            if process.stdout.readline() != "ready\n":
                raise NotPossible(f"a client ended with {process.wait()}:\n{self._errors()}")
        self.begin = time.time() + _LEAD_S + self.plan.scenario.warm_up_s
        self._tell(f"{self.begin!r}\n")

    def start_locust(self, token: str | None, remote_workers: int) -> None:
        """Start locust's master and workers. Raises: NotPossible if they do not begin."""
        scenario = self.plan.scenario
        workers = scenario.processes + remote_workers
        environment = os.environ | ({"TOQUE_TOKEN": token} if token else {})
        environment |= {"TOQUE_LOAD_PLAN": str(self._plan_file), "TOQUE_LOAD_COUNTS": str(self._counts(0))}
        program = ["locust", "-f", str(Path(__file__).parent / "locustfile.py"), "--loglevel", "ERROR"]
        users = str(scenario.connections * workers)
        master = [
            "--master",
            "--headless",
            "--expect-workers",
            str(workers),
            "--users",
            users,
            "--only-summary",
        ]
        self._start([*program, *master, "--spawn-rate", users, "--host", self.plan.url], environment)
        for _ in range(scenario.processes):
            self._start([*program, "--worker"], environment)
        deadline = time.monotonic() + _READY_S + 600 * bool(remote_workers)
        begun = self.folder / "0.jsonl.begin"
        while not begun.exists():
            if self._processes[0].poll() is not None or time.monotonic() > deadline:
                raise NotPossible(f"locust does not begin:\n{self._errors()}")
            time.sleep(_POLL_S)
        self.begin = float(begun.read_text())

    def collect(self) -> bool:
        """Read what was counted since the last call; returns whether every process has finished.

        Raises: NotPossible if one ended before.
        """
        ended = [process.poll() for process in self._processes]
        for path in self.folder.glob("*.jsonl"):
            self._read_counts(path)
        senders = self.plan.processes if self.plan.scenario.client == "native" else 1
        if len(self._done) >= senders:
            return True
        if any(code is not None for code in ended):
            raise NotPossible(f"a process that sends ended before its time:\n{self._errors()}")
        return False

    def requests(self) -> list[dict[str, Any]]:
        """Read the lines of every request that has ended, where the plan asks for them."""
        texts = [path.read_text().rpartition("\n")[0] for path in sorted(self.folder.glob("*.requests"))]
        return [json.loads(line) for text in texts for line in text.splitlines()]

    def busiest(self) -> float:
        """Share of a core that the busiest native client took since it began; NaN for locust."""
        took_s = time.time() - self.begin + self.plan.scenario.warm_up_s
        return max(self._cpu_s.values(), default=math.nan) / took_s

    def stop(self) -> None:
        """Have every process end now, and collect what they still counted."""
        if self.plan.scenario.client == "native":
            self._tell("stop\n")
        else:
            self._processes[0].terminate()
        for process in self._processes:
            _wait(process)
        for path in self.folder.glob("*.jsonl"):
            self._read_counts(path)

    def end(self) -> None:
        """End every process that is left."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
            _wait(process)
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()

    def _start(self, module: list[str], environment: dict[str, str]) -> None:
        with (self.folder / "errors").open("a") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip
        self._processes.append(process)

    def _tell(self, line: str) -> None:
        for process in self._processes:
            if process.stdin and process.poll() is None:
                process.stdin.write(line)
                process.stdin.flush()

    def _counts(self, index: int) -> Path:
        return self.folder / f"{index}.jsonl"

    def _read_counts(self, path: Path) -> None:
        with path.open("rb") as counts:
            counts.seek(self._read.get(path, 0))
            whole = counts.read().rpartition(b"\n")[0]
        self._read[path] = self._read.get(path, 0) + len(whole) + bool(whole)
        for line in whole.splitlines():
            changes = json.loads(line)
            self.windows.add(changes)
            self._cpu_s[path] = changes.get("cpu_s", math.nan)
            if changes.get("done"):
                self._done.add(path.name)

    def _errors(self) -> str:
        return (self.folder / "errors").read_text()[-2000:]


def _watch(sending: Sending, scenario: Scenario, report: Callable[[str], None] | None) -> str:
    """Wait for the end; returns the objective that broke before it, in words, or nothing."""
    told = time.monotonic()
    while not sending.collect():
        if scenario.abort_after_s and (problem := _abort(sending, scenario, scenario.abort_after_s)):
            sending.stop()
            return problem
        if report and time.monotonic() - told > 5:
            told = time.monotonic()
            found = sending.windows.measured(first=-math.inf)
            report(
                f"{found.due} due, {found.answered} answered, {found.failed} failed, {found.dropped} dropped"
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


def _run_of(
    windows: Windows,
    name: str,
    target: Target,
    scenario: Scenario,
    started_at: datetime,
    aborted: str,
    busiest: float,
) -> LoadRun:
    """Put the result of a run together. Raises: NotPossible if nothing was due in it."""
    window_s = max(1, math.ceil(scenario.shape.seconds / _MOST_WINDOWS))
    packed = windows.packed(window_s)
    if not packed:
        raise NotPossible(f"no request was due in {scenario.shape.seconds:g} s; raise the rate or the length")
    return LoadRun(
        scenario_name=name, scenario=scenario, url=target.url, model=target.model, started_at=started_at,
        window_s=window_s, windows=tuple(window.document() for window in packed),
        problems=dict(windows.problems), aborted=aborted,
        client_busy=None if math.isnan(busiest) else round(busiest, 3),
    )  # fmt: skip


def _wait(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)
