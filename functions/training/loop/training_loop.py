"""The training loop: large batches, AdamW under one cycle, the best epoch kept, whatever the network and the data.

The same loop runs alone or as one of several workers. Every worker draws the same permutation and takes its share of
each batch, so N workers take the steps that one would take, up to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from functions.training.checkpoints import WHOLE, Checkpoints, Snapshot
from functions.training.errors import TrainingDiverged
from functions.training.loop.compiling import Compiled
from functions.training.loop.parallel import Alone, World
from functions.training.loop.task import Batch, Foretold, Lesson
from functions.training.params import Precision

_EPOCHS_APART, _WORKERS_APART = 1_000, 1_000_003  # so that no two epochs, seeds or workers share a stream
_RISE = 0.25
_SCORED_STEPS = 8  # batches scored at once: of the default size, few enough rows for the cache of a core


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass over the training rows did; losses a row: nats, or squared deviations for a number.

    units_per_s: speed in what a row holds, such as tokens; busy: the part of the steps in which it did not wait for rows.
    """

    number: int
    train_loss: float
    valid_loss: float
    seconds: float
    rows_per_s: float
    units_per_s: dict[str, float] = field(default_factory=dict)
    busy: float = 1.0


OnEpoch = Callable[[Epoch], None]


class Settings(Protocol):
    """How the loop goes: `TabularParams` or `RecipeParams`, which say what each is."""

    @property
    def lr(self) -> float:
        """Peak of the learning rate."""

    @property
    def weight_decay(self) -> float:
        """Of the weights, not of biases."""

    @property
    def clip(self) -> float | None:
        """The greatest norm of a step's gradients."""

    @property
    def precision(self) -> Precision:
        """Of the network's arithmetic."""

    @property
    def accumulate(self) -> int:
        """Pieces of a worker's part of a step."""

    @property
    def compiled(self) -> bool:
        """Whether steps go through torch.compile."""

    @property
    def seed(self) -> int:
        """Of all random numbers."""

    @property
    def span(self) -> tuple[int, int]:
        """Epochs and patience."""

    def batch_rows(self, rows: int, *, workers: int = 1) -> int:
        """Rows of a step on a training part of `rows`, over all workers."""


@dataclass(slots=True)
class _Best:
    loss: float = math.inf
    epoch: int = -1
    state: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """Trains one network epoch by epoch; ask `finished` before each, and `restore_best` at the end."""

    def __init__(
        self, net: nn.Module, lesson: Lesson, settings: Settings, world: World | None = None
    ) -> None:
        self.net, self.lesson = net, lesson
        self.epochs: list[Epoch] = []
        self._settings = settings
        self._world: World = world or Alone()
        self._module = self._world.wrap(net.to(self._world.device))
        self._stepped = Compiled(self._module) if settings.compiled else self._module
        self._epochs, self._patience = settings.span
        self._batch = settings.batch_rows(lesson.train_rows, workers=self._world.size)
        self._steps = max(1, lesson.train_rows // self._batch)
        self._optimizer = torch.optim.AdamW(_groups(net, settings.weight_decay), lr=settings.lr, fused=True)
        self._schedule = LambdaLR(self._optimizer, self._rate)
        self._best = _Best()
        self._waited_s = 0.0

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
        begin, self._waited_s = time.perf_counter(), 0.0
        with torch.random.fork_rng(devices=_cards(self._world.device)):
            train_loss = self._pass_over_training_rows()
        busy = 1.0 - self._waited_s / (time.perf_counter() - begin)
        valid_loss = self._validate()
        seconds = time.perf_counter() - begin
        rate = self.lesson.train_rows / seconds
        units = {name: count * rate for name, count in self.lesson.units.items()}
        epoch = Epoch(len(self.epochs), train_loss, valid_loss, seconds, rate, units, busy)
        self._check(epoch)
        self.epochs.append(epoch)
        if valid_loss < self._best.loss:
            state = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
            self._best = _Best(valid_loss, epoch.number, state)
        return epoch

    def restore_best(self) -> None:
        """Put the weights of the best epoch back into the network."""
        self.net.load_state_dict(self._best.state)

    def snapshot(self) -> Snapshot:
        """All that the next epochs depend on, beside data and settings; their random numbers depend on their number."""
        state = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        state |= {f"best.{name}": value for name, value in self._best.state.items()}
        for number, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
        facts = {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": [self._best.loss, self._best.epoch],
        }
        tensors, rows = {}, {}
        for name, value in state.items():
            tensors[name] = self._world.part(value)
            if tensors[name] is not value:
                rows[name] = value.shape[0]
        return Snapshot(tensors, facts, rows)

    def resume(self, snapshot: Snapshot) -> None:
        """Go on from where a trainer of the same data and network was.

        Its settings need not be this one's: weights, moments and epochs are taken, and the schedule stands where this one's
        would after as many epochs.
        """
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}, "optimizer": {}}
        likes = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        likes |= {name.replace("net.", "best.", 1): value for name, value in likes.items()}
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        for full, value in snapshot.tensors.items():
            part, _, name = full.partition(".")
            if full in snapshot.rows:
                like = likes[full] if full in likes else weights[int(name.partition(".")[0])]
                parts[part][name] = self._world.joined(value.to(self._world.device), like)
            else:
                parts[part][name] = value
        self.net.load_state_dict(parts["net"])
        loss, epoch = snapshot.facts["best"]
        self._best = _Best(loss, epoch, parts["best"])
        self.epochs[:] = [Epoch(**told) for told in snapshot.facts["epochs"]]
        moments = self._optimizer.state_dict()
        for full, value in parts["optimizer"].items():
            number, _, name = full.partition(".")
            moments["state"].setdefault(int(number), {})[name] = value
        step = len(self.epochs) * self._steps
        rates = [self._settings.lr * self._rate(step) for _ in moments["param_groups"]]
        place = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        self._schedule.load_state_dict(self._schedule.state_dict() | place)
        for group, rate in zip(moments["param_groups"], rates, strict=True):
            group["lr"] = rate
        self._optimizer.load_state_dict(moments)

    def _rate(self, step: int) -> float:
        """Share of the peak learning rate at a step."""
        return one_cycle(step, self._steps * self._epochs)

    def _pass_over_training_rows(self) -> float:
        self._module.train()
        seed = self._settings.seed * _EPOCHS_APART + len(self.epochs)
        order = torch.randperm(self.lesson.train_rows, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed + _WORKERS_APART * (1 + self._world.rank))  # dropout and hidden categories
        total = torch.zeros((), device=self._world.device)
        for step in range(self._steps):
            mine = self._share(order, step)
            if isinstance(self.lesson, Foretold):
                self.lesson.soon(self._share(order, step + 1))
            self._optimizer.zero_grad(set_to_none=True)
            total += self._gradients(mine)
            if self._settings.clip is not None:
                nn.utils.clip_grad_norm_(self.net.parameters(), self._settings.clip)
            self._optimizer.step()
            self._schedule.step()
        return float(self._world.total(total)) / (self._steps * self._world.size)

    def _gradients(self, rows: Tensor) -> Tensor:
        """Add up the gradients of the mean loss of `rows`, piece by piece; returns that loss."""
        pieces = rows.chunk(self._settings.accumulate)
        total = torch.zeros((), device=self._world.device)
        for piece in pieces:
            with self._world.piece(self._module, last=piece is pieces[-1]):
                loss = self._loss(self._stepped, self._fetched(piece), "mean")
                loss = loss * (len(piece) / len(rows))
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
        return total

    def _share(self, order: Tensor, step: int) -> Tensor:
        """The rows of a step that are this worker's."""
        return order[step * self._batch : (step + 1) * self._batch][self._world.rank :: self._world.size]

    def _fetched(self, rows: Tensor) -> Batch:
        began = time.perf_counter()
        batch = self.lesson.train_batch(rows)
        self._waited_s += time.perf_counter() - began
        return batch

    def _validate(self) -> float:
        """Every worker takes as many passes as the others: those of a model that is split wait for each other."""
        self.net.eval()
        total = torch.zeros((), device=self._world.device)
        rows, most = self.lesson.valid_rows, self._batch * _SCORED_STEPS
        with torch.no_grad():
            for start in range(0, rows, most):
                mine = torch.arange(start, min(start + most, rows))[self._world.rank :: self._world.size]
                total += self._loss(self.net, self.lesson.valid_batch(mine), "sum")
        return float(self._world.total(total)) / rows

    def _loss(self, module: nn.Module, batch: Batch, reduction: str) -> Tensor:
        device = self._world.device
        batch = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
        half = self._settings.precision == "bf16"
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            return self.lesson.loss(module, batch, reduction=reduction)

    def _check(self, epoch: Epoch) -> None:
        for name, loss in (("training", epoch.train_loss), ("validation", epoch.valid_loss)):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the {name} loss of epoch {epoch.number} is {loss}: training stopped and registered nothing; "
                    f"lower lr (now {self._settings.lr}) or look for extreme values in the features"
                )


def train(
    trainer: Trainer, world: World, *, on_epoch: OnEpoch | None = None, checkpoints: Checkpoints | None = None
) -> None:
    """Train until the schedule or patience ends, and put the best epoch back.

    on_epoch: told of each epoch, of those that were trained before an interruption too.
    checkpoints: where an interrupted training is taken up; each epoch is saved, by the first worker or in shares by all.
    Raises: TrainingDiverged if a loss stops being a number; RuntimeError if the workers do not begin with the same epoch.
    """
    saved = checkpoints.latest(world.share) if checkpoints else None
    if saved is not None:
        trainer.resume(saved)
    _require_same_epoch(len(trainer.epochs), world)
    tell = on_epoch or _nobody
    for epoch in trainer.epochs:
        tell(epoch)
    while not trainer.finished:
        epoch = trainer.run_epoch()
        tell(epoch)
        if checkpoints is not None and (world.rank == 0 or world.share != WHOLE):
            checkpoints.save(epoch.number, trainer.snapshot(), world.share)
    trainer.restore_best()


def _require_same_epoch(number: int, world: World) -> None:
    """A worker that was thought dead may have saved while the others were reading: the group has to read again."""
    together = int(world.total(torch.tensor(number, device=world.device)))
    if together != number * world.size:
        raise RuntimeError(
            f"worker {world.rank} of {world.size} goes on with epoch {number}, others with another: begin them again"
        )


def one_cycle(step: int, total: int) -> float:
    """Share of the peak learning rate at a step: a linear rise over the first quarter, then half a cosine down."""
    rise = max(1, round(_RISE * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay, biases do not."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _cards(device: str) -> list[torch.device]:
    """The cards whose random numbers a pass uses."""
    return [] if device == "cpu" else [torch.device(device)]


def _nobody(_: Epoch) -> None:
    """Nobody is told of epochs."""
