import math
from types import SimpleNamespace

import pytest
import torch
from ray.train._internal.session import _FutureTrainingResult

from tests.functions.training.tabular_setup import COLUMNS, FAST, examples
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.loop.updates import one_cycle
from toque.functions.training.tabular.fitting import new_trainer, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.jobs import Stretch, lineage
from toque.functions.tuning.ray_tune import resume_population, tune_checkpoint
from toque.functions.tuning.space import (
    DEFAULT_SPACE,
    Choice,
    Exploit,
    Range,
    Trial,
    population_points,
    population_space,
)
from toque.functions.tuning.trial_states import Decision, Member, PbtState, Snapshot, TrialFiles

SPACE = {"lr": Range(low=1e-3, high=1e-2, log=True), "batch_size": Choice(choices=[128, 256, 512])}
BASE = TabularParams(lr=2e-3, batch_size=512, epochs=6, patience=6)


@pytest.fixture(scope="module")
def prepared():
    return prepare(examples(), COLUMNS, FAST)


def test_a_trainer_resumes_under_new_settings_with_weights_and_moments_kept(prepared):
    before = new_trainer(prepared, FAST)
    before.run_epoch()
    before.run_epoch()
    settings = {
        "lr": 3e-3,
        "weight_decay": 0.5,
        "dropout": 0.4,
        "batch_size": 64,  # of 112: no more, so that an epoch has 32 steps
        "clip": 0.1,
        "unknown_rate": 0.0,
    }
    after = new_trainer(prepared, FAST.model_copy(update=settings))
    after.resume(*before.state())
    for one, other in zip(before.net.parameters(), after.net.parameters(), strict=True):
        assert torch.equal(one, other)
    kept, taken = (
        before._updates._optimizer.state_dict()["state"],
        after._updates._optimizer.state_dict()["state"],
    )
    assert kept.keys() == taken.keys()
    for number, moments in kept.items():
        assert all(torch.equal(moments[name], taken[number][name]) for name in moments)
    steps = after._steps
    assert steps > before._steps
    weights, biases = after._updates._optimizer.param_groups
    assert weights["lr"] == pytest.approx(3e-3 * one_cycle(2 * steps, 4 * steps))
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.5, 0.0)
    assert [layer.p for layer in after.net.modules() if isinstance(layer, torch.nn.Dropout)] == [0.4]
    assert after.task.unknown_rate == 0.0
    assert after.run_epoch().number == 2
    assert after._updates._schedule.last_epoch == 3 * steps


def test_a_setting_that_needs_another_network_is_refused_by_name():
    with pytest.raises(
        TrainingDataError, match=r"\['hidden'\] cannot be varied; choose from \['batch_size', 'clip'"
    ):
        population_space({"hidden": Choice(choices=[(8,)]), "lr": SPACE["lr"]})
    with pytest.raises(TrainingDataError, match="an empty space cannot be varied"):
        population_space({})
    with pytest.raises(TrainingDataError, match="not allowed"):
        population_space({"dropout": Choice(choices=[0.1, 1.5])})
    with pytest.raises(TrainingDataError, match="num_samples=1: a population needs two"):
        population_points(SPACE, BASE, 1, 0)
    assert population_space(None).keys() == {"lr", "dropout", "weight_decay"} < DEFAULT_SPACE.keys()


class NoRuns:
    """Runs of members in which nothing may be recorded."""

    def record_exploit(self, number, exploit):
        raise AssertionError(number, exploit)

    history, failed_runs = record_exploit, record_exploit


def member(settings=BASE, weights=0, metrics=()):
    return Member(settings=settings, weights=weights, metrics=list(metrics), exploits=[])


def test_new_settings_are_near_the_copied_ones_within_the_space_and_drawn_by_the_seed(context):
    resumed = resume_population(context.store, "p/", 2, [BASE] * 4, {})
    population = resumed.scheduler(SPACE, 0, 2, NoRuns())
    poor, good = (
        SimpleNamespace(config={"point": number, "settings": BASE.model_dump(mode="json") | {"lr": lr}})
        for number, lr in enumerate([1e-3, 9.9e-3])
    )
    rates = set()
    for _ in range(50):
        config, _operations = population._get_new_config(poor, good)
        settings = TabularParams.model_validate(config["settings"])
        assert config["point"] == 0
        assert 1e-3 <= settings.lr <= 1e-2
        assert settings.batch_size in {128, 256, 512}
        assert settings.epochs == BASE.epochs
        rates.add(settings.lr)
    assert {1e-2, 9.9e-3 * 0.8} < rates


def trial(params=BASE, best_epoch=5, exploits=()):
    return Trial(
        run_id="r",
        params=params,
        valid_loss=0.5,
        epochs=6,
        failed=False,
        best_epoch=best_epoch,
        exploits=exploits,
    )


def test_the_winners_weights_are_followed_back_to_their_first_epoch():
    slow, slower = (BASE.model_copy(update={"lr": lr}) for lr in (1e-3, 5e-4))
    copied = Exploit(epoch=4, trial=2, params=slower)
    trials = {
        0: trial(exploits=(Exploit(epoch=2, trial=1, params=BASE), copied)),
        1: trial(),
        2: trial(exploits=(Exploit(epoch=2, trial=1, params=slow), Exploit(epoch=4, trial=1, params=BASE))),
    }
    stretches = [(each.trial, each.begin, each.end, each.params) for each in lineage(trials, 0)]
    assert stretches == [(1, 0, 2, BASE), (2, 2, 4, slow), (0, 4, 6, slower)]
    early = {**trials, 0: trial(best_epoch=1, exploits=trials[0].exploits)}
    assert lineage(early, 0) == [Stretch(trial=0, run_id="r", begin=0, end=2, params=BASE)]
    with pytest.raises(ValueError, match="no best epoch"):
        lineage({0: trial(best_epoch=None)}, 0)


def test_an_interrupted_population_resumes_from_the_last_complete_decision(context, prepared):
    pbt_state = PbtState(context.store, "p/", 2)
    points = [BASE, BASE.model_copy(update={"lr": 5e-3})]
    snapshot = Snapshot(*new_trainer(prepared, FAST).state())
    for epochs in (2, 4, 6):
        for number in range(2):
            pbt_state.save(number, epochs, snapshot)
        members = {0: member(weights=1, metrics=[{"valid_loss": 0.5}]), 1: member()}
        pbt_state.decide(Decision(epoch=epochs, members=members, lost={}))
    assert resume_population(context.store, "p/", 2, points, {}).epoch == 6
    context.store.delete("p/0001/000005.safetensors")  # the last was saved no more
    resumed = resume_population(context.store, "p/", 2, points, {})
    assert (resumed.epoch, resumed.members[0].weights) == (4, 1)
    assert "p/decision-000006.json" not in set(context.store.list("p/"))
    with pytest.raises(TrainingError, match="trial 1 after 2 epochs are gone"):
        pbt_state.load(1, 2)  # two decisions back
    three = [*points, BASE]
    anew = resume_population(context.store, "p/", 2, three, {})
    assert (anew.epoch, [each.metrics for each in anew.members.values()]) == (0, [[], [], []])
    pbt_state.decide(Decision(epoch=4, members=members, lost={2: "run"}))
    assert (
        resume_population(context.store, "p/", 2, three, {}).failed[2].error
        == "it had failed before the sweep was interrupted"
    )
    TrialFiles(pbt_state.store, pbt_state.folder).drop()
    assert list(context.store.list("p/")) == []


class FakeTrial:
    """A trial as Tune's schedulers see it, without Tune."""

    def __init__(self, number) -> None:
        self.config, self.status, self.experiment_tag, self.trial_id = (
            {"point": number},
            "PENDING",
            "t",
            str(number),
        )
        self.is_saving, self.epochs, self.last_result, self.evaluated_params = False, 0, {}, {}
        manager = SimpleNamespace(
            _latest_checkpoint_result=None, checkpoint_config=SimpleNamespace(num_to_keep=None)
        )
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)
        self.temporary_state = SimpleNamespace(saving_to=None)

    @property
    def checkpoint(self):
        return self.run_metadata.checkpoint_manager._latest_checkpoint_result.checkpoint

    def set_config(self, config):
        self.config = config

    def set_status(self, status):
        self.status = status

    def set_experiment_tag(self, tag):
        self.experiment_tag = tag

    def init_local_path(self):
        """Make no folder, since this trial writes no files."""

    def is_finished(self):
        return self.status in {"TERMINATED", "ERROR"}


class Saving(_FutureTrainingResult):
    """A save that takes no time."""

    def resolve(self, **_: object):
        return self.future


class FakeTune:
    """Tune's controller and all trials' actors, one epoch at a time, and the runs of the members."""

    search_alg = None

    def __init__(self, scheduler_of, count, *, ends, fails=()) -> None:
        self.scheduler = scheduler_of(self)
        self.trials = [FakeTrial(number) for number in range(count)]
        self.living, self.ends, self.fails = set(self.trials), ends, dict(fails)
        self.logged = {number: ([], []) for number in range(count)}
        self.most = 0
        self.scheduler.set_search_properties("valid_loss", "min")
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)

    def get_trials(self):
        return self.trials

    def get_live_trials(self):
        return self.living

    def pause_trial(self, trial, should_checkpoint):
        trial.status = "PAUSED"
        if should_checkpoint:
            saved = tune_checkpoint(trial.config["point"], trial.epochs, dict(trial.last_result))
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = saved

    def _schedule_trial_save(self, trial, **_: object):
        self.pause_trial(trial, should_checkpoint=True)
        trial.status = "RUNNING"
        return Saving(trial.run_metadata.checkpoint_manager._latest_checkpoint_result)

    def record_exploit(self, number, exploit):
        self.logged[number][1].append(exploit)

    def history(self, number):
        return self.logged[number]

    def failed_runs(self):
        return {trial.config["point"]: "run" for trial in self.trials if trial.status == "ERROR"}

    def run(self):
        while self.living:
            chosen = self.scheduler.choose_trial_to_run(self)
            if chosen is not None:
                chosen.status = "RUNNING"
            running = [trial for trial in self.trials if trial.status == "RUNNING"]
            self.most = max(self.most, len(running))
            assert running, "all wait for each other"
            self.step(running[-1])

    def step(self, trial):
        number, trial.epochs = trial.config["point"], trial.epochs + 1
        loss = abs(math.log(trial.config["settings"]["lr"] / 3e-3)) + 1 / trial.epochs
        trial.last_result = {"valid_loss": loss, "epochs": trial.epochs}
        if self.fails.get(number) == trial.epochs:
            self.scheduler.on_trial_error(self, trial)
            trial.status = "ERROR"
        elif trial.epochs == self.ends:
            trial.status = "TERMINATED"
            self.living.discard(trial)
            self.logged[number][0].append(trial.last_result)
        else:
            answer = self.scheduler.on_trial_result(self, trial, trial.last_result)
            self.logged[number][0].append(trial.last_result)
            if answer == "PAUSE":
                self.pause_trial(trial, should_checkpoint=True)


def run_population(store, folder, *, fails=()):
    points = [BASE.model_copy(update={"lr": lr}) for lr in (1e-3, 8e-3, 2e-3, 4e-3)]
    resumed = resume_population(store, folder, 2, points, {})
    fake = FakeTune(lambda runs: resumed.scheduler(SPACE, 7, 2, runs), 4, ends=7, fails=fails)
    fake.run()
    return fake


def test_the_worst_copies_the_best_at_each_decision_and_the_seed_decides_how(context):
    first, second = (run_population(context.store, folder) for folder in ("a/", "b/"))
    assert first.logged == second.logged
    assert first.most == 2
    exploits = [each for _, taken in first.logged.values() for each in taken]
    assert sorted(each.epoch for each in exploits) == [2, 4, 6]
    copied = first.logged[0][1][0]
    assert (copied.epoch, copied.trial) == (2, 3)  # 1e-3 is the farthest from 3e-3, 4e-3 the nearest
    decided = [key for key in context.store.list("a/") if "decision" in key]
    assert len(decided) == 3


def test_no_member_waits_for_a_trial_that_failed(context):
    fake = run_population(context.store, "c/", fails={1: 3})
    assert [len(metrics) for metrics, _ in fake.logged.values()] == [7, 2, 7, 7]
    decision = Decision.model_validate_json(context.store.get("c/decision-000004.json"))
    assert (decision.members.keys(), decision.lost) == ({0, 2, 3}, {1: "run"})


def test_a_stored_decision_names_its_metrics_as_in_earlier_releases():
    decision = Decision(epoch=2, members={0: member(metrics=[{"valid_loss": 0.5}])}, lost={})
    stored = decision.model_dump_json()
    assert '"told":[{"valid_loss":0.5}]' in stored
    assert Decision.model_validate_json(stored) == decision
