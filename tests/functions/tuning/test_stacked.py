"""Networks that train stacked learn what each would learn alone."""

import pyarrow as pa
import pytest

from tests.functions.training.tabular_setup import CATEGORICAL, COLUMNS, NUMERIC, examples
from toque.functions.training.tabular.fitting import new_trainer, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.settings import Columns
from toque.functions.tuning.stacked import StackedTrainer

BASE = TabularParams(hidden=(16, 8), batch_size=32, epochs=3, patience=3, split="random")
OTHERS = [{}, {"lr": 1e-2, "dropout": 0.0}, {"dropout": 0.4, "weight_decay": 0.3}, {"clip": 0.05}]
TRIALS = {10 + number: BASE.model_copy(update=each) for number, each in enumerate(OTHERS)}


def alone(prepared, settings):
    trainer = new_trainer(prepared, settings)
    return [(each.train_loss, each.valid_loss) for each in (trainer.run_epoch() for _ in range(3))]


def labelled(task):
    """Rows whose label is of a task, all in float64 so that the three tasks share a table."""
    rows = examples(500)
    wind = rows["wind"].combine_chunks().to_numpy()
    label = {
        "binary": rows["late"],
        "regression": rows["wind"],
        "multiclass": pa.array((wind // 8).clip(max=2)),
    }
    if task == "multiclass":
        label[task] = pa.array([f"c{int(each)}" for each in label[task].to_pylist()])
    columns = Columns([each for each in NUMERIC if each != "wind" or task == "binary"], CATEGORICAL, "label")
    return rows.append_column("label", label[task]), columns


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_each_trial_of_a_stack_has_the_losses_that_it_has_alone(task):
    rows, columns = labelled(task)
    trials = {number: each.model_copy(update={"task": task}) for number, each in TRIALS.items()}
    prepared = prepare(rows, columns, next(iter(trials.values())))
    trainer = StackedTrainer(prepared, trials)
    epochs = [trainer.run_epoch() for _ in range(3)]
    for number, settings in trials.items():
        stacked = [(each[number].train_loss, each[number].valid_loss) for each in epochs]
        for found, wanted in zip(stacked, alone(prepared, settings), strict=True):
            assert found == pytest.approx(wanted, rel=1e-5)
    assert trainer.finished() == list(trials)


def test_trials_go_on_in_another_stack_from_the_states_of_several():
    prepared = prepare(examples(500), COLUMNS, BASE)
    wanted = {number: alone(prepared, TRIALS[number])[2][1] for number in (11, 12)}
    states = []
    for numbers in ((10, 11), (12, 13)):
        first = StackedTrainer(prepared, {number: TRIALS[number] for number in numbers})
        first.run_epoch()
        first.keep(numbers[-1:] if numbers[0] == 10 else numbers[:1])  # the others are given up
        first.run_epoch()
        states.append(first.state())
    second = StackedTrainer(prepared, {number: TRIALS[number] for number in (12, 11)})
    second.resume(states)
    assert second.epochs == 2
    found = second.run_epoch()
    assert {number: each.valid_loss for number, each in found.items()} == pytest.approx(wanted, rel=1e-5)


def test_a_trial_that_diverges_leaves_the_others_as_they_are():
    prepared = prepare(examples(500), COLUMNS, BASE)
    trainer = StackedTrainer(prepared, {0: BASE, 1: BASE.model_copy(update={"lr": 1e30})})
    epochs = [trainer.run_epoch() for _ in range(3)]
    assert "loss of epoch 0 is nan" in epochs[0][1]
    assert [sorted(each) for each in epochs] == [[0, 1], [0], [0]]
    assert [each[0].valid_loss for each in epochs] == pytest.approx(
        [loss for _, loss in alone(prepared, BASE)], rel=1e-5
    )


def test_trials_of_two_shapes_are_no_stack():
    prepared = prepare(examples(500), COLUMNS, BASE)
    with pytest.raises(ValueError, match="they cannot be stacked"):
        StackedTrainer(prepared, {0: BASE, 1: BASE.model_copy(update={"hidden": (4,)})})
