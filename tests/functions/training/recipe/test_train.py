"""A network of a user's own, trained in this process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import AnyUrl

from tests.functions.training.recipes import FAST, RECIPES, trainer
from toque.functions import Preempted, use_context
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.workflow import Run, ask_to_yield, use_run
from toque.functions.runtime.receipt import Prices
from toque.functions.training import (
    TrainingDataError,
    TrainingDiverged,
    TrainingError,
    load,
    train_recipe,
)
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import train
from toque.functions.training.recipe.train import recipe_of

PROJECT = "tests.functions.training.recipes"


@pytest.fixture
def project(context):
    with use_context(replace(context, project=PROJECT)) as with_project:
        yield with_project


def test_a_recipe_learns_and_its_registered_version_answers_as_the_network(project, tmp_path):
    trained = train_recipe("sums", "sums", options={"width": 6}, params=FAST)
    assert trained.metrics["valid_loss"] < 0.2  # the sums' variance is 2
    registry = project.registry()
    run = registry.get_run(trained.run_id)
    assert [point.step for point in run.series("numbers_per_s")] == [0, 1, 2, 3]
    record = run.record()
    assert (record.params["width"], record.params["lr"], record.tags["data"]) == ("6", "0.03", "sums:1.0")
    version = registry.get_version("sums", trained.version)
    assert (version.tags["kind"], version.lineage.run) == ("recipe", trained.run_id)
    registry.download("sums", trained.version, to=tmp_path / "got")
    x = np.array([[1.0, 2.0, 9.0], [-1.0, 1.0, 0.0], [0.5, 0.0, 0.0]], dtype=np.float32)
    answers = load(tmp_path / "got").predict({"x": x})["sum"][:, 0]
    assert answers == pytest.approx([3.0, 0.0, 0.5], abs=1.0)
    assert list(project.store.list("checkpoints/")) == []


def test_an_interrupted_training_ends_as_an_undisturbed_one(project):
    checkpoints = Checkpoints.of(project.store, {})
    undisturbed = trainer()
    train(undisturbed, SingleProcess())
    for cut in (0, 2):  # goes on once and again
        part, keeper = trainer(), Keeper(SingleProcess(), checkpoints)
        keeper.resume(part)
        while len(part.epochs) <= cut:
            keeper.save(part, loss=part.run_epoch().valid_loss)
        keeper.wait()
    resumed = trainer()
    train(resumed, SingleProcess(), keeper=Keeper(SingleProcess(), checkpoints))
    assert [epoch.valid_loss for epoch in resumed.epochs] == [
        epoch.valid_loss for epoch in undisturbed.epochs
    ]
    wanted = undisturbed.net.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.net.state_dict().items())


def test_a_training_that_the_queue_asks_to_yield_saves_ends_and_takes_up_after_it(project):
    ledger = Ledger(project.store, actor="ada")
    followed = ledger.follow(train_recipe.submit("sums", "sums", params=FAST).id)
    followed.append(lambda _: {"kind": "started", "worker": "w", "lease_s": 15.0, "digest": "d"})
    assert ask_to_yield(followed, "a more urgent one")
    with (
        use_run(Run(ledger, followed, "w")),
        pytest.raises(Preempted, match="saved after step 1; start the training again"),
    ):
        train_recipe("sums", "sums", params=FAST)
    assert list(project.store.list("checkpoints/")) != []
    resumed, undisturbed = (train_recipe("sums", "sums", params=FAST) for _ in range(2))
    assert resumed.metrics == undisturbed.metrics


def test_cost_is_logged_in_the_run_with_money_if_prices_are_set(project):
    free = train_recipe("sums", "sums", params=FAST)
    assert free.cost is not None
    assert (free.cost.money, free.cost.currency, free.cost.gpu_hours, free.cost.energy_kwh) == (
        None,
        None,
        0,
        None,
    )
    with use_context(replace(project, prices=Prices(currency="EUR", cpu_hour=7.2, gpu_hour=100))):
        trained = train_recipe("sums", "sums", params=FAST)
    record = project.registry().get_run(trained.run_id).record()
    assert record.tags["currency"] == "EUR"
    assert record.metrics["cpu_hours"] > 0
    assert record.metrics["money"] == pytest.approx(record.metrics["cpu_hours"] * 7.2)


def test_a_training_that_fails_logs_its_cost_and_registers_nothing(project):
    with pytest.raises(TrainingDiverged, match=r"loss of epoch 0 is (nan|inf)"):
        train_recipe("sums", "sums", options={"scale": float("inf")}, params=FAST)
    registry = project.registry()
    (record,) = [run.record() if hasattr(run, "record") else run for run in registry.search_runs("sums")]
    assert record.status == "FAILED"
    assert record.metrics["cpu_hours"] > 0
    assert list(project.store.list("models/")) == []


def test_gradients_are_clipped_and_half_precision_learns_too():
    loose, tight = trainer(), trainer(FAST.model_copy(update={"clip": 1e-12}))
    before = tight.net.state_dict()["last.weight"].clone()
    for each in (loose, tight):
        each.run_epoch()
    moved = [float((each.net.state_dict()["last.weight"] - before).abs().max()) for each in (loose, tight)]
    assert moved[1] < moved[0] / 10  # AdamW's step is the gradient's by its size and eps = 1e-8
    half = trainer(FAST.model_copy(update={"precision": "bf16"}))
    losses = [half.run_epoch().valid_loss for _ in range(4)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("project_name", "name", "options", "says"),
    [
        (None, "sums", {}, "which project's"),
        (PROJECT, "products", {}, r"no recipe 'products'.*\['sums'\]"),
        ("toque.functions", "sums", {}, r"no recipe 'sums' in toque.functions.RECIPES, which has \[\]"),
        (PROJECT, "sums", {"depth": 3}, r"options=\{'depth': 3\} do not fit recipe 'sums'"),
    ],
)
def test_an_unknown_recipe_is_named_in_the_error(project_name, name, options, says):
    with pytest.raises(TrainingDataError, match=says):
        recipe_of(project_name, name, options)


def test_an_option_that_is_a_path_is_the_projects_to_set(monkeypatch):
    class Rows(RECIPES["sums"]):
        file: Path = Path("rows.bin")
        mirror: AnyUrl | None = None

    monkeypatch.setitem(RECIPES, "rows", Rows)
    assert recipe_of(PROJECT, "rows", {"width": 3}).file == Path("rows.bin")
    for options in ({"file": "/etc/passwd"}, {"width": 3, "mirror": "http://10.0.0.1/"}):
        with pytest.raises(
            TrainingDataError, match="a caller may not choose; set its default in the project"
        ):
            recipe_of(PROJECT, "rows", options)


def test_a_recipe_is_found_with_its_options():
    assert recipe_of(PROJECT, "sums", {"width": 3}) == RECIPES["sums"](width=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_and_sharding_for_one_worker_are_refused(project):
    with pytest.raises(TrainingError, match="torch finds no GPU here"):
        train_recipe("sums", "sums", params=FAST, worker_gpus=1)
    with pytest.raises(TrainingError, match="one worker holds all of it"):
        train_recipe("sums", "sums", params=FAST, sharding="shard")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_recipe_learns_on_a_gpu_what_it_learns_on_the_cpu(project):
    here = train_recipe("sums", "sums", params=FAST)
    there = train_recipe("sums", "sums", params=FAST, worker_gpus=1)
    assert there.metrics["valid_loss"] == pytest.approx(here.metrics["valid_loss"], abs=1e-2)
    assert there.cost is not None
    assert there.cost.gpu_hours > 0
