import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from examples.flights_xgboost.loop import take_offs
from tests.functions.training.tabular_setup import COLUMNS, FAST, NAMES, POPULATION, KillsItsWorker, examples
from toque.functions import use_context
from toque.functions.training import train_tabular
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.tabular.fitting import new_trainer, prepare
from toque.functions.tuning import tune_model
from toque.functions.tuning.asha import AshaScheduler
from toque.functions.tuning.jobs import Choice, Exploit, Limits, Range, tune_tabular
from toque.functions.tuning.population import Decision
from toque.functions.tuning.search import LEG, LegSearcher
from toque.functions.tuning.trainable import TabularTraining, TrialResources, run_on_tune
from toque.functions.tuning.trial_states import TrialStates
from toque.registry import Table

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.mark.long
def test_two_workers_learn_what_one_learns_though_one_is_killed(context, training_set, monkeypatch, tmp_path):
    noiseless = FAST.model_copy(update={"dropout": 0.0, "unknown_rate": 0.0})
    one = train_tabular("late", training_set, **NAMES, params=noiseless)
    killed = KillsItsWorker(context.store, "checkpoints/deadly/", mark=tmp_path / "killed")
    monkeypatch.setattr(Checkpoints, "of", lambda *_: killed)
    two = train_tabular("late", training_set, **NAMES, params=noiseless, num_workers=2)
    assert killed.mark.exists()
    # without noise the steps are the same up to float32 sums in another order
    assert two.metrics["log_loss"] == pytest.approx(one.metrics["log_loss"], abs=1e-4)
    run = context.registry().get_run(two.run_id)
    losses = {
        (point.step, point.value) for point in run.series("valid_loss")
    }  # the group after tells of the first again
    assert sorted(step for step, _ in losses) == [0, 1, 2, 3]
    assert context.registry().get_version("late", two.version).lineage.run == two.run_id
    assert list(context.store.list("checkpoints/")) == []


def test_more_workers_than_cpus_are_refused_at_once(context, training_set):
    with pytest.raises(Exception, match=r"num_workers=9 needs 9 × .*which the cluster can never hold"):
        train_tabular("late", training_set, **NAMES, params=FAST, num_workers=9)


def test_every_trial_of_a_sweep_is_a_run_and_a_poor_one_fails_alone(context, training_set):
    space = {"lr": Choice(choices=[1e30]), "dropout": Range(low=0.0, high=0.3)}
    sweep = tune_tabular("late", training_set, **NAMES, params=FAST, space=space, num_samples=3)
    assert [trial.failed for trial in sweep.trials] == [False, True, True]
    assert sweep.best_params == FAST
    assert sweep.best_run == sweep.trials[0].run_id
    registry = context.registry()
    record = registry.get_run(sweep.run_id).record()
    assert (record.status, record.tags["best_run"]) == ("FINISHED", sweep.best_run)
    spent = [registry.get_run(trial.run_id).record().metrics["cpu_hours"] for trial in sweep.trials]
    assert record.metrics["cpu_hours"] > sum(spent) > 0
    for trial in sweep.trials:
        record = registry.get_run(trial.run_id).record()
        assert record.tags["sweep"] == sweep.run_id
        assert record.status == ("FAILED" if trial.failed else "FINISHED")
        assert trial.failed == ("loss of epoch 0" in record.tags.get("error", ""))
    assert registry.get_run(sweep.best_run).record().metrics["best_loss"] == sweep.best_loss


def test_a_sweep_that_was_killed_half_way_repeats_no_finished_trial_and_no_epoch(context, training_set):
    registry = context.registry()
    address = ray.get_runtime_context().gcs_address
    given = ["sweep", context.store_url, training_set.name, str(training_set.version), address]
    victim = subprocess.Popen([sys.executable, "-m", "tests.functions.training.victim", *given])
    ended = "tags.kind = 'trial' AND attributes.status = 'FINISHED'"
    deadline = time.monotonic() + 120
    while len(registry.search_runs("late-sweep", ended)) < 2:  # of the first three, the best one rests
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    finished = registry.search_runs("late-sweep", ended)
    (folder,) = {key[: key.index("/", len("checkpoints/")) + 1] for key in context.store.list("checkpoints/")}
    resting = TrialStates(context.store, folder).members()

    sweep = tune_tabular("late", training_set, **NAMES, params=FAST, num_samples=4, concurrency=1)
    assert len(sweep.trials) == 4
    assert {run.id for run in finished} <= {trial.run_id for trial in sweep.trials}
    for run in finished:
        again = f"tags.kind = 'trial' AND tags.trial = '{run.tags['trial']}'"
        assert [found.id for found in registry.search_runs("late-sweep", again)] == [run.id]
    goes_on = resting.keys() - {int(run.tags["trial"]) for run in finished}
    assert goes_on
    for number in goes_on:
        took = [point.value for point in registry.get_run(sweep.trials[number].run_id).series("epoch_s")]
        before = [epoch["epoch_s"] for epoch in resting[number].metrics]
        assert took[: len(before)] == before  # to the microsecond: none was trained again
    assert sorted(trial.epochs for trial in sweep.trials) == [1, 1, 1, 4]
    assert sweep.best_loss == min(trial.valid_loss for trial in sweep.trials)
    assert list(context.store.list("checkpoints/")) == []


def test_a_stacked_sweep_ends_as_one_by_one_and_refuses_what_cannot_be_stacked(context, training_set):
    space = {"lr": Range(low=1e-3, high=1e-1, log=True)}
    given = {**NAMES, "params": FAST, "space": space, "num_samples": 4}
    stacked = tune_tabular("late", training_set, **given, stack=2)
    assert stacked.best_loss == pytest.approx(tune_tabular("late", training_set, **given).best_loss, rel=1e-4)
    assert max(trial.epochs for trial in stacked.trials) == 4
    record = context.registry().get_run(stacked.run_id).record()
    assert record.metrics["cpu_hours"] > 0
    assert list(context.store.list("checkpoints/")) == []
    with pytest.raises(Exception, match=r"stack=2 with search='random' and \['compiled'\] changed"):
        tune_tabular(
            "late", training_set, **NAMES, params=FAST.model_copy(update={"compiled": True}), stack=2
        )
    with pytest.raises(Exception, match="stack=2 with search='pbt'"):
        tune_tabular("late", training_set, **NAMES, **POPULATION, stack=2)


@dataclass(frozen=True, slots=True)
class Deadly(TabularTraining):
    """Kills its process when it has saved the second epoch of a leg and not reported it, once."""

    mark: Path = Path()

    def results(self, config):
        reports = TabularTraining.results(self, config)
        for epoch, report in enumerate(reports, start=config[LEG].since):
            if epoch == 2 and not self.mark.exists():
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield report


class Reported:
    """Losses that trials reported, and why they failed."""

    def __init__(self) -> None:
        self.losses, self.failed = {}, {}

    def log_epoch(self, number, result):
        self.losses.setdefault(number, []).append(result["valid_loss"])

    def close_trial(self, number):
        """End no run."""

    def fail_trial(self, number, reason):
        self.failed[number] = reason


@pytest.mark.parametrize("size", [1, 2])
def test_a_leg_goes_on_in_another_process_when_its_own_is_killed(context, tmp_path, size):
    prepared, states = prepare(examples(500), COLUMNS, FAST), TrialStates(context.store, "states/")
    training = Deadly(prepared, states, 1, 0.0, stacked=size > 1, mark=tmp_path / "killed")
    points = {0: FAST, 1: FAST.model_copy(update={"lr": 1e-3})}
    reported = Reported()
    searcher = LegSearcher(AshaScheduler(2, {}, ()), points, reported, states.newest, size=size)
    lost = run_on_tune(training, searcher, TrialResources(1, 1.0))
    assert training.mark.exists()
    assert len(lost) == 1
    assert not reported.failed
    trainer = new_trainer(prepared, FAST)
    alone = [trainer.run_epoch().valid_loss for _ in range(4)]
    assert reported.losses[0] == pytest.approx(alone, rel=1e-5)  # each epoch once
    assert len(reported.losses[1]) == 1


def first_decision(store):
    """That of a population after its first epoch, once it is there with all weights that it names."""
    keys, name = set(store.list("checkpoints/")), "decision-000001.json"
    for key in keys:
        if key.endswith(name):
            decision, folder = Decision.model_validate_json(store.get(key)), key.removesuffix(name)
            saved = {f"{folder}{each.weights:04d}/000000.safetensors" for each in decision.members.values()}
            return decision if saved <= keys else None
    return None


@pytest.mark.long
@pytest.mark.timeout(900)  # each member's turn may start a process
def test_a_population_that_was_killed_goes_on_from_its_last_decision(context, training_set):
    address = ray.get_runtime_context().gcs_address
    given = ["population", context.store_url, training_set.name, str(training_set.version), address]
    victim = subprocess.Popen([sys.executable, "-m", "tests.functions.training.victim", *given])
    decision, deadline = None, time.monotonic() + 300
    while decision is None:
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
        decision = first_decision(context.store)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    (first,) = [number for number, member in decision.members.items() if member.exploits]

    sweep = tune_tabular("late", training_set, **NAMES, **POPULATION)
    assert [(trial.failed, trial.epochs) for trial in sweep.trials] == [(False, 3)] * 3
    registry = context.registry()
    for number, trial in enumerate(sweep.trials):
        run = registry.get_run(trial.run_id)
        took = [point.value for point in run.series("epoch_s")]
        member = decision.members[number]
        assert took[0] == member.metrics[0]["epoch_s"]  # to the microsecond: it was not trained again
        assert [Exploit(**each) for each in json.loads(run.record().tags.get("exploits", "[]"))] == list(
            trial.exploits
        )
        assert list(trial.exploits[: len(member.exploits)]) == member.exploits
    taken = sweep.trials[first].exploits[0]
    assert (taken.epoch, taken.params.hidden) == (1, FAST.hidden)
    assert sweep.trials[taken.trial].valid_loss < math.inf
    rates = [point.value for point in registry.get_run(sweep.trials[first].run_id).series("lr")]
    assert rates[0] == taken.params.lr
    assert [sweep.descent[0].begin, sweep.descent[-1].end - 1] == [
        0,
        sweep.trials[sweep.descent[-1].trial].best_epoch,
    ]
    assert (sweep.best_run, sweep.best_params) == (sweep.descent[-1].run_id, sweep.descent[-1].params)
    assert list(context.store.list("checkpoints/")) == []


def test_copy_every_is_refused_outside_a_population(context, training_set):
    with pytest.raises(Exception, match="copy_every=2 with search='random': it is of a population"):
        tune_tabular("late", training_set, **NAMES, params=FAST, copy_every=2)
    with pytest.raises(Exception, match="copy_every=3 and 3 epochs: no trial would ever copy"):
        tune_tabular("late", training_set, **NAMES, **POPULATION | {"copy_every": 3})


def test_a_population_ends_at_its_limit_though_some_members_wait(context, training_set):
    used_up = Limits(cpu_hours=1e-9)
    sweep = tune_tabular("late", training_set, **NAMES, **POPULATION, limits=used_up, concurrency=1)
    assert sweep.stopped == "limits.cpu_hours=1e-09 reached"
    assert [(trial.failed, trial.epochs) for trial in sweep.trials] == [(False, 1)]
    assert [(each.begin, each.end) for each in sweep.descent] == [(0, 1)]
    assert list(context.store.list("checkpoints/")) == []


def test_a_tpe_sweep_tries_the_given_settings_first(context, training_set):
    space = {"lr": Range(low=1e-4, high=1e-1, log=True), "hidden": Choice(choices=[(16,), (32, 16)])}
    sweep = tune_tabular(
        "late", training_set, **NAMES, params=FAST, space=space, search="optuna", num_samples=4
    )
    assert len(sweep.trials) == 4
    assert sweep.trials[0].params == FAST
    assert all(trial.params.hidden in {(16,), (32, 16)} for trial in sweep.trials[1:])
    assert len({trial.params.lr for trial in sweep.trials}) == 4
    assert sweep.best_loss == min(trial.valid_loss for trial in sweep.trials)


def test_a_sweep_over_a_grid_ends_at_its_limit_with_what_it_has(context, training_set):
    space = {"dropout": Choice(choices=[0.0, 0.1, 0.3])}
    with pytest.raises(Exception, match="needs prices: set TOQUE_PRICES"):
        tune_tabular("late", training_set, **NAMES, params=FAST, limits=Limits(money=1))
    sweep = tune_tabular(
        "late",
        training_set,
        **NAMES,
        params=FAST,
        space=space,
        search="grid",
        limits=Limits(cpu_hours=1e-9),
        concurrency=1,
    )
    assert sweep.stopped == "limits.cpu_hours=1e-09 reached"
    assert [(trial.failed, trial.epochs) for trial in sweep.trials] == [(False, 1)]
    record = context.registry().get_run(sweep.run_id).record()
    assert (record.status, record.tags["stopped"]) == ("FINISHED", sweep.stopped)


def test_trials_of_any_trainer_run_in_processes_of_the_cluster_and_none_is_repeated(context):
    """The model is one of the examples, which workers import by its name, as a user's project."""
    rows = pa.concat_tables([take_offs(day) for day in range(4)])
    training = Table(context.store, "training").append(rows)
    space = {"max_depth": Choice(choices=[1, 3])}
    with use_context(replace(context, project="examples.flights_xgboost")):
        sweep = tune_model("flights-xgboost", training, space, search="grid", concurrency=2)
        again = tune_model("flights-xgboost", training, space, search="grid", concurrency=2)
    assert [each.error for each in sweep.trials] == ["", ""]
    assert sweep.best_loss == min(each.loss for each in sweep.trials)
    assert sweep.best_loss < 0.5  # half of what the share of late flights costs
    assert [each.run_id for each in again.trials] == [each.run_id for each in sweep.trials]
