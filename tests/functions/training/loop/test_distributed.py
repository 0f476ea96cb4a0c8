"""Training in a process group of one worker, and how its errors return; groups of several are in test_on_ray.py."""

from types import SimpleNamespace

import pytest
import ray.train.torch
import torch.distributed

from tests.functions.training.tabular_setup import COLUMNS, FAST, examples
from toque.functions.training import TrainingDiverged, TrainingError
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop import distributed
from toque.functions.training.loop.distributed import WorkerLoop, run_on_cluster
from toque.functions.training.request import Workers
from toque.functions.training.tabular.fitting import fit, prepare
from toque.functions.training.tabular.job import TabularJob, TabularWork
from toque.registry import Table


@pytest.fixture
def group(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "lower_priority", lambda: None)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)  # which asks Ray Train's controller
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def worker_loop(context, snapshot, params):
    run = context.registry().start_run("late")
    checkpoints = Checkpoints.of(context.store, {})
    job = TabularJob("late", snapshot, COLUMNS, params)
    return WorkerLoop(run, TabularWork(job, Table(context.store, snapshot.name)), checkpoints)


def run_worker(loop, context):
    given = {
        "missing": 0, "avoided": frozenset(), "lasting_s": 60.0, "context": context, "trace": None,
    }  # fmt: skip
    return distributed._work({"loop": loop, "workers": Workers(), **given})


def test_a_group_of_one_worker_learns_what_a_single_process_learns(context, training_set, group):
    loop = worker_loop(context, training_set, FAST)
    done = run_worker(loop, context)
    assert done.other_processes.cpu_s > 0
    assert (done.other_processes.gpu_s, done.other_processes.energy_j) == (0, 0)
    assert done.result.metrics["log_loss"] == pytest.approx(
        fit(prepare(examples(), COLUMNS, FAST), FAST).metrics["log_loss"], abs=1e-5
    )
    assert [point.step for point in loop.run.series("train_loss")] == [0, 1, 2, 3]
    loop.run.finish()


def test_a_worker_returns_an_error_that_a_restart_would_meet_again(context, training_set, group):
    loop = worker_loop(context, training_set, FAST.model_copy(update={"lr": 1e30}))
    error = run_worker(loop, context)
    assert isinstance(error, TrainingDiverged)
    assert "loss of epoch 0" in str(error)
    loop.run.finish()


@pytest.mark.parametrize(
    ("returned", "error", "says"),
    [
        (TrainingDiverged("nan"), TrainingDiverged, "nan"),
        (None, TrainingError, "returned NoneType, not a model"),
    ],
)
def test_an_error_that_the_workers_return_is_raised(
    context, training_set, monkeypatch, returned, error, says
):
    ended = SimpleNamespace(fit=lambda: SimpleNamespace(return_value=returned))
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", lambda *_, **__: ended)
    monkeypatch.setattr(distributed, "_wait_for_room", lambda workers, _: workers.count)
    loop = worker_loop(context, training_set, FAST)
    with pytest.raises(error, match=says):
        run_on_cluster(loop, Workers(2))
    loop.run.finish()


@pytest.mark.parametrize("least", [0, 3])
def test_fewest_workers_are_of_those_that_are_asked_for(least):
    with pytest.raises(TrainingError, match=f"min_workers={least} and num_workers=2: give 1 to 2, or null"):
        Workers(2, least=least)


def test_slow_workers_are_left_only_where_fewer_may_go_on():
    with pytest.raises(TrainingError, match="slow_workers='leave' with num_workers=2: give min_workers"):
        Workers(2, slow="leave")
    assert Workers(2, least=1, slow="leave").slow == "leave"
