"""Workers of a network that none could hold alone: a folder, how many, how it is split, and bytes that each may use.

Each leaves its losses and the greatest memory that the training took; it dies when it asks for more than its bytes.
"""

import resource
import sys
from pathlib import Path

import torch
from torch import nn

from tests.functions.training.forked import on_workers
from tests.functions.training.recipes import Sums, TiedStack, trainer
from toque.functions.training import RecipeParams
from toque.functions.training.loop.first_weights import Initialised, reset, without_weights
from toque.functions.training.loop.process_group import ReplicatedGroup, ShardedGroup
from toque.functions.training.loop.training_loop import Trainer, train

WIDTH, BLOCKS = 768, 16
BLOCK_BYTES = 4 * 2 * (WIDTH * WIDTH + WIDTH)
STATE_BYTES = 5 * BLOCKS * BLOCK_BYTES  # weights, gradients, two moments, and the best weights so far
UNTOUCHED_BYTES = (
    8 * 2**20
)  # of the pad that `freed_memory_kept` lets glibc map beside; what is used is judged by `peak`
PARAMS = RecipeParams(lr=1e-5, epochs=2, batch_size=400, recompute=True)  # a step an epoch


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.down(torch.relu(self.up(x)))
        return x + change


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(Residual() for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        answer: torch.Tensor = self.last(x)
        return answer


def taken(what: str) -> int:
    """Bytes of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def tied(_: int) -> dict[str, object]:
    """A small network with a weight that two modules share."""
    with without_weights():
        net = TiedStack()
    group = ShardedGroup()
    small = Trainer(
        net, Sums(1.0), RecipeParams(lr=1e-2, epochs=2, batch_size=50), group, Initialised(reset, 0)
    )
    train(small, group)
    return {
        "losses": [epoch.valid_loss for epoch in small.epochs],
        "rows": len(group.local_part(net.first.weight)),
        "tied": net.first.weight is net.last.weight,
    }


def work(_: int) -> dict[str, object]:
    group = ShardedGroup() if sharding == "shard" else ReplicatedGroup()
    small = trainer(PARAMS.model_copy(update={"epochs": 1}), group)
    small.run_epoch()  # threads and libraries are there before the count begins
    before = taken("VmData")
    Path("/proc/self/clear_refs").write_text("5")
    resident = taken("VmRSS")
    most = before + int(allowed) + UNTOUCHED_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    with without_weights():
        net = Tower()
    large = Trainer(net, Sums(1.0), PARAMS, group, Initialised(reset, 0))
    losses = [large.run_epoch().valid_loss for _ in range(2)]
    large.restore_best()
    return {"losses": losses, "peak": taken("VmHWM") - resident}


if __name__ == "__main__":
    folder, workers, sharding, allowed = sys.argv[1:]
    todo = tied if sharding == "tied" else work
    sys.exit(max(map(abs, on_workers(int(workers), Path(folder), todo))))
