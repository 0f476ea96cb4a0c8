"""Legs of ASHA, of single trials and of stacks, played with trainings in this process."""

from collections import deque
from types import SimpleNamespace

import pytest

from tests.functions.training.tabular_setup import COLUMNS, examples
from toque.functions.runtime.receipt import Prices
from toque.functions.training.tabular.fitting import new_trainer, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.asha import AshaScheduler
from toque.functions.tuning.search import LegSearcher
from toque.functions.tuning.space import Choice, Limits, Range, draw_points
from toque.functions.tuning.tracking import TrialTracker
from toque.functions.tuning.trainable import TabularTraining
from toque.functions.tuning.trial_states import TrialStates

BASE = TabularParams(hidden=(8,), batch_size=128, epochs=5, patience=5, split="random")
SPACE = {"lr": Range(low=1e-4, high=1e-1, log=True), "hidden": Choice(choices=[(8,), (4, 4)])}
POINTS = dict(enumerate(draw_points(SPACE, BASE, 12, seed=0)))


class LocalTune:
    """Tune and its actors in this process, which take turns by epochs. deaths: numbers of the epochs, as they are asked for, after which the process dies."""

    def __init__(self, training, searcher, tracker, *, workers=2, deaths=(), cut=None) -> None:
        self._training, self._searcher, self._tracker = training, searcher, tracker
        self._workers, self._deaths, self._cut = workers, set(deaths), cut
        self.legs, self._asked = [], 0  # the legs as each epoch found them

    def run(self):
        running, over = deque(), False
        while running or not over:
            while len(running) < self._workers and not self._tracker.limit_reached():
                self._asked += 1
                config = self._searcher.suggest(str(self._asked))
                over = config == self._searcher.FINISHED
                if not isinstance(config, dict):
                    break
                self._tracker.on_trial_start(trial=SimpleNamespace(config=config))
                running.append((str(self._asked), self._training.results(config)))
            if not running or self._tracker.limit_reached():
                return
            trial_id, results = running.popleft()
            self.legs.append(self._searcher._legs[trial_id])
            if len(self.legs) == self._cut:
                raise KeyboardInterrupt
            result = next(results)
            if len(self.legs) in self._deaths:  # after it saved
                self._searcher.on_trial_complete(trial_id, error=True)
            elif result["done"]:
                self._searcher.on_trial_complete(trial_id, result)
            else:
                self._searcher.on_trial_result(trial_id, result)
                running.append((trial_id, results))
            self._tracker.on_step_end()


class Sweep:
    """Sweep over POINTS with its tracker. workers, deaths, cut: as of LocalTune."""

    def __init__(
        self, context, training_set, prepared, *, size=8, points=POINTS, limits=None, tune=None
    ) -> None:
        states = TrialStates(context.store, "states/")
        members, self.points = states.members(), dict(points)
        run = context.registry().start_run("sweeps")
        self.tracker = TrialTracker(
            context.registry(), "sweeps", parent=run.id, points=self.points, dataset=training_set, code="c", done={},
            members=members, prices=Prices(currency="EUR", cpu_hour=1, gpu_hour=1), limits=limits or Limits(),
        )  # fmt: skip
        paused = {number: [epoch["valid_loss"] for epoch in each.metrics] for number, each in members.items()}
        rule = AshaScheduler(len(points), paused, over=())
        searcher = LegSearcher(rule, self.points, self.tracker, states.newest, size=size)
        training = TabularTraining(prepared, states, 1, 0.0, stacked=size > 1)
        self.tune = LocalTune(training, searcher, self.tracker, **(tune or {}))

    def run(self):
        self.tune.run()
        self.tracker.close(ended=True)
        return self.tracker.trials()


@pytest.fixture(scope="module")
def prepared():
    return prepare(examples(320), COLUMNS, BASE)


def one_by_one(prepared):
    """Losses of all trials under ASHA without stacks: one worker, one trial at a time."""
    scheduler, trainers, losses = AshaScheduler(len(POINTS), {}, ()), {}, {}
    while (chosen := scheduler.next()) is not None:
        number, _, until = chosen
        trainer = trainers.setdefault(number, new_trainer(prepared, POINTS[number]))
        while len(trainer.epochs) < until and not trainer.finished:
            scheduler.report(number, trainer.run_epoch().valid_loss)
        scheduler.complete(number) if trainer.finished else scheduler.pause(number)
        losses[number] = [each.valid_loss for each in trainer.epochs]
    return losses


def test_a_stacked_sweep_has_the_rungs_and_the_best_loss_of_one_by_one(context, training_set, prepared):
    sweep = Sweep(context, training_set, prepared)
    trials = sweep.run()
    alone = one_by_one(prepared)
    assert min(each.valid_loss for each in trials.values()) == pytest.approx(
        min(map(min, alone.values())), rel=1e-5
    )
    assert sorted({each.epochs for each in trials.values()}) == [1, 4, 5]
    assert sum(each.epochs == 1 for each in trials.values()) >= 12 - 2 * 3
    for number, trial in trials.items():
        both = min(trial.epochs, len(alone[number]))
        found = [point.value for point in context.registry().get_run(trial.run_id).series("valid_loss")]
        assert found[:both] == pytest.approx(alone[number][:both], rel=1e-5)
    assert {len({each.hidden for each in stack.trials.values()}) for stack in sweep.tune.legs} == {1}
    record = context.registry().get_run(trials[0].run_id).record()
    assert (record.status, record.metrics["money"] > 0) == ("FINISHED", True)


@pytest.mark.parametrize("size", [1, 8])
def test_an_epoch_whose_worker_died_is_trained_again_by_another(context, training_set, prepared, size):
    undisturbed = Sweep(context, training_set, prepared, size=size).run()
    for key in list(context.store.list("states/")):
        context.store.delete(key)
    trials = Sweep(context, training_set, prepared, size=size, tune={"deaths": {1, 4, 9}}).run()
    assert not any(each.failed for each in trials.values())
    first = [
        context.registry().get_run(each.run_id).series("valid_loss")[0].value for each in trials.values()
    ]
    wanted = [
        context.registry().get_run(each.run_id).series("valid_loss")[0].value for each in undisturbed.values()
    ]
    assert first == pytest.approx(wanted, rel=1e-5)
    assert max(each.epochs for each in trials.values()) == 5


def test_trials_whose_workers_die_again_and_again_fail_and_the_others_go_on(context, training_set, prepared):
    trials = Sweep(context, training_set, prepared, tune={"workers": 1, "deaths": {1, 2, 3}}).run()
    failed = [number for number, each in trials.items() if each.failed]
    assert 0 in failed
    assert "its process died 3 times in epoch 0" in trials[0].error
    assert 0 < len(failed) < 8
    assert max(each.epochs for each in trials.values()) == 5


@pytest.mark.parametrize("size", [1, 8])
def test_an_interrupted_sweep_trains_no_saved_epoch_again(context, training_set, prepared, size):
    whole = Sweep(context, training_set, prepared, size=size, tune={"workers": 1}).run()
    for key in list(context.store.list("states/")):
        context.store.delete(key)
    first = Sweep(context, training_set, prepared, size=size, tune={"workers": 1, "cut": 5})
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Sweep(context, training_set, prepared, size=size, tune={"workers": 1})
    trials = second.run()
    trained = [(number, stack.since) for stack in first.tune.legs[:-1] for number in stack.trials]
    trained += [(number, stack.since) for stack in second.tune.legs for number in stack.trials]
    assert len(set(trained)) == len(trained)
    assert min(each.valid_loss for each in trials.values()) == pytest.approx(
        min(each.valid_loss for each in whole.values()), rel=1e-5
    )


def test_a_diverging_trial_fails_alone_and_a_limit_ends_the_sweep(context, training_set, prepared):
    points = {0: BASE, 1: BASE.model_copy(update={"lr": 1e30}), 2: BASE.model_copy(update={"lr": 1e-3})}
    trials = Sweep(context, training_set, prepared, points=points).run()
    assert [each.failed for each in trials.values()] == [False, True, False]
    assert "loss of epoch 0" in trials[1].error
    for key in list(context.store.list("states/")):
        context.store.delete(key)
    used_up = Limits(cpu_hours=1e-9)
    ended = Sweep(context, training_set, prepared, size=2, tune={"workers": 1}, limits=used_up)
    assert [each.epochs for each in ended.run().values()] == [1]
    assert ended.tracker.stopped == "limits.cpu_hours=1e-09 reached"
