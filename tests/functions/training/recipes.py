"""A project with a small recipe: a network with blocks, and one that does not work out."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import ray
import torch
from torch import nn

from toque.functions.training import Recipe, RecipeParams
from toque.functions.training.loop import distributed
from toque.functions.training.loop.process_group import ProcessGroup
from toque.functions.training.loop.training_loop import Trainer
from toque.registry import Signature, TensorSpec


class Twice(nn.Module):
    """A block of blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = torch.tanh(step(x))
        return x


class Stack(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Twice(width) for _ in range(2))
        self.last = nn.Linear(width, 1)
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        answer: torch.Tensor = self.last(x) + self.shift
        return answer


@dataclass
class Sums:
    """Rows of three numbers, of which the sum of the first two is to be predicted; 103 rows are even for no two workers."""

    scale: float
    train_rows: int = 400
    valid_rows: int = 103
    step_s: float = 0.0
    pace_file: str = ""
    units: dict[str, int] = field(default_factory=lambda: {"numbers": 3})

    def train_batch(self, rows):
        time.sleep(
            float(Path(self.pace_file).read_text()) if self.pace_file else self.step_s
        )  # what a step takes
        return self._rows(0)[rows], self._rows(0)[rows, :2].sum(1) * self.scale

    def valid_batch(self, rows):
        return self._rows(1)[rows], self._rows(1)[rows, :2].sum(1) * self.scale

    def loss(self, module, batch, *, reduction="mean"):
        x, y = batch
        return nn.functional.mse_loss(module(x).squeeze(1), y, reduction=reduction)

    def _rows(self, seed):
        return torch.randn(400, 3, generator=torch.Generator().manual_seed(seed))


class SumRecipe(Recipe):
    """width: an odd one is split unevenly; step_s: what a step takes at least; pace_file: a file that says it instead.

    slow_node: id of a node on which all takes three times as long, of which workers take about a quarter of a minute to be sure.
    """

    width: int = 5
    scale: float = 1.0
    step_s: float = 0.0
    pace_file: str = ""
    slow_node: str = ""

    def network(self):
        return Stack(self.width)

    def task(self):
        times = 1.0
        if self.slow_node:
            times = 3.0 if ray.get_runtime_context().get_node_id() == self.slow_node else 1.0
            distributed._EVERY = 5
            distributed.seconds_of_product = lambda _: times
        return Sums(self.scale, step_s=self.step_s * times, pace_file=self.pace_file)

    def data(self):
        return f"sums:{self.scale}"

    def signature(self):
        return Signature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 3])],
            outputs=[TensorSpec(name="sum", datatype="FP32", shape=[-1, 1])],
            example={"x": [[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]},
        )


RECIPES = {"sums": SumRecipe}
FAST = RecipeParams(lr=3e-2, epochs=4, batch_size=50)


def trainer(params: RecipeParams = FAST, group: ProcessGroup | None = None) -> Trainer:
    """Trainer of a network that always begins with the same weights."""
    recipe = SumRecipe()
    torch.manual_seed(0)
    return Trainer(recipe.network(), recipe.task(), params, group)


class TiedStack(nn.Module):
    """A network whose last weight is its first one."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.widen = nn.Linear(3, width)
        self.first, self.last = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.last.weight = self.first.weight
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.widen(x))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        answer: torch.Tensor = self.last(x).sum(1, keepdim=True) + self.shift
        return answer
