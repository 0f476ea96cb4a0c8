"""Four workers that split each layer of a small language model in two, and its rows: a folder for what they find, the base, a store.

Each leaves losses by epoch: of a fine-tune, of preferences, and of one that was cut and goes on after its checkpoint.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from tests.functions.training.forked import on_workers
from tests.functions.training.recipes import FAST, Stack, Sums
from tests.functions.training.tuned_worker import rows
from toque.functions.training import Preference, RecipeParams
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.llm.fine_tune import FineTune
from toque.functions.training.llm.job import PreferenceTask, preference_task, text_task
from toque.functions.training.llm.network import Pretrained, new_network
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import LayerSplitGroup, ProcessGroup, ShardedGroup
from toque.functions.training.loop.training_loop import Trainer, train
from toque.functions.training.params import Named
from toque.functions.training.trainer import Epoch
from toque.registry import open_store

WORKERS, TENSOR, CUT_AT = 4, 2, 1
# AdamW moves a weight whose gradient is nothing but rounding as far as any other, unless eps is larger than that.
STEADY = Named(name="AdamW", arguments={"eps": 1e-3})
PARAMS = RecipeParams(lr=5e-3, epochs=4, batch_size=4, clip=0.5, optimizer=STEADY)
SPECS = {
    "whole": FineTune(base="tiny@1", length=32, lora=None, params=PARAMS),
    "pieces": FineTune(
        base="tiny@1",
        length=32,
        lora=None,
        params=PARAMS.model_copy(update={"accumulate": 2, "recompute": True, "nonfinite": "skip"}),
    ),
    "preference": FineTune(
        base="tiny@1", length=32, lora=None, preference=Preference(beta=0.5), params=PARAMS
    ),
}
Losses = list[tuple[float, float]]


class Interrupted(Exception):  # noqa: N818 - what happens to a training
    """The power went."""


def trainer_of(base: Path, objective: str, group: ProcessGroup) -> Trainer:
    """Trainer of the base under an objective; it begins with the base's weights."""
    spec, table = SPECS[objective], rows()
    if spec.preference:
        table = table.drop_columns("messages").rename_columns({"question": "messages"})
    task = (preference_task if spec.preference else text_task)(spec, base, table)
    trainer = Trainer(new_network(base, None), task, spec.params, group, Pretrained(base, 0))
    if isinstance(task, PreferenceTask):
        task.refer_to(trainer.net, group, rows=4, half=False)
    return trainer


def losses(base: Path, objective: str, group: ProcessGroup) -> Losses:
    """Losses of the rows that are learnt from and of those held out, by epoch."""
    trainer = trainer_of(base, objective, group)
    train(trainer, group)
    return losses_of(trainer)


def recipe_losses(group: ProcessGroup) -> Losses:
    """Losses of a recipe's network, which each worker builds whole before it is split."""
    torch.manual_seed(0)
    net = Stack(6)
    net.layer_split = {"blocks.*.steps.0": "colwise", "blocks.*.steps.1": "rowwise"}
    trainer = Trainer(net, Sums(1.0), FAST.model_copy(update={"optimizer": STEADY}), group)
    train(trainer, group)
    return losses_of(trainer)


def losses_of(trainer: Trainer) -> Losses:
    """Losses of a trainer's epochs so far."""
    return [(epoch.train_loss, epoch.valid_loss) for epoch in trainer.epochs]


def cut_off(base: Path, checkpoints: Checkpoints, group: ProcessGroup) -> None:
    """Train until an epoch ends that is not saved any more."""

    def cut(epoch: Epoch) -> None:
        if epoch.number == CUT_AT:
            raise Interrupted

    keeper = Keeper(group, checkpoints)
    try:
        train(trainer_of(base, "whole", group), group, on_epoch=cut, keeper=keeper)
    except Interrupted:
        keeper.wait()


def gone_on(base: Path, checkpoints: Checkpoints, group: ProcessGroup) -> dict[str, Any]:
    """Losses of a training that goes on after a checkpoint, and the epoch at which it was taken up."""
    trainer = trainer_of(base, "whole", group)
    Keeper(group, checkpoints).resume(trainer)
    taken_up = len(trainer.epochs)
    train(trainer, group, keeper=Keeper(group, checkpoints))
    whole = {name: group.full_tensor(value) for name, value in trainer.learnt().items()}
    return {
        "from": taken_up,
        "losses": losses_of(trainer),
        "sum": sum(float(each.sum()) for each in whole.values()),
    }


def checkpoints_in(url: str, name: str) -> Checkpoints:
    """Checkpoints of that name."""
    return Checkpoints(open_store(url), f"checkpoints/{name}/")


def work(base: Path, url: str) -> dict[str, Any]:
    """What a worker finds."""
    split, sharded = LayerSplitGroup("cpu", TENSOR), ShardedGroup()
    found: dict[str, Any] = {objective: losses(base, objective, split) for objective in SPECS}
    held = {
        name: [len(places) for places in split.held(weight)]
        for name, weight in trainer_of(base, "whole", split).net.named_parameters()
    }
    found["held"] = held
    found["recipe"] = recipe_losses(split)
    for name in ("split", "also split"):
        cut_off(base, checkpoints_in(url, name), split)
    found["gone on sharded"] = gone_on(base, checkpoints_in(url, "split"), sharded)
    found["gone on split"] = gone_on(base, checkpoints_in(url, "alone"), split)
    return found


if __name__ == "__main__":
    folder, base, url = sys.argv[1:]
    codes = on_workers(WORKERS, Path(folder), lambda _: work(Path(base), url))
    sys.exit(max(abs(code or 0) for code in codes))
