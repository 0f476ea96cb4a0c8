"""Optimizers, schedules and losses of torch by their names."""

import pytest
import torch
from torch import nn

from tests.functions.training.recipes import FAST, trainer
from toque.functions.training import RecipeParams, TrainingDataError
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import train
from toque.functions.training.loop.updates import new_loss, new_optimizer, new_schedule
from toque.functions.training.params import Named


@pytest.mark.parametrize(
    "name", ["AdamW", "SGD", "Adagrad", "RAdam", "Adafactor", "Rprop", "RMSprop", "NAdam"]
)
def test_any_optimizer_of_torch_is_made_and_learns(name):
    each = trainer(FAST.model_copy(update={"optimizer": Named(name=name)}))
    losses = [each.run_epoch().train_loss for _ in range(3)]
    assert losses[-1] < losses[0]
    assert type(each._updates._optimizer).__name__ == name


def test_a_name_alone_is_read_from_json():
    params = RecipeParams.model_validate(
        {"optimizer": "SGD", "schedule": {"name": "StepLR", "arguments": {"step_size": 2}}}
    )
    assert params.optimizer == Named(name="SGD")


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (Named(name="Adem"), r"optimizer='Adem': torch.optim has .*AdamW"),
        (Named(name="LBFGS"), "computes a step several times"),
        (Named(name="SGD", arguments={"lr": 1}), r"has \['lr'\]: set the fields"),
        (Named(name="SGD", arguments={"speed": 1}), r"does not take arguments=\{'speed': 1"),
        (Named(name="Optimizer"), "torch.optim has"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused_by_name(chosen, says):
    with pytest.raises(TrainingDataError, match=says):
        new_optimizer(chosen, [{"params": nn.Linear(2, 2).parameters()}], lr=0.1, weight_decay=0.0)


def test_schedules_are_told_their_length_and_those_that_follow_a_loss_are_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    schedule = new_schedule(Named(name="CosineAnnealingLR"), optimizer, steps=7)
    assert schedule.T_max == 7
    with pytest.raises(TrainingDataError, match="follows a loss"):
        new_schedule(Named(name="ReduceLROnPlateau"), optimizer, steps=7)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "OneCycleLR", "arguments": {"max_lr": 0.05}},
        {"name": "ExponentialLR", "arguments": {"gamma": 0.9}},
    ],
)
def test_a_chosen_schedule_resumes_where_it_was(context, schedule):
    params = FAST.model_copy(
        update={
            "optimizer": Named(name="SGD", arguments={"momentum": 0.9}),
            "schedule": Named.model_validate(schedule),
            "lr": 1e-2,
        }
    )
    undisturbed, cut, resumed = (trainer(params) for _ in range(3))
    train(undisturbed, SingleProcess())
    checkpoints = Checkpoints.of(context.store, {})
    keeper = Keeper(SingleProcess(), checkpoints)
    for _ in range(2):
        keeper.save(cut, loss=cut.run_epoch().valid_loss)
    keeper.wait()
    train(resumed, SingleProcess(), keeper=Keeper(SingleProcess(), checkpoints))
    assert [e.valid_loss for e in resumed.epochs] == [e.valid_loss for e in undisturbed.epochs]


def test_losses_are_made_by_name_with_arguments():
    loss = new_loss(Named(name="CrossEntropyLoss", arguments={"weight": [1.0, 3.0]}), reduction="sum")
    got = loss(torch.zeros(2, 2), torch.tensor([0, 1]))
    assert float(got) == pytest.approx(4 * 0.6931, abs=1e-3)
    with pytest.raises(TrainingDataError, match="loss='Linear' is no loss"):
        new_loss(Named(name="Linear"))
