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
from functions import Context
from functions.training import train_tabular
from registry import Table, TableSnapshot, open_store
from tests.functions.training.tabular_setup import FAST, examples
from tests.functions.training.victim import LONG, SHARD_ROWS

pytestmark = [pytest.mark.ray, pytest.mark.proof]

KILLS = ["one worker", "all workers", "head", "cluster"] * 5
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
        psutil.wait_procs(head, timeout=60)
        for one in (psutil.Process(self.process.pid), *family):
            _kill(one)
        psutil.wait_procs(family, timeout=60)
        self.process.communicate()

    def result(self) -> dict[str, Any]:
        """What it says at its end."""
        said, _ = self.process.communicate(timeout=600)
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


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def until(victim: Victim, come: Callable[[], object]) -> None:
    """Wait for what is to come while the victim works."""
    deadline = time.monotonic() + 300
    while not come():
        assert victim.process.poll() is None, victim.process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def shared_context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One store for all trainings, with a training set."""
    url = f"file://{tmp_path_factory.mktemp('shared_context')}"
    context = Context(store=open_store(url), store_url=url, actor="ada")
    assert Table(context.store, TRAINING.name).append(examples(8_000)) == TRAINING
    return context


@pytest.fixture(scope="module")
def undisturbed(shared_context: Context) -> tuple[dict[str, float], dict[int, float]]:
    """The metrics and the loss curve of a training that nobody disturbed."""
    done = Victim("train", shared_context, TRAINING).result()
    return done["metrics"], curve(shared_context, done["run_id"])


def curve(context: Context, run: str) -> dict[int, float]:
    """Losses of the rows held out, by epoch; of an epoch that was trained twice the last."""
    return {point.step: point.value for point in context.registry().get_run(run).series("valid_loss")}


def saved_epochs(context: Context) -> int:
    """Checkpoints that count, one after each epoch, of the training under way."""
    return sum("/journal/" in key for key in context.store.list("checkpoints/"))


@pytest.mark.parametrize(("number", "what"), list(enumerate(KILLS)))
def test_twenty_trainings_killed_at_random_moments_end_as_an_undisturbed_one(
    shared_context: Context,
    begin: Callable[..., Victim],
    undisturbed: tuple[dict[str, float], dict[int, float]],
    number: int,
    what: str,
) -> None:
    chance = random.Random(number)
    epoch, moment = chance.randrange(LONG.epochs_and_patience[0] - 2), chance.random()
    versions = len(shared_context.registry().list_versions("late"))
    victim = begin("train", shared_context, TRAINING)

    until(victim, lambda: saved_epochs(shared_context) > epoch)
    time.sleep(moment * 0.5)  # somewhere in the epochs that follow
    workers = victim.workers()
    assert len(workers) == 2
    if what in {"head", "cluster"}:
        victim.lose_head() if what == "head" else victim.kill()
        victim = begin("train", shared_context, TRAINING)
    else:
        for worker in workers[: 1 if what == "one worker" else 2]:
            _kill(worker)
    ended = victim.result()
    assert curve(shared_context, ended["run_id"]) == pytest.approx(undisturbed[1], abs=1e-4)
    for loss in ("log_loss", "brier"):  # the calibration error jumps where a row changes its bin
        assert ended["metrics"][loss] == pytest.approx(undisturbed[0][loss], abs=1e-4)
    assert ended["version"] == versions + 1 == len(shared_context.registry().list_versions("late"))
    assert list(shared_context.store.list("checkpoints/")) == []


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
