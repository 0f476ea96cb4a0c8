"""Sweeps over any trainer: poor trials end at a rung, ended ones are not repeated, several objectives give a front."""

import threading
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from tests.functions.training.projects import project_of
from tests.functions.training.test_trainers import SPLIT, definition, late, own
from toque.functions.runtime.receipt import Prices
from toque.functions.training import (
    FunctionTrainer,
    LightGBM,
    TrainingDataError,
    TrainingError,
    XGBoost,
    train_model,
)
from toque.functions.training.llm import FineTune
from toque.functions.tuning import Choice, Limits, Range, tune_model, tune_tabular
from toque.functions.tuning import model as sweeps
from toque.functions.tuning.asha import Rungs, RungWatch
from toque.registry import Registry, Table

SPACE = {"max_depth": Range(low=2, high=6, integer=True), "lr": Range(low=0.02, high=0.5, log=True)}


def runs_of(context, kind):
    return context.registry().search_runs("m-sweep", f"tags.kind = '{kind}'")


def test_a_sweep_over_xgboost_is_no_worse_than_the_declared_parameters(monkeypatch, context):
    training = Table(context.store, "training").append(late())
    with project_of(
        monkeypatch, context, definition(XGBoost(rounds=20, lr=0.02, early_stopping=20, **SPLIT))
    ):
        sweep = tune_model("m", training, SPACE, num_samples=5, concurrency=1)
        assert sweep.trials[0].parameters == {}
        assert sweep.best_loss <= sweep.trials[0].loss
        assert sweep.best_loss == min(each.loss for each in sweep.trials if not each.stopped)
        trained = train_model("m", training, parameters=sweep.best_parameters)
    assert trained.metrics["valid_loss"] == pytest.approx(sweep.best_loss)
    assert len(runs_of(context, "trial")) == 5
    assert context.registry().get_run(sweep.run_id).record().tags["best_run"] == sweep.best_run


def staged(request):
    """Report the declared losses one after the other, then write a model."""
    for step in range(16):
        request.report(step, {"valid_loss": request.parameters["loss"] + 1 / (step + 1)})
    return own(request)


def test_what_others_beat_ends_at_its_rung_and_an_ended_trial_is_not_repeated(monkeypatch, context):
    training = Table(context.store, "training").append(late())
    losses = {"loss": Choice(choices=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])}
    trainer = FunctionTrainer(function=staged, values={"loss": 1.0, "c": 1.0}, **SPLIT)
    with project_of(monkeypatch, context, definition(trainer)):
        sweep = tune_model("m", training, losses, search="grid", concurrency=1)
        again = tune_model("m", training, losses, search="grid", concurrency=1)
    assert [each.steps for each in sweep.trials] == [16, 16, 16, 4, 4, 4]  # of three no rung can judge
    assert "did better" in sweep.trials[5].stopped
    assert sweep.best_parameters == {}
    assert [each.run_id for each in again.trials] == [each.run_id for each in sweep.trials]
    assert not list(context.store.list("sweeps/"))


def test_two_objectives_have_a_front(monkeypatch, context):
    training = Table(context.store, "training").append(late())
    space = {"leaves": Choice(choices=[3, 15, 63])}
    with project_of(monkeypatch, context, definition(LightGBM(rounds=3, leaves=2, **SPLIT))):
        goals = {"auc": "max", "size_bytes": "min"}
        sweep = tune_model("m", training, space, search="grid", concurrency=1, objectives=goals)
        with pytest.raises(TrainingError, match=r"they have .*auc"):
            tune_model("m", training, space, search="grid", objectives={"acu": "max"}, seed=1)
    front = {number: sweep.trials[number].metrics for number in sweep.front}
    smallest = min(range(4), key=lambda number: sweep.trials[number].metrics["size_bytes"])
    assert smallest in front
    best = next(each for each in sweep.trials if each.parameters == sweep.best_parameters)
    assert best.metrics["auc"] == max(each.metrics["auc"] for each in sweep.trials)


def test_a_failed_trial_does_not_stop_the_others(monkeypatch, context):
    def sometimes(request):
        if request.parameters["c"] > 1:
            raise ValueError("c is too large")
        return own(request)

    training = Table(context.store, "training").append(late())
    trainer = FunctionTrainer(function=sometimes, values={"c": 1.0}, **SPLIT)
    with project_of(monkeypatch, context, definition(trainer)):
        sweep = tune_model(
            "m", training, {"c": Choice(choices=[1.0, 2.0, 0.5])}, search="grid", concurrency=1
        )
    assert ["too large" in each.error for each in sweep.trials] == [False, True, False]


def test_a_space_names_parameters_of_the_trainer(monkeypatch, context):
    training = Table(context.store, "training").append(late())
    with project_of(monkeypatch, context, definition(XGBoost(**SPLIT))):
        for space in ({"depth": Choice(choices=[1])}, {"split": Choice(choices=["time"])}):
            with pytest.raises(TrainingDataError, match=r"cannot be tuned; choose from .*max_depth"):
                tune_model("m", training, space)


def test_optuna_and_limits(monkeypatch, context):
    training = Table(context.store, "training").append(late())
    with project_of(monkeypatch, context, definition(XGBoost(rounds=4, **SPLIT))):
        sweep = tune_model("m", training, SPACE, num_samples=5, search="optuna", concurrency=1)
        assert len(sweep.trials) == 5
        short = tune_model(
            "m", training, SPACE, num_samples=4, limits=Limits(cpu_hours=1e-9), seed=1, concurrency=1
        )
    assert (len(short.trials), short.stopped) == (1, "limits.cpu_hours=1e-09 reached")


def test_a_rung_judges_once_four_trials_have_reached_it(context):
    rungs = Rungs(context.store, "sweeps/x/")
    assert [bool(rungs.reach(trial, 4, loss)) for trial, loss in enumerate([3.0, 2.0, 4.0, 2.5, 1.0])] == [
        *[False] * 3, True, False,
    ]  # fmt: skip
    assert rungs.reach(7, 4, float("nan"))


@pytest.mark.parametrize("slow", [0, 1, 2])  # whichever place the trial has that ends last
@pytest.mark.parametrize("fails", [False, True])
def test_no_place_stands_empty_beside_a_slow_trial(monkeypatch, slow, fails):
    ends, others = Future(), []

    def start(number, **_: object):
        if number == slow:
            return ends
        others.append(number)
        if len(others) == 11:  # all others have begun though the slow one goes on
            assert not ends.done()
            threading.Timer(0.2, ends.set_result, [sweeps.ModelTrial(loss=0.0)]).start()
        quick = Future()
        if fails:
            quick.set_exception(ValueError("c is too large"))
        else:
            quick.set_result(sweeps.ModelTrial(loss=float(number)))
        return quick

    monkeypatch.setattr(sweeps, "train_trial", SimpleNamespace(remote=start))
    trials = sweeps._run_trials([(number, {}) for number in range(12)], {}, 3)
    assert sorted(trials) == [*range(12)]
    assert trials[slow].loss == 0.0
    assert ["too large" in trials[number].error for number in others] == [fails] * 11


@pytest.mark.parametrize(("epochs", "compared"), [(1, []), (2, [1]), (3, [1]), (5, [1, 4])])
def test_trials_of_a_fine_tune_are_compared_after_its_first_epoch(context, epochs, compared):
    trainer = FineTune(base="base@1").with_parameters({"epochs": epochs})
    watch = RungWatch(Rungs(context.store, "sweeps/x/"), 1, trainer.first_rung)
    for epoch in range(epochs):
        watch(epoch, {"valid_loss": 1.0})
    assert [*context.store.list("sweeps/x/")] == [f"sweeps/x/{rung:06d}/000001" for rung in compared]


PRICES = Prices(currency="EUR", cpu_hour=1.0, gpu_hour=1.0)


@pytest.mark.parametrize("search", ["random", "grid", "optuna"])
def test_a_limit_of_money_needs_prices(monkeypatch, context, search):
    training = Table(context.store, "training").append(late())
    limits = Limits(money=1e-9)
    needs = pytest.raises(TrainingError, match=r"limits\.money=1e-09 needs prices")
    with project_of(monkeypatch, context, definition(XGBoost(rounds=2, **SPLIT))), needs:
        tune_model("m", training, {"lr": Choice(choices=[0.1, 0.2])}, search=search, limits=limits)
    assert runs_of(context, "trial") == []


@pytest.mark.parametrize("limits", [Limits(cpu_hours=1e-9), Limits(money=1e-9)])
@pytest.mark.parametrize("search", ["random", "grid", "optuna"])
def test_a_failed_trial_counts_against_the_limits(monkeypatch, context, search, limits):
    def fails(request):
        raise ValueError(f"c={request.parameters['c']} is no good")

    training = Table(context.store, "training").append(late())
    trainer = FunctionTrainer(function=fails, values={"c": 1.0}, **SPLIT)
    space = {"c": Choice(choices=[2.0, 3.0, 4.0])}
    with project_of(monkeypatch, replace(context, prices=PRICES), definition(trainer)):
        for _ in range(2):  # what the first call used counts in the second, too
            with pytest.raises(TrainingError, match=r"none of [01] trials"):
                tune_model("m", training, space, search=search, limits=limits, concurrency=1)
            (failed,) = runs_of(context, "trial")
            assert failed.status == "FAILED"


def test_all_trials_of_a_sweep_are_counted_however_many_a_search_finds(monkeypatch, context):
    def fails(request):
        raise ValueError("no good")

    training = Table(context.store, "training").append(late())
    trainer = FunctionTrainer(function=fails, values={"c": 1.0}, **SPLIT)
    space = {"c": Choice(choices=[2.0, 3.0, 4.0])}
    with project_of(monkeypatch, context, definition(trainer)):
        with pytest.raises(TrainingError, match="none of 4 trials"):
            tune_model("m", training, space, search="grid", concurrency=1)
        key = runs_of(context, "trial")[0].tags["sweep_key"]
        monkeypatch.setitem(Registry.search_runs.__kwdefaults__, "limit", 2)
        assert len(sweeps._trial_runs("m-sweep", key, "attributes.status = 'FAILED'")) == 4


@pytest.mark.parametrize(
    "tune", [tune_model, partial(tune_tabular, label="y", numeric=["a"], categorical=[])]
)
@pytest.mark.parametrize("num_samples", [1, 3, 100])
def test_a_grid_is_asked_for_no_number_of_trials(monkeypatch, context, tune, num_samples):
    training, space = Table(context.store, "training").append(late()), {"lr": Choice(choices=[0.1])}
    refused = pytest.raises(TrainingDataError, match=f"num_samples={num_samples} with search='grid'")
    with project_of(monkeypatch, context, definition(XGBoost(rounds=2, **SPLIT))), refused:
        tune("m", training, space=space, search="grid", num_samples=num_samples)
    assert runs_of(context, "sweep") == []
