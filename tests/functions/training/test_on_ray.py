import pytest
import ray

from functions.batch_inference import predict_batch
from functions.training import TrainingDiverged, train_tabular
from functions.tuning import Choice, Range, tune_tabular
from registry import Table
from tests.functions.training.kitchen import FAST, NAMES

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()


def test_two_workers_learn_what_one_learns(kitchen, training_set):
    calm = FAST.model_copy(update={"dropout": 0.0, "unknown_rate": 0.0})
    one = train_tabular("late", training_set, **NAMES, params=calm)
    two = train_tabular("late", training_set, **NAMES, params=calm, num_workers=2)
    # without noise the steps are the same up to float32 sums in another order
    assert two.metrics["log_loss"] == pytest.approx(one.metrics["log_loss"], abs=1e-3)
    run = kitchen.registry().get_run(two.run_id)
    assert [point.step for point in run.series("valid_loss")] == [0, 1, 2, 3]
    assert kitchen.registry().get_version("late", two.version).lineage.run == two.run_id


def test_a_loss_that_is_no_number_fails_the_run_of_all_workers(kitchen, training_set):
    with pytest.raises(TrainingDiverged, match="loss of epoch 0"):
        train_tabular(
            "late", training_set, **NAMES, params=FAST.model_copy(update={"lr": 1e30}), num_workers=2
        )
    assert [run.status for run in kitchen.registry().search_runs("late")] == ["FAILED"]
    assert kitchen.registry().list_models() == []


def test_more_workers_than_cpus_are_refused_at_once(kitchen, training_set):
    with pytest.raises(Exception, match=r"9 workers of 1.0 CPUs want 9.0 CPUs"):
        train_tabular("late", training_set, **NAMES, params=FAST, num_workers=9)


def test_every_trial_of_a_sweep_is_a_run_and_a_poor_one_fails_alone(kitchen, training_set):
    space = {"lr": Choice(choices=[1e30]), "dropout": Range(low=0.0, high=0.3)}
    sweep = tune_tabular("late", training_set, **NAMES, params=FAST, space=space, num_samples=3)
    assert [trial.failed for trial in sweep.trials] == [False, True, True]
    assert sweep.best_params == FAST
    assert sweep.best_run == sweep.trials[0].run_id
    registry = kitchen.registry()
    record = registry.get_run(sweep.run_id).record()
    assert (record.status, record.tags["best_run"]) == ("FINISHED", sweep.best_run)
    for trial in sweep.trials:
        told = registry.get_run(trial.run_id).record()
        assert told.tags["sweep"] == sweep.run_id
        assert told.status == ("FAILED" if trial.failed else "FINISHED")
        assert trial.failed == ("loss of epoch 0" in told.tags.get("error", ""))
    assert registry.get_run(sweep.best_run).record().metrics["best_loss"] == sweep.best_loss


def test_batch_inference_on_ray_data_scores_each_row_once(kitchen, training_set):
    trained = train_tabular("late", training_set, **NAMES, params=FAST)
    done = predict_batch("late", training_set, version=trained.version, shard_rows=700)
    assert (done.where, done.rows_scored) == ("ray", 4_000)
    rows = Table(kitchen.store, "batch/late").read()["row"].to_pylist()
    assert sorted(rows) == list(range(4_000))
