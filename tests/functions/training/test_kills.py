"""kill -9 at random moments, from outside: of one worker, of all of them, of the head, of everything that belongs to a cluster."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from examples.flights import data
from tests.functions.training.tabular_setup import FAST, examples
from tests.functions.training.victim import SHARD_ROWS
from toque.functions import Context
from toque.functions.training import train_tabular
from toque.registry import Journal, Table, TableSnapshot, open_store

pytestmark = pytest.mark.ray

KILLS, TRAININGS = ["one worker", "head", "all workers", "cluster", "one worker"], 4
WORKER = "RayTrainWorker"
HEAD = ("/gcs_server", "/raylet")  # what the head runs, beside the workers and who trains
TRAINING = TableSnapshot(name="training", version=1)


class Victim:
    """A process with a cluster of its own, and all that they started."""

    def __init__(self, what: str, context: Context, snapshot: TableSnapshot) -> None:
        given = [what, context.store_url, snapshot.name, str(snapshot.version)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.functions.training.victim", *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def workers(self) -> list[psutil.Process]:
        """Those that train."""
        return [one for one in self._family() if WORKER in _name(one)]

    def head(self) -> list[psutil.Process]:
        """Those that are the head."""
        return [one for one in self._family() if any(part in _name(one) for part in HEAD)]

    def kill(self) -> None:
        """End everything at once."""
        family = self._family()
        for one in (psutil.Process(self.process.pid), *family):
            _kill(one)
        psutil.wait_procs(family, timeout=60)
        self.process.communicate()

    def lose_head(self) -> None:
        """End the head, and after it what cannot go on without it, as whoever started the training does."""
        head, family = self.head(), self._family()
        assert len(head) == len(HEAD)
        for one in head:
            _kill(one)
        until(self, lambda: not any(_lives(one) for one in head))
        for one in (psutil.Process(self.process.pid), *family):
            _kill(one)
        psutil.wait_procs(family, timeout=60)
        self.process.communicate()

    def result(self) -> dict[str, Any]:
        """What it says at its end."""
        said, _ = self.process.communicate(timeout=3_000)
        assert self.process.returncode == 0, said
        (line,) = (each for each in said.splitlines() if each.startswith("{"))  # Ray may speak after it
        results: dict[str, Any] = json.loads(line)
        return results

    def _family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def begin() -> Iterator[Callable[..., Victim]]:
    """Begins a victim, and sees to it that none outlives its test."""
    begun: list[Victim] = []

    def begin_one(what: str, context: Context, snapshot: TableSnapshot) -> Victim:
        begun.append(Victim(what, context, snapshot))
        return begun[-1]

    yield begin_one
    for victim in begun:
        if victim.process.poll() is None:
            victim.kill()


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _lives(process: psutil.Process) -> bool:
    """Whether a process runs; who started it may leave what is left of it for long."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def until(victim: Victim, come: Callable[[], object]) -> None:
    """Wait for what is to come while the victim works."""
    deadline = time.monotonic() + 1_200
    while not come():
        assert victim.process.poll() is None, victim.process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def shared_context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One store for all trainings, with a training set."""
    url = f"file://{tmp_path_factory.mktemp('shared_context')}"
    context = Context(store=open_store(url), store_url=url, actor="ada")
    assert Table(context.store, TRAINING.name).append(examples(2_000)) == TRAINING
    return context


@pytest.fixture(scope="module")
def undisturbed(shared_context: Context) -> tuple[dict[str, float], dict[int, float]]:
    """The metrics and the loss curve of a training that nobody disturbed."""
    victim = Victim("train", shared_context, TRAINING)
    try:
        done = victim.result()
    finally:
        if victim.process.poll() is None:
            victim.kill()
    return done["metrics"], curve(shared_context, done["run_id"])


def curve(context: Context, run: str) -> dict[int, float]:
    """Losses of the rows held out, by epoch; of an epoch that was trained twice the last."""
    return {point.step: point.value for point in context.registry().get_run(run).series("valid_loss")}


def saved_epochs(context: Context) -> int:
    """Checkpoints that count, one after each epoch, of the training under way."""
    return sum("/journal/" in key for key in context.store.list("checkpoints/"))


def runs(context: Context) -> set[str]:
    """Trainings so far, one for each process that began one."""
    return {run.id for run in context.registry().search_runs("late", "tags.kind = 'training'")}


def repeated_epochs(context: Context, these: set[str]) -> int:
    """Count how often an epoch that had ended was trained again; one that was only told of again took as long to the microsecond."""
    registry = context.registry()
    took = {(point.step, point.value) for run in these for point in registry.get_run(run).series("epoch_s")}
    return len(took) - len({step for step, _ in took})


def saved_steps(context: Context) -> list[int]:
    """Steps after which the training under way was saved, in the order of its journal."""
    (folder,) = {key.split("/")[1] for key in context.store.list("checkpoints/")}
    journal = Journal(context.store, f"checkpoints/{folder}/journal", actor="test")
    return [journal.entry(number).body["kept"][-1]["step"] for number in range(saved_epochs(context))]


def train_under_kills(
    context: Context,
    begin: Callable[..., Victim],
    undisturbed: tuple[dict[str, float], dict[int, float]],
    kills: list[str],
    seed: int,
) -> None:
    """Kill a training at random moments, each after a checkpoint more than at the kill before; it ends as the undisturbed one."""
    chance, before, versions = (
        random.Random(seed),
        runs(context),
        len(context.registry().list_versions("late")),
    )
    victim, saved = begin("train", context, TRAINING), 0
    for number, what in enumerate(kills):
        until(victim, lambda saved=saved: saved_epochs(context) > saved)
        time.sleep(chance.random() * 0.3)  # somewhere in the epochs that follow
        until(victim, lambda victim=victim: len(victim.workers()) == 2)
        steps = saved_steps(context)
        assert steps == sorted(set(steps))  # what was saved once is not trained again
        assert repeated_epochs(context, runs(context) - before) <= number  # an interval a kill at most
        if what in {"head", "cluster"}:
            victim.lose_head() if what == "head" else victim.kill()
            victim = begin("train", context, TRAINING)
        else:
            for worker in chance.sample(victim.workers(), 1 if what == "one worker" else 2):
                _kill(worker)
        saved = saved_epochs(context)
    ended = victim.result()
    losses = curve(context, ended["run_id"])
    furthest = max(abs(loss - undisturbed[1][epoch]) for epoch, loss in losses.items())
    repeated = repeated_epochs(context, runs(context) - before)
    sys.stdout.write(f"{kills}: losses differ by {furthest:.1e} at most, {repeated} epochs were repeated\n")
    assert losses == pytest.approx(undisturbed[1], abs=1e-4)
    for loss in ("log_loss", "brier"):  # the calibration error jumps where a row changes its bin
        assert ended["metrics"][loss] == pytest.approx(undisturbed[0][loss], abs=1e-4)
    assert repeated <= len(kills)
    assert ended["version"] == versions + 1 == len(context.registry().list_versions("late"))
    assert list(context.store.list("checkpoints/")) == []


@pytest.mark.proof
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("number", range(TRAININGS))
def test_trainings_killed_five_times_at_random_moments_end_as_an_undisturbed_one(
    shared_context: Context,
    begin: Callable[..., Victim],
    undisturbed: tuple[dict[str, float], dict[int, float]],
    number: int,
) -> None:
    kills = KILLS[number:] + KILLS[:number]  # no more than two of workers in a row, which Ray Train outlasts
    train_under_kills(shared_context, begin, undisturbed, kills, seed=number)


@pytest.mark.proof
@pytest.mark.parametrize("where", ["here", "ray"])
def test_all_flights_are_scored_once_though_all_was_killed_twice(
    context: Context, begin: Callable[..., Victim], where: str
) -> None:
    flights = data.flights().to_arrow()
    every = flights.select(["distance", "carrier", "origin", "dest", "flight_id"])
    late = np.nan_to_num(flights["arr_delay"].to_numpy(), nan=99.0) > 15
    snapshot = Table(context.store, "flights").append(every.append_column("late", [late.astype(float)]))
    train_tabular(
        "late",
        snapshot,
        label="late",
        numeric=["distance"],
        categorical=["carrier", "origin", "dest"],
        params=FAST.model_copy(update={"split": "random", "epochs": 1}),
    )
    out = Table(context.store, "batch/late")

    def scored() -> int:
        return out.read(columns=["row"]).num_rows if out.exists() else 0

    def commits() -> int:
        return out.version() if out.exists() else 0  # quicker than to read the rows: the victim does not wait

    for shards in (3, 8):
        victim = begin(f"batch {where}", context, snapshot)
        until(victim, lambda shards=shards: commits() >= shards)
        victim.kill()
    before = scored()
    assert 3 * SHARD_ROWS <= before < 336_776
    done = begin(f"batch {where}", context, snapshot).result()
    assert (done["where"], done["rows"], done["rows_scored"]) == (where, 336_776, 336_776 - before)
    rows = np.sort(out.read(columns=["row"])["row"].to_numpy())
    np.testing.assert_array_equal(rows, np.arange(336_776))
