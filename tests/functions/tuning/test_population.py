import math
import random

import pytest
import torch

from tests.functions.training.tabular_setup import COLUMNS, FAST, examples
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.loop.updates import one_cycle
from toque.functions.training.tabular.fitting import new_trainer, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.jobs import Stretch, lineage
from toque.functions.tuning.population import Decision, Population, explored, resume_population
from toque.functions.tuning.space import (
    DEFAULT_SPACE,
    Choice,
    Exploit,
    Range,
    Trial,
    population_points,
    population_space,
)
from toque.functions.tuning.trial_states import Leg, Member, Snapshot, TrialStates

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


def member(settings=BASE, weights=0, metrics=()):
    return Member(settings=settings, weights=weights, metrics=list(metrics), exploits=[])


def test_new_settings_are_near_the_copied_ones_within_the_space_and_drawn_by_the_seed():
    good, generator = BASE.model_copy(update={"lr": 9.9e-3}), random.Random(0)
    rates = set()
    for _ in range(50):
        settings = explored(good, SPACE, generator)
        assert 1e-3 <= settings.lr <= 1e-2
        assert settings.batch_size in {128, 256, 512}
        assert settings.epochs == BASE.epochs
        rates.add(settings.lr)
    assert {1e-2, 9.9e-3 * 0.8} < rates
    assert [explored(good, SPACE, random.Random(1)) for _ in range(2)] == [
        explored(good, SPACE, random.Random(1))
    ] * 2


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_setting_that_is_off_and_a_whole_number_are_explored_too(clip):
    space = {"clip": Range(low=0.5, high=2.0), "batch_size": Range(low=100, high=600)}
    for seed in range(20):
        settings = explored(BASE.model_copy(update={"clip": clip}), space, random.Random(seed))
        assert 0.5 <= settings.clip <= 2.0
        assert isinstance(settings.batch_size, int)


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
    states = TrialStates(context.store, "p/", 4)  # of two decisions
    points = [BASE, BASE.model_copy(update={"lr": 5e-3})]
    tensors, facts = new_trainer(prepared, FAST).state()

    def decide(epoch, members, lost):
        decision = Decision(epoch=epoch, members=members, lost=lost)
        context.store.put(f"p/decision-{epoch:06d}.json", decision.model_dump_json().encode())

    for epochs in range(1, 7):
        for number in range(2):
            leg = Leg(f"{number:04d}", {number: BASE}, since=epochs - 1, until=epochs)
            state = Snapshot(tensors, facts | {"trials": [{"number": number, "epochs": []}]})
            states.save(leg, epochs, state)
        members = {0: member(weights=1, metrics=[{"valid_loss": 0.5}]), 1: member()}
        if epochs % 2 == 0:
            decide(epochs, members, {})
    assert resume_population(states, 2, points, {}).epoch == 6
    context.store.delete("p/0001/000005.safetensors")  # the last was saved no more
    resumed = resume_population(states, 2, points, {})
    assert (resumed.epoch, resumed.members[0].weights) == (4, 1)
    assert "p/decision-000006.json" not in set(context.store.list("p/"))
    with pytest.raises(TrainingError, match="state 0001 of trials after 2 epochs is gone"):
        states.load(["0001"], 2)  # two decisions back
    three = [*points, BASE]
    anew = resume_population(states, 2, three, {})
    assert (anew.epoch, [each.metrics for each in anew.members.values()]) == (0, [[], [], []])
    decide(4, members, {2: "run"})
    assert (
        resume_population(states, 2, three, {}).failed[2].error
        == "it had failed before the sweep was interrupted"
    )


class Played:
    """Members that train in turns of an epoch, with losses by their learning rate, and their runs."""

    def __init__(self, resumed, *, ends, fails=()) -> None:
        self.logged = {number: ([], []) for number in resumed.members}
        self.lost, self.ends, self.fails = {}, ends, dict(fails)
        self.population = Population(SPACE, resumed, seed=7, runs=self)

    def record_exploit(self, number, exploit):
        self.logged[number][1].append(exploit)

    def history(self, number):
        return self.logged[number]

    def failed_runs(self):
        return self.lost

    def run(self, *, workers=2, speed=None):
        speed, running = speed or random.Random(0), []
        while True:
            while len(running) < workers and (chosen := self.population.next()) is not None:
                running.append(chosen)
            if not running:
                return
            number, epochs, until = running.pop(speed.randrange(len(running)))
            epochs += 1
            if self.fails.get(number) == epochs:
                self.lost[number] = "run"
                self.population.fail(number)
                continue
            loss = abs(math.log(self.population.points[number].lr / 3e-3)) + 1 / epochs
            self.logged[number][0].append({"valid_loss": loss})
            self.population.report(number, loss)
            if epochs == self.ends:
                self.population.complete(number)
            elif epochs == until:
                self.population.pause(number)
            else:
                running.append((number, epochs, until))


def run_population(store, folder, *, fails=(), workers=2, seed=0):
    points = [BASE.model_copy(update={"lr": lr}) for lr in (1e-3, 8e-3, 2e-3, 4e-3)]
    played = Played(resume_population(TrialStates(store, folder, 4), 2, points, {}), ends=7, fails=fails)
    played.run(workers=workers, speed=random.Random(seed))
    return played


def test_the_worst_copies_the_best_at_each_decision_and_the_seed_decides_how(context):
    first = run_population(context.store, "a/")
    for workers, seed in [(1, 0), (2, 1), (3, 2), (4, 3)]:  # whoever is quick
        other = run_population(context.store, f"{workers}/", workers=workers, seed=seed)
        assert other.logged == first.logged
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
