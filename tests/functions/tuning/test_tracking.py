"""The runs of a sweep's trials, as the process that drives it keeps them."""

from types import SimpleNamespace

from tests.functions.training.tabular_setup import FAST
from toque.functions.tuning.space import Exploit
from toque.functions.tuning.tracking import TrialTracker, finished_trials
from toque.functions.tuning.trial_states import Leg, Member

PAST = {"valid_loss": 0.6, "train_loss": 0.7, "epoch_s": 1.5, "rows_per_s": 100.0}


def test_a_resumed_member_has_its_earlier_epochs_in_its_new_run(context, training_set):
    registry, slow = context.registry(), FAST.model_copy(update={"lr": 1e-3})
    sweep = registry.start_run("e", tags={"sweep_key": "k"})
    exploit = Exploit(epoch=1, trial=2, params=slow)
    tracker = TrialTracker(
        registry,
        "e",
        parent=sweep.id,
        points={0: FAST},
        dataset=training_set,
        code="c",
        done={},
        members={0: Member(settings=slow, weights=2, metrics=[PAST], exploits=[exploit])},
    )
    trial = SimpleNamespace(config={"leg": Leg("0000", {0: slow}, since=1, until=3)})
    for _ in range(2):  # it is put aside once
        tracker.on_trial_start(trial=trial)
        used = {"cpu_s": 3600.0, "gpu_s": 0.0, "energy_j": 0.0}
        tracker.log_epoch(0, PAST | {"valid_loss": 0.5} | used)
    tracker.close_trial(0)
    tracker.on_step_end(iteration=1, trials=[trial])
    (known,) = tracker.trials().values()
    assert (known.epochs, known.valid_loss, known.best_epoch, known.exploits) == (3, 0.5, 1, (exploit,))
    assert known.params == FAST
    run = registry.get_run(known.run_id)
    assert [point.value for point in run.series("valid_loss")] == [0.6, 0.5, 0.5]
    assert [(point.step, point.value) for point in run.series("lr")] == [(1, 1e-3)]
    assert run.record().metrics["cpu_hours"] == 2.0  # of this sweep, in both turns
    assert finished_trials(registry, "e", "k") == {0: known}


def test_a_paused_trial_that_never_resumes_has_a_run_that_ends_with_the_sweep(context, training_set):
    registry = context.registry()
    sweep = registry.start_run("e", tags={"sweep_key": "k"})

    def tracker():
        return TrialTracker(
            registry,
            "e",
            parent=sweep.id,
            points=dict.fromkeys(range(3), FAST),
            dataset=training_set,
            code="c",
            done={},
            members={
                number: Member(settings=FAST, weights=number, metrics=[PAST] * number, exploits=[])
                for number in range(3)
            },
        )

    ended, interrupted = tracker(), tracker()
    ended.close_trial(2)
    ended.close(ended=True)
    assert {number: (each.failed, each.epochs) for number, each in ended.trials().items()} == {
        1: (False, 1),
        2: (False, 2),
    }
    interrupted.close(ended=False)
    assert interrupted.trials() == {}
