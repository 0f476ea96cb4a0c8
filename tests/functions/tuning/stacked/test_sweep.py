"""ASHA over stacks, played with workers in this process."""

import pytest

from tests.functions.training.tabular_setup import COLUMNS, examples
from toque.functions.runtime.receipt import Prices
from toque.functions.training.tabular.fitting import new_trainer, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.tuning.asha import AshaScheduler
from toque.functions.tuning.ray_tune import AshaSearcher
from toque.functions.tuning.space import Choice, Limits, Range, draw_points
from toque.functions.tuning.stacked.pool import WorkerLost, run_stacks
from toque.functions.tuning.stacked.worker import StackStates, StackWorker
from toque.functions.tuning.tracking import TrialTracker

BASE = TabularParams(hidden=(8,), batch_size=128, epochs=5, patience=5, split="random")
SPACE = {"lr": Range(low=1e-4, high=1e-1, log=True), "hidden": Choice(choices=[(8,), (4, 4)])}
POINTS = dict(enumerate(draw_points(SPACE, BASE, 12, seed=0)))


class LocalPool:
    """Workers in this process, asked in turn. deaths: numbers of the epochs, as they are asked for, whose worker dies before it answers."""

    def __init__(self, prepared, states, *, workers=2, deaths=(), cut=None) -> None:
        self._new = lambda: StackWorker(prepared, states, 1, 0.0)
        self._idle = [("", self._new()) for _ in range(workers)]
        self._busy, self.stacks, self._deaths, self._cut = [], [], set(deaths), cut

    @property
    def free(self):
        return bool(self._idle)

    def start(self, stack):
        chosen = next((each for each in self._idle if each[0] == stack.name), self._idle[0])
        self._idle.remove(chosen)
        self._busy.append((stack, chosen[1]))

    def wait(self):
        stack, worker = self._busy.pop(0)
        self.stacks.append(stack)
        if len(self.stacks) == self._cut:
            raise KeyboardInterrupt
        results = worker.epoch(stack)
        if len(self.stacks) in self._deaths:  # after it saved
            self._idle.append(("", self._new()))
            return stack, WorkerLost("killed")
        self._idle.append((stack.name, worker))
        return stack, results


class Sweep:
    """Sweep over POINTS with its tracker. workers, deaths, cut: as of the pool."""

    def __init__(
        self, context, training_set, prepared, *, size=8, points=POINTS, limits=None, pool=None
    ) -> None:
        self.states = StackStates(context.store, "states/")
        members, self.points = self.states.members(), dict(points)
        run = context.registry().start_run("sweeps")
        self.tracker = TrialTracker(
            context.registry(), "sweeps", parent=run.id, points=self.points, dataset=training_set, code="c", done={},
            members=members, prices=Prices(currency="EUR", cpu_hour=1, gpu_hour=1), limits=limits or Limits(),
        )  # fmt: skip
        self.searcher = AshaSearcher(
            len(points),
            self.points,
            sampler=None,
            members=members,
            done={},
            close_trial=self.tracker.beat_trial,
        )
        self.pool = LocalPool(prepared, self.states, **(pool or {}))
        self.size = size

    def run(self):
        errors = run_stacks(self.pool, self.searcher, self.states, self.tracker, self.size)
        self.tracker.close(errors, ended=True)
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
    assert {len({each.hidden for each in stack.trials.values()}) for stack in sweep.pool.stacks} == {1}
    record = context.registry().get_run(trials[0].run_id).record()
    assert (record.status, record.metrics["money"] > 0) == ("FINISHED", True)


def test_an_epoch_whose_worker_died_is_trained_again_by_another(context, training_set, prepared):
    undisturbed = Sweep(context, training_set, prepared).run()
    for key in list(context.store.list("states/")):
        context.store.delete(key)
    trials = Sweep(context, training_set, prepared, pool={"deaths": {1, 4, 9}}).run()
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
    trials = Sweep(context, training_set, prepared, pool={"workers": 1, "deaths": {1, 2, 3}}).run()
    failed = [number for number, each in trials.items() if each.failed]
    assert 0 in failed
    assert "WorkerLost: killed" in trials[0].error
    assert 0 < len(failed) < 8
    assert max(each.epochs for each in trials.values()) == 5


def test_an_interrupted_sweep_trains_no_saved_epoch_again(context, training_set, prepared):
    whole = Sweep(context, training_set, prepared, pool={"workers": 1}).run()
    for key in list(context.store.list("states/")):
        context.store.delete(key)
    first = Sweep(context, training_set, prepared, pool={"workers": 1, "cut": 5})
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Sweep(context, training_set, prepared, pool={"workers": 1})
    trials = second.run()
    trained = [(number, stack.since) for stack in first.pool.stacks[:-1] for number in stack.trials]
    trained += [(number, stack.since) for stack in second.pool.stacks for number in stack.trials]
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
    ended = Sweep(context, training_set, prepared, size=2, pool={"workers": 1}, limits=used_up)
    assert [each.epochs for each in ended.run().values()] == [1]
    assert ended.tracker.stopped == "limits.cpu_hours=1e-09 reached"
