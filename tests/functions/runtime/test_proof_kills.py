"""A ten-step workflow, killed after each step in turn: its driver, its worker, the whole cluster it ran on.

The workflow stands still where the test wants it to, until the test lets it go on, so every kill falls where it is
meant to. The short version is in the suite; `make prove` kills each victim after each step, and after all of them.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from toque.functions import Context, use_context
from toque.functions.runtime.durable import invocation as invocations
from toque.functions.runtime.triggers.schedule import run_due, status
from toque.registry import open_store

ROOT = Path(__file__).parents[3]
STEPS = range(10)
TOKEN = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
}  # a cluster's drivers need the same
AFTER_EACH = [pytest.param([step], id=f"after-{step + 1}") for step in STEPS]
AFTER_ALL = pytest.param(STEPS, id="after-all")
VICTIMS = [
    pytest.param("driver", "local", id="driver-local"),
    pytest.param("worker", "local", id="worker-local"),
    pytest.param("driver", "live cluster", id="driver-ray", marks=pytest.mark.ray),
    pytest.param("worker", "live cluster", id="worker-ray", marks=pytest.mark.ray),
    pytest.param("cluster", "own cluster", id="cluster-ray", marks=pytest.mark.ray),
]


@pytest.fixture(scope="module")
def proof() -> Any:
    sys.path.insert(0, str(Path(__file__).parent))
    import proof_functions

    yield proof_functions
    sys.path.remove(str(Path(__file__).parent))


class Subprocess:
    """Process in a session of its own, with all that it starts; `first_line` is the first line that it printed."""

    def __init__(self, call: str, environment: dict[str, str]) -> None:
        environment = os.environ | TOKEN | environment
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
        code = f"import proof_functions; proof_functions.{call}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().strip()
        assert self.first_line

    def members(self) -> list[int]:
        """List the living processes of the session: on Ray the GCS, the raylet, every worker."""
        return [pid for pid in _pids() if _session_of(pid) == self.process.pid]

    def kill(self) -> int:
        """Kill every process of the session; returns how many there were."""
        killed: set[int] = set()
        while found := self.members():
            for pid in found:
                _kill(pid)
            killed.update(found)
            if self.process.poll() is None:
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return len(killed)


def _pids() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def _session_of(pid: int) -> int | None:
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(session)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it ended by itself meanwhile
        return


@pytest.fixture(scope="module")
def live_cluster() -> Iterator[str]:
    """Start a cluster that outlives its drivers, and yield its address."""
    holder = Subprocess("start_cluster()", {})
    yield holder.first_line
    holder.kill()


@pytest.fixture
def start(used: Context) -> Iterator[Callable[[str], Subprocess]]:
    running: list[Subprocess] = []

    def started(call: str) -> Subprocess:
        running.append(Subprocess(call, {"TOQUE_STORE": used.store_url, "TOQUE_ACTOR": used.actor}))
        return running[-1]

    yield started
    for executor in running:
        executor.kill()


@pytest.fixture(scope="module")
def undisturbed(proof: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Effects and result of a run without kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    url = f"file://{folder / 'store'}"
    for step in STEPS:
        (folder / f"go{step}").touch()
    with use_context(Context(open_store(url), url, actor="ada")) as used:
        result = proof.gated.submit(str(folder)).result(60)
        invocations.executor_of(used).close()
    return (folder / "effects").read_text().split(), result


class PausedWorkflow:
    """Workflow under test, which pauses after some steps, and the files by which test and workflow signal each other."""

    def __init__(self, proof: Any, folder: Path, eventually: Callable[..., None]) -> None:
        self.folder = folder
        self.eventually = eventually
        self.invocation = proof.gated.submit(str(folder))
        self.pid = folder / "pid"

    def pause_only_after(self, steps: Collection[int]) -> None:
        for step in STEPS:
            if step not in steps:
                (self.folder / f"go{step}").touch()

    def worker_paused_after(self, step: int) -> int:
        """Wait until the workflow pauses after a recorded step; returns the process that runs it."""
        self.eventually(
            lambda: len(self.invocation.record().steps) == step + 1 and self.pid.exists(), within_s=60
        )
        self.eventually(self.pid.read_text, within_s=60)
        return int(self.pid.read_text())

    def resume(self, step: int, worker: int) -> None:
        """Let the workflow go on, once the process that ran it has ended."""
        self.eventually(lambda: _session_of(worker) is None)
        self.pid.unlink()
        (self.folder / f"go{step}").touch()


@pytest.fixture
def workflow(proof: Any, used: Context, tmp_path: Path, eventually: Callable[..., None]) -> PausedWorkflow:
    return PausedWorkflow(proof, tmp_path, eventually)


@pytest.fixture
def executors(request: pytest.FixtureRequest, start: Any) -> Callable[[str], Callable[[], Subprocess]]:
    """Function that starts an executor locally or on a cluster."""

    def at(where: str) -> Callable[[], Subprocess]:
        address = request.getfixturevalue("live_cluster") if where == "live cluster" else where
        return lambda: start(f"execute({address!r})")

    return at


def survive(
    workflow: PausedWorkflow, start: Callable[[], Subprocess], victim: str, steps: Collection[int]
) -> None:
    """Kill the victim after each of these steps, and restart what died with it."""
    workflow.pause_only_after(steps)
    executor = start()
    for step in steps:
        worker = workflow.worker_paused_after(step)
        if victim == "worker":
            _kill(worker)
        else:
            assert executor.kill() >= (4 if victim == "cluster" else 1)  # driver, GCS, raylet, worker
        workflow.resume(step, worker)
        if victim != "worker":
            executor = start()
    workflow.eventually(lambda: workflow.invocation.status() == "succeeded", within_s=60)


def as_if_undisturbed(workflow: PausedWorkflow, undisturbed: tuple[list[str], list[str]]) -> bool:
    return ((workflow.folder / "effects").read_text().split(), workflow.invocation.result(5)) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "where"), VICTIMS[:2])
def test_a_workflow_killed_twice_has_each_effect_once(
    workflow: PausedWorkflow, executors: Any, undisturbed: Any, victim: str, where: str
) -> None:
    survive(workflow, executors(where), victim, [4, 9])
    assert as_if_undisturbed(workflow, undisturbed)
    assert workflow.invocation.record().lost == 2


@pytest.mark.slow
@pytest.mark.ray
def test_a_workflow_whose_cluster_is_killed_whole_has_each_effect_once(
    workflow: PausedWorkflow, executors: Any, undisturbed: Any
) -> None:
    survive(workflow, executors("own cluster"), "cluster", [4])
    assert as_if_undisturbed(workflow, undisturbed)
    assert workflow.invocation.record().lost == 1


@pytest.mark.proof
@pytest.mark.parametrize("steps", [*AFTER_EACH, AFTER_ALL])
@pytest.mark.parametrize(("victim", "where"), VICTIMS)
def test_a_workflow_killed_after_any_step_has_each_effect_once(
    workflow: PausedWorkflow,
    executors: Any,
    undisturbed: Any,
    victim: str,
    where: str,
    steps: Collection[int],
) -> None:
    survive(workflow, executors(where), victim, steps)
    assert as_if_undisturbed(workflow, undisturbed)
    assert workflow.invocation.record().lost == len(steps)


@pytest.mark.parametrize(
    "ticks", [pytest.param(12, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.proof)]
)
def test_three_tickers_of_which_one_is_killed_fire_each_tick_once(
    proof: Any, used: Context, start: Any, tmp_path: Path, eventually: Callable[..., None], ticks: int
) -> None:
    noon, clock = datetime(2024, 3, 1, 12, tzinfo=UTC), tmp_path / "now"
    clock.write_text(noon.isoformat())
    run_due(used, now=noon, schedules=[proof.EVERY_MINUTE])  # from here on ticks count
    tickers = [start(f"tick({str(tmp_path)!r})") for _ in range(3)]
    ledger = invocations.ledger_of(used)

    def fired() -> int:
        return status(used, schedules=[proof.EVERY_MINUTE])[0].fired

    for minute in range(ticks // 4, ticks + 1, ticks // 4):
        _write(clock, (noon + timedelta(minutes=minute)).isoformat())
        eventually(lambda: fired() >= minute - ticks // 10, within_s=60)  # noqa: B023
        if minute == ticks // 2:
            tickers[0].kill()  # while ticks are still to fire, and one of them runs
    eventually(lambda: fired() == ticks, within_s=60)
    eventually(lambda: len(list(ledger.invocations(limit=1000))) == ticks, within_s=60)
    found = list(ledger.invocations(limit=1000))
    eventually(lambda: all(ledger.read(each.id).status == "succeeded" for each in found), within_s=60)
    fired_at = [datetime.fromisoformat(ledger.arguments(each)["at"]).isoformat() for each in found]
    expected = {(noon + timedelta(minutes=minute)).isoformat() for minute in range(1, ticks + 1)}
    assert (len(fired_at), set(fired_at)) == (ticks, expected)


def _write(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)
