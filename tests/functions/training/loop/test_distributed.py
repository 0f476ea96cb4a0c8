"""A worker's part, in a group of one, and what becomes of its error; groups of several are in test_on_ray.py."""

from types import SimpleNamespace

import pytest
import ray.train.torch
import torch.distributed

from functions.training import TrainingDiverged, TrainingError
from functions.training.checkpoints import Checkpoints
from functions.training.loop import distributed as kitchen_group
from functions.training.loop.distributed import Workers, work_on_cluster
from functions.training.tabular.fitting import fit, prepare
from functions.training.tabular.job import Order, TabularJob
from registry import Table
from tests.functions.training.kitchen import COLUMNS, FAST, examples


@pytest.fixture
def group(tmp_path, monkeypatch):
    monkeypatch.setattr(kitchen_group, "step_back", lambda: None)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def job(kitchen, snapshot, params):
    run = kitchen.registry().start_run("late")
    checkpoints = Checkpoints.of(kitchen.store, {})
    return TabularJob(
        run, Order("late", snapshot, COLUMNS, params), Table(kitchen.store, snapshot.name), checkpoints
    )


def worked(work):
    return kitchen_group._work({"job": work, "workers": Workers()})


def test_a_group_of_one_learns_what_one_learns(kitchen, training_set, group):
    work = job(kitchen, training_set, FAST)
    done = worked(work)
    assert done.spent.cpu_s > 0
    assert (done.spent.gpu_s, done.spent.energy_j) == (0, 0)
    assert done.made.metrics["log_loss"] == pytest.approx(
        fit(prepare(examples(), COLUMNS, FAST), FAST).metrics["log_loss"], abs=1e-5
    )
    assert [point.step for point in work.run.series("train_loss")] == [0, 1, 2, 3]
    work.run.finish()


def test_a_worker_returns_the_error_that_another_try_would_only_meet_again(kitchen, training_set, group):
    work = job(kitchen, training_set, FAST.model_copy(update={"lr": 1e30}))
    error = worked(work)
    assert isinstance(error, TrainingDiverged)
    assert "loss of epoch 0" in str(error)
    work.run.finish()


@pytest.mark.parametrize(
    ("returned", "error", "says"),
    [
        (TrainingDiverged("nan"), TrainingDiverged, "nan"),
        (None, TrainingError, "returned NoneType, not a model"),
    ],
)
def test_what_the_workers_return_is_raised_if_it_is_no_model(
    kitchen, training_set, monkeypatch, returned, error, says
):
    ended = SimpleNamespace(fit=lambda: SimpleNamespace(return_value=returned))
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", lambda *_, **__: ended)
    monkeypatch.setattr(kitchen_group, "_require_room", lambda _: None)
    work = job(kitchen, training_set, FAST)
    with pytest.raises(error, match=says):
        work_on_cluster(work, Workers(2))
    work.run.finish()
