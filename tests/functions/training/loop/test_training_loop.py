import math

import pyarrow as pa
import pytest
import torch

from tests.functions.training.tabular_setup import COLUMNS, FAST, examples
from toque.functions.training.errors import TrainingDiverged
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.tabular.fitting import fit, new_trainer, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.target import fit_inverse_temperature


@pytest.fixture(scope="module")
def prepared():
    return prepare(examples(), COLUMNS, FAST)


def test_the_network_learns_more_than_the_base_rate(prepared):
    fitted = fit(prepared, FAST)
    rate = float(prepared.valid.label.mean())
    constant = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    assert fitted.metrics["log_loss"] < 0.93 * constant
    assert fitted.metrics["auc"] > 0.65


def test_equal_seeds_give_equal_models_and_leave_the_global_stream_alone(prepared):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = fit(prepared, FAST), fit(prepared, FAST)
    assert torch.equal(before, torch.get_rng_state())
    assert first.metrics == second.metrics
    other = fit(prepared, FAST.model_copy(update={"seed": 5}))
    assert other.metrics != first.metrics


def test_the_best_epoch_is_kept_and_patience_ends_the_schedule(prepared):
    params = FAST.model_copy(update={"epochs": 60, "patience": 2, "lr": 5e-2, "dropout": 0.0})
    trainer = new_trainer(prepared, params)
    losses = []
    while not trainer.finished:
        losses.append(trainer.run_epoch().valid_loss)
    assert len(losses) < 60
    assert trainer.best_epoch == losses.index(min(losses)) == len(losses) - 3
    trainer.restore_best()
    assert trainer._validate() == pytest.approx(min(losses), rel=1e-6)


def test_a_loss_that_is_no_number_stops_with_the_remedy(prepared):
    with pytest.raises(TrainingDiverged, match=r"loss of epoch 0 is (nan|inf).*lower lr"):
        fit(prepared, FAST.model_copy(update={"lr": 1e30}))


class Twin(SingleProcess):
    """One of two workers, neither of which waits for the other."""

    def __init__(self, rank, size) -> None:
        super().__init__()
        self.rank, self.size = rank, size


def test_workers_divide_each_batch_without_a_row_twice(prepared):
    seen = []
    for rank in range(2):
        trainer = new_trainer(prepared, FAST.model_copy(update={"unknown_rate": 0.0}), Twin(rank, 2))
        take = type(prepared.train.rows).take
        rows = []

        def spy(self, index, rows=rows, take=take):
            rows.append(index)
            return take(self, index)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(prepared.train.rows), "take", spy)
            trainer._pass_over_training_rows()
        seen.append(torch.cat(rows))
    both = torch.cat(seen)
    assert len(both.unique()) == len(both)
    assert len(both) >= len(prepared.train) - FAST.batch_size


def test_temperature_undoes_overconfidence_and_never_makes_it_worse():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, generator=generator)
    label = (torch.rand(20_000, generator=generator) < torch.sigmoid(logits)).float()
    # logits three times too sure: the factor back is a third, s.e. about .01
    assert fit_inverse_temperature(3 * logits, label) == pytest.approx(1 / 3, abs=0.04)
    assert fit_inverse_temperature(-logits, label) == 1.0


def test_a_split_part_with_one_class_is_named_in_the_error():
    table = examples(400, days=4)
    day = table["event_timestamp"].cast(pa.int64()).to_numpy() // 86_400_000_000
    late = pa.array((day == day.min()).astype(float))
    table = table.set_column(table.column_names.index("late"), "late", late)
    with pytest.raises(Exception, match=r"(training|validation) part .* has one class only"):
        prepare(table, COLUMNS, FAST.model_copy(update={"split": "time", "valid_fraction": 0.3}))


@pytest.mark.parametrize(("rows", "epochs"), [(100, 34), (5_000, 7), (70_000, 6), (150_000, 6)])
def test_a_small_set_gets_smaller_steps_and_more_of_them(rows, epochs):
    params = TabularParams().resolved(rows)
    steps = rows // params.batch_rows(rows)
    assert params.epochs_and_patience[0] == epochs
    assert steps * epochs >= 200
    assert params.resolved(10 * rows) == params


@pytest.mark.parametrize(("rows", "workers"), [(1, 1), (7, 3), (1_000, 2), (10**6, 4)])
def test_every_worker_gets_equally_many_rows_of_a_step(rows, workers):
    batch = TabularParams().batch_rows(rows, workers=workers)
    assert batch % workers == 0
    assert 0 < batch <= max(rows, workers)


def test_settings_that_were_given_stay():
    params = TabularParams(epochs=2, patience=9).resolved(10)
    assert params.epochs_and_patience == (2, 9)
    with pytest.raises(ValueError, match="call resolved"):
        _ = TabularParams().epochs_and_patience
