"""The training loop: whole data in memory, large batches, AdamW under one cycle, the best epoch kept.

The same loop runs alone or as one of several workers. Every worker draws the same permutation and takes its share of
each batch, so N workers take the steps that one would take, up to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import LambdaLR

from functions.training.errors import TrainingDiverged
from functions.training.network import TabularNet
from functions.training.params import TabularParams
from functions.training.preprocessing import Encoded

_EPOCHS_APART, _WORKERS_APART = 1_000, 1_000_003  # so that no two epochs, seeds or workers share a stream
_RISE = 0.25
_SCORING_ROWS = 16_384  # rows scored at once: small enough for the cache of a core


@dataclass(frozen=True, slots=True)
class Examples:
    """Encoded rows with their labels (rows,) float32."""

    rows: Encoded
    label: Tensor

    def __len__(self) -> int:
        return self.label.shape[0]


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the training rows did; losses in nats per row."""

    number: int
    train_loss: float
    valid_loss: float
    seconds: float
    rows_per_s: float


class World(Protocol):
    """The workers that train together, as one of them sees it."""

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""

    @property
    def size(self) -> int:
        """How many they are."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the workers."""

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the workers."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A world of one worker."""

    rank: int = 0
    size: int = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def total(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


@dataclass(slots=True)
class _Best:
    loss: float = math.inf
    epoch: int = -1
    state: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """Trains one network epoch by epoch; ask `finished` before each, and `restore_best` at the end."""

    def __init__(
        self,
        net: TabularNet,
        train: Examples,
        valid: Examples,
        params: TabularParams,
        world: World | None = None,
    ) -> None:
        self.net = net
        self.epochs: list[Epoch] = []
        self._train, self._valid, self._params = train, valid, params
        self._world: World = world or Alone()
        self._module = self._world.wrap(net)
        self._epochs, self._patience = params.span
        self._batch = params.batch_rows(len(train), workers=self._world.size)
        self._steps = max(1, len(train) // self._batch)
        total = self._steps * self._epochs
        self._optimizer = torch.optim.AdamW(_groups(net, params.weight_decay), lr=params.lr, fused=True)
        self._schedule = LambdaLR(self._optimizer, lambda step: one_cycle(step, total))
        self._best = _Best()

    @property
    def finished(self) -> bool:
        """Whether the schedule is done or patience has run out."""
        number = len(self.epochs)
        return number >= self._epochs or number - 1 - self._best.epoch >= self._patience

    @property
    def best_epoch(self) -> int:
        """Number of the epoch with the lowest validation loss so far, from 0."""
        return self._best.epoch

    @property
    def best_loss(self) -> float:
        """Its validation loss."""
        return self._best.loss

    def run_epoch(self) -> Epoch:
        """Train one epoch, validate, remember the best weights.

        Raises: TrainingDiverged if a loss is not a finite number.
        """
        begin = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            train_loss = self._pass_over_training_rows()
        valid_loss = self._validate()
        seconds = time.perf_counter() - begin
        epoch = Epoch(len(self.epochs), train_loss, valid_loss, seconds, len(self._train) / seconds)
        self._check(epoch)
        self.epochs.append(epoch)
        if valid_loss < self._best.loss:
            state = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
            self._best = _Best(valid_loss, epoch.number, state)
        return epoch

    def restore_best(self) -> None:
        """Put the weights of the best epoch back into the network."""
        self.net.load_state_dict(self._best.state)

    def _pass_over_training_rows(self) -> float:
        self._module.train()
        seed = self._params.seed * _EPOCHS_APART + len(self.epochs)
        order = torch.randperm(len(self._train), generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed + _WORKERS_APART * (1 + self._world.rank))  # dropout and hidden categories
        total = torch.zeros(())
        for step in range(self._steps):
            mine = order[step * self._batch : (step + 1) * self._batch][self._world.rank :: self._world.size]
            rows = self._train.rows.take(mine)
            logits = self._module(rows.numeric, rows.missing, self._hide_some(rows.category))
            loss = binary_cross_entropy_with_logits(logits.squeeze(1), self._train.label[mine])
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self._optimizer.step()
            self._schedule.step()
            total += loss.detach()
        return float(self._world.total(total)) / (self._steps * self._world.size)

    def _hide_some(self, category: Tensor) -> Tensor:
        if self._params.unknown_rate == 0.0:
            return category
        hidden = torch.rand(category.shape) < self._params.unknown_rate
        return torch.where(hidden, self.net.preprocessing.offset, category)

    def _validate(self) -> float:
        mine = slice(self._world.rank, None, self._world.size)
        rows, label = self._valid.rows, self._valid.label[mine]
        share = Encoded(rows.numeric[mine], rows.missing[mine], rows.category[mine])
        loss = binary_cross_entropy_with_logits(score_logits(self.net, share), label, reduction="sum")
        return float(self._world.total(loss)) / len(self._valid)

    def _check(self, epoch: Epoch) -> None:
        for name, loss in (("training", epoch.train_loss), ("validation", epoch.valid_loss)):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the {name} loss of epoch {epoch.number} is {loss}: training stopped and registered nothing; "
                    f"lower lr (now {self._params.lr}) or look for extreme values in the features"
                )


def score_logits(net: TabularNet, rows: Encoded) -> Tensor:
    """Logits (rows,) of encoded rows, without dropout or gradients."""
    net.eval()
    pieces = []
    with torch.no_grad():
        for start in range(0, len(rows), _SCORING_ROWS):
            part = slice(start, start + _SCORING_ROWS)
            pieces.append(net(rows.numeric[part], rows.missing[part], rows.category[part]).squeeze(1))
    return torch.cat(pieces) if pieces else torch.empty(0)


def one_cycle(step: int, total: int) -> float:
    """Share of the peak learning rate at a step: a linear rise over the first quarter, then half a cosine down."""
    rise = max(1, round(_RISE * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside, so that it fits the CPUs that were asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay, biases do not."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
