"""Two workers that fine-tune in a precision: a folder for what they find, the base, a store, and how they share the weights.

Each leaves, by precision and whether adapters are learnt: number formats of what is frozen and of what is learnt, losses by epoch, and
losses of a training that was cut and of the one that went on after its checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from tests.functions.training.forked import on_workers
from tests.functions.training.split_worker import Interrupted
from tests.functions.training.tuned_worker import ADAPTERS, PARAMS, WORKERS, rows
from toque.functions.training import Lora
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.llm.fine_tune import FineTune
from toque.functions.training.llm.job import text_task
from toque.functions.training.llm.network import Pretrained, new_network
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import ProcessGroup, ReplicatedGroup, ShardedGroup
from toque.functions.training.loop.training_loop import Trainer, train
from toque.functions.training.params import Precision
from toque.functions.training.trainer import Epoch
from toque.registry import ObjectStore, open_store

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
LORAS = {"adapters": ADAPTERS, "whole": None}


def trainer_of(base: Path, precision: Precision, lora: Lora | None, group: ProcessGroup) -> Trainer:
    """Trainer of a base, which begins with the base's weights."""
    params = PARAMS.model_copy(update={"precision": precision})
    spec = FineTune(base="tiny@1", length=32, lora=lora, params=params)
    net, task = new_network(base, lora), text_task(spec, base, rows())
    return Trainer(net, task, params, group, Pretrained(base, 0))


def formats(net: torch.nn.Module, *, learnt: bool) -> list[str]:
    """Number formats of the weights that have gradients, or of those that have none."""
    return sorted({str(each.dtype) for each in net.parameters() if each.requires_grad == learnt})


def losses(trainer: Trainer) -> list[tuple[float, float]]:
    """Losses of the rows that are learnt from and of those held out, by epoch."""
    return [(epoch.train_loss, epoch.valid_loss) for epoch in trainer.epochs]


def cut(epoch: Epoch) -> None:
    """Stop a training once its first epoch is saved and its second is over."""
    if epoch.number == 1:
        raise Interrupted


def found(
    base: Path, store: ObjectStore, precision: Precision, lora: Lora | None, group: ProcessGroup
) -> dict[str, Any]:
    """What a worker finds, with digits enough that equal weights alone have equal sums."""
    undisturbed, broken, resumed = (trainer_of(base, precision, lora, group) for _ in range(3))
    train(undisturbed, group)
    checkpoints = Checkpoints(store, f"checkpoints/{precision}-{lora is None}-{type(group).__name__}/")
    keeper = Keeper(group, checkpoints)
    try:
        train(broken, group, on_epoch=cut, keeper=keeper)
    except Interrupted:
        keeper.wait()
    again = Keeper(group, checkpoints)
    again.resume(resumed)
    taken_up = len(resumed.epochs)
    train(resumed, group, keeper=again)
    weights = [
        {name: group.full_tensor(value).clone() for name, value in each.learnt().items()}
        for each in (undisturbed, resumed)
    ]
    return {
        "frozen": formats(resumed.net, learnt=False),
        "learnt": formats(resumed.net, learnt=True),
        "saved": sorted({str(each.dtype) for each in weights[0].values()}),
        "losses": losses(undisturbed),
        "resumed": losses(resumed),
        "taken up": taken_up,
        "same": all(torch.equal(one, weights[1][name]) for name, one in weights[0].items()),
        "frozen bytes": sum(
            group.local_part(each).nbytes for each in resumed.net.parameters() if not each.requires_grad
        ),
    }


def all_found(base: Path, store: ObjectStore, group: ProcessGroup) -> dict[str, Any]:
    """What a worker finds, by precision and by what is learnt."""
    return {
        f"{precision} {name}": found(base, store, precision, lora, group)
        for precision in PRECISIONS
        for name, lora in LORAS.items()
    }


if __name__ == "__main__":
    folder, base, url, sharding = sys.argv[1:]
    make = ShardedGroup if sharding == "shard" else ReplicatedGroup
    work = lambda _: all_found(Path(base), open_store(url), make())  # noqa: E731 - forks take it
    sys.exit(max(abs(code or 0) for code in on_workers(WORKERS, Path(folder), work)))
