"""Batch inference by a pool of actors: the rows of the small way, once each, whoever dies, and none in the caller."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray._private.state import actors

from tests.functions.training.tabular_setup import FAST, NAMES, examples
from tests.memory import own_memory
from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import ShardWork, predict_batch
from toque.functions.training import train_tabular
from toque.registry import Table, TableSnapshot, open_store

pytestmark = pytest.mark.ray
OPTIONS = {"shard_rows": 100, "keep": ["carrier"]}
PADS = [f"x{number}" for number in range(12)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    url = f"file://{tmp_path_factory.mktemp('batch')}"
    context = Context(store=open_store(url), store_url=url, actor="ada")
    with use_context(context):
        train_tabular("late", Table(context.store, "training").append(examples()), **NAMES, params=FAST)
    return context


@pytest.fixture
def store(trained):
    with use_context(trained):
        yield trained.store


@pytest.fixture(scope="module")
def here(trained: Context) -> tuple[TableSnapshot, pa.Table]:
    """A table, and what this process alone makes of it."""
    assert not ray.is_initialized()
    with use_context(trained):
        snapshot = Table(trained.store, "many").append(examples(10_000, seed=7))
        done = predict_batch("late", snapshot, version=1, **OPTIONS, output="here")
    assert done.where == "here"
    return snapshot, rows_of(trained.store, "here")


@pytest.fixture(scope="module")
def cluster(here: object) -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def wide(store, name: str, rows: int) -> TableSnapshot:
    for at in range(0, rows, 60_000):
        piece = examples(min(60_000, rows - at), seed=at)
        for pad in PADS:
            piece = piece.append_column(pad, pa.array(np.random.default_rng(at).random(piece.num_rows)))
        snapshot = Table(store, name).append(piece)
    return snapshot


def rows_of(store, name: str) -> pa.Table:
    return Table(store, name).read().sort_by("row")


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_the_pool_gives_the_rows_of_the_small_way_though_an_actor_is_killed(trained, here):
    snapshot, expected = here
    done = []

    def score():
        with use_context(trained):
            done.append(predict_batch("late", snapshot, version=1, **OPTIONS, output="ray"))

    scoring = threading.Thread(target=score)
    scoring.start()
    kill_a_scorer(once=Table(trained.store, "ray").exists)
    scoring.join(250)
    assert (done[0].where, done[0].rows) == ("ray", 10_000)
    assert rows_of(trained.store, "ray").equals(expected)


@pytest.mark.usefixtures("cluster")
def test_a_single_shard_is_scored_without_a_pool(store, here):
    snapshot, _ = here
    done = predict_batch("late", snapshot, version=1, shard_rows=10_000, output="single")
    assert (done.where, done.rows_scored) == ("here", 10_000)


def kill_a_scorer(once) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        found = [a["Pid"] for a in actors().values() if a["State"] == "ALIVE" and "Pool" in repr(a)]
        if found and once():
            os.kill(found[0], signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError("no actor scored anything")


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_what_the_caller_holds_does_not_grow_with_the_rows(store):
    grown = []
    for rows in (20_000, 180_000):
        snapshot = wide(store, f"wide-{rows}", rows)
        with own_memory() as peak:
            predict_batch("late", snapshot, version=1, keep=PADS, output=f"out-{rows}", max_actors=1)
        grown.append(max(peak))
        assert Table(store, f"out-{rows}").dataset().count_rows() == rows
    more_bytes = 160_000 * len(PADS) * 8
    assert grown[1] - grown[0] < more_bytes / 2, grown  # held whole it is several times those bytes


def test_runs_of_shards_are_neighbours_that_are_still_to_do(store):
    class Target:
        def transactions(self, ids):
            return {app_id for app_id, done in zip(ids, [0, 0, 1, 0, 0, 0, 0, 1, 0, 0], strict=True) if done}

    class Job:
        shard_rows = 10

        def app_id(self, shard: int) -> str:
            return str(shard)

    work = ShardWork(None, Job(), Target(), 95)  # type: ignore[arg-type]
    assert work.pending(workers=1) == [range(2), range(3, 5), range(5, 7), range(8, 10)]
    assert work.pending(workers=9)[0] == range(1)
