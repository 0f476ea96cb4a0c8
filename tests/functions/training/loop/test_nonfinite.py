"""Steps whose gradients are no finite numbers: they stop a training, or are skipped."""

import math
from dataclasses import dataclass

import pytest

from tests.functions.training.recipes import FAST, Sums, trainer
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.errors import TrainingDiverged
from toque.functions.training.loop.keeping import Cadence, Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer, train

SKIP = FAST.model_copy(update={"nonfinite": "skip"})


@dataclass
class Poisoned(Sums):
    """Rows of which some are no finite numbers."""

    poison: range = range(7, 8)

    def train_batch(self, rows):
        x, y = super().train_batch(rows)
        for row in self.poison:
            x[rows == row] = math.inf
        return x, y


def poisoned(params, poison=range(7, 8)):
    """Trainer whose network and rows are those of `trainer`, but for the poison."""
    clean = trainer(params)
    return Trainer(clean.net, Poisoned(1.0, poison=poison), params, SingleProcess())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_that_is_skipped_changes_nothing_and_is_counted(clip):
    each = poisoned(SKIP.model_copy(update={"clip": clip}))
    train(each, SingleProcess())
    assert [epoch.skipped for epoch in each.epochs] == [1] * FAST.epochs
    assert all(math.isfinite(epoch.train_loss) for epoch in each.epochs)
    assert each.epochs[-1].valid_loss < 0.5 * each.epochs[0].valid_loss


def test_a_clean_training_learns_the_same_though_it_might_skip():
    losses = []
    for params in (FAST, SKIP):
        each = trainer(params)
        train(each, SingleProcess())
        losses.append([(epoch.train_loss, epoch.valid_loss) for epoch in each.epochs])
    assert losses[0] == losses[1]


def test_steps_that_are_skipped_one_after_the_other_stop_the_training():
    with pytest.raises(TrainingDiverged, match=r"step 2 of epoch 1 .* as those of the 10 before.*lower lr"):
        train(poisoned(SKIP, range(400)), SingleProcess())


def test_a_training_stops_before_a_checkpoint_of_what_is_no_number(context):
    each, checkpoints = poisoned(FAST), Checkpoints.of(context.store, {})
    keeper = Keeper(SingleProcess(), checkpoints, Cadence(steps=1))
    with pytest.raises(TrainingDiverged, match="the training loss of epoch 0 is"):
        train(each, SingleProcess(), keeper=keeper)
    keeper.wait()
    last = checkpoints.open()[0] if checkpoints.open() else None
    assert each.step < 8  # within the epoch, at the step itself
    assert last is None or last.step == each.step - 1
