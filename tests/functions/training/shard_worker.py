"""One of two workers that hold half a model each: rank, a folder to meet in, and a store. Prints its losses as JSON."""

import json
import sys

import torch
import torch.distributed

from tests.functions.training.recipes import FAST, trainer
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import (
    ProcessGroup,
    ReplicatedGroup,
    ShardedGroup,
)
from toque.functions.training.loop.training_loop import train
from toque.functions.training.trainer import Epoch
from toque.registry import open_store

QUICK = FAST.model_copy(update={"batch_size": 200})  # two steps an epoch, since each takes many messages


class Interrupted(Exception):  # noqa: N818 - what happens to a training
    """The power went."""


def cut(epoch: Epoch) -> None:
    if epoch.number == 2:
        raise Interrupted


def in_pieces(group: ProcessGroup) -> list[float]:
    """The losses of steps in three pieces of rows."""
    pieces = trainer(QUICK.model_copy(update={"accumulate": 3}), group)
    train(pieces, group)
    return [epoch.valid_loss for epoch in pieces.epochs]


if __name__ == "__main__":
    rank, folder, url = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=int(rank), world_size=2
    )
    group = ShardedGroup()
    undisturbed, broken, resumed = (trainer(QUICK, group) for _ in range(3))
    train(undisturbed, group)
    checkpoints = Checkpoints(open_store(url), "checkpoints/cut/")
    keeper = Keeper(group, checkpoints)
    try:
        train(broken, group, on_epoch=cut, keeper=keeper)
    except Interrupted:
        keeper.wait()
        train(resumed, group, keeper=Keeper(group, checkpoints))
    state = {name: group.local_part(value) for name, value in resumed.state()[0].items()}
    results = {
        "undisturbed": [epoch.valid_loss for epoch in undisturbed.epochs],
        "resumed": [epoch.valid_loss for epoch in resumed.epochs],
        "pieces": [in_pieces(group), in_pieces(ReplicatedGroup())],
        "rows": [len(state["net.first.weight"]), len(state["optimizer.0.exp_avg"])],
    }
    torch.distributed.destroy_process_group()
    sys.stdout.write(json.dumps(results) + "\n")
