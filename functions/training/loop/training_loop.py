"""The training loop of any network on any data: large batches, AdamW under one cycle, the best epoch kept.

One loop serves a single process and each of several workers. Every worker draws the same permutation and takes its rows of
each batch, so N workers take the steps that one would take, up to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from functions.runtime.spans import span
from functions.training.checkpoints import WHOLE, Checkpoints, Snapshot
from functions.training.errors import TrainingDiverged
from functions.training.loop.compiling import Compiled
from functions.training.loop.process_group import ProcessGroup, SingleProcess
from functions.training.loop.settings import Settings
from functions.training.loop.task import Batch, LearningTask, PrefetchingTask

_SEED_STRIDE, _RANK_STRIDE = 1_000, 1_000_003  # so that no two epochs, seeds or workers share a random stream
_RISE = 0.25
_SCORED_STEPS = 8  # batches scored at once: of the default size, few enough rows for the cache of a core


@dataclass(frozen=True, slots=True)
class Epoch:
    """Losses and speed of one pass over the training rows; losses a row: nats, or squared deviations for a number.

    units_per_s: speed in the units of a row, such as tokens; busy: share of the time in which no step waited for rows.
    """

    number: int
    train_loss: float
    valid_loss: float
    seconds: float
    rows_per_s: float
    units_per_s: dict[str, float] = field(default_factory=dict)
    busy: float = 1.0


OnEpoch = Callable[[Epoch], None]


@dataclass(slots=True)
class _Best:
    loss: float = math.inf
    epoch: int = -1
    state: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """Trains one network epoch by epoch; read `finished` before each, and call `restore_best` at the end."""

    def __init__(
        self, net: nn.Module, task: LearningTask, settings: Settings, group: ProcessGroup | None = None
    ) -> None:
        self.net, self.task = net, task
        self.epochs: list[Epoch] = []
        self._settings = settings
        self._group: ProcessGroup = group or SingleProcess()
        self._module = self._group.wrap(net.to(self._group.device))
        self._stepped = Compiled(self._module) if settings.compiled else self._module
        self._epochs, self._patience = settings.epochs_and_patience
        self._batch = settings.batch_rows(task.train_rows, workers=self._group.size)
        self._steps = max(1, task.train_rows // self._batch)
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
        """Validation loss of the best epoch so far."""
        return self._best.loss

    def run_epoch(self) -> Epoch:
        """Train one epoch, validate, remember the best weights.

        Raises: TrainingDiverged if a loss is not a finite number.
        """
        begin, self._waited_s = time.perf_counter(), 0.0
        with torch.random.fork_rng(devices=_gpus(self._group.device)):
            train_loss = self._pass_over_training_rows()
        busy = 1.0 - self._waited_s / (time.perf_counter() - begin)
        valid_loss = self._validate()
        seconds = time.perf_counter() - begin
        rate = self.task.train_rows / seconds
        units = {name: count * rate for name, count in self.task.units.items()}
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
        """State that the next epochs depend on; their random numbers follow from seed and number."""
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
            tensors[name] = self._group.local_part(value)
            if tensors[name] is not value:
                rows[name] = value.shape[0]
        return Snapshot(tensors, facts, rows)

    def resume(self, snapshot: Snapshot) -> None:
        """Continue from the state of a trainer of the same data and network.

        That trainer's settings may differ: weights, moments and epochs are taken over, and the schedule continues after as
        many epochs under the settings of this trainer.
        """
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}, "optimizer": {}}
        likes = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        likes |= {name.replace("net.", "best.", 1): value for name, value in likes.items()}
        weights = [weight for group in self._optimizer.param_groups for weight in group["params"]]
        for full, value in snapshot.tensors.items():
            part, _, name = full.partition(".")
            if full in snapshot.rows:
                like = likes[full] if full in likes else weights[int(name.partition(".")[0])]
                parts[part][name] = self._group.from_local(value.to(self._group.device), like)
            else:
                parts[part][name] = value
        self.net.load_state_dict(parts["net"])
        loss, epoch = snapshot.facts["best"]
        self._best = _Best(loss, epoch, parts["best"])
        self.epochs[:] = [Epoch(**saved) for saved in snapshot.facts["epochs"]]
        self._resume_optimizer(parts["optimizer"])

    def _resume_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Put moments back into the optimiser, and the schedule after the epochs that were trained."""
        moments = self._optimizer.state_dict()
        for full, value in tensors.items():
            number, _, name = full.partition(".")
            moments["state"].setdefault(int(number), {})[name] = value
        step = len(self.epochs) * self._steps
        rates = [self._settings.lr * self._rate(step) for _ in moments["param_groups"]]
        position = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
        self._schedule.load_state_dict(self._schedule.state_dict() | position)
        for group, rate in zip(moments["param_groups"], rates, strict=True):
            group["lr"] = rate
        self._optimizer.load_state_dict(moments)

    def _rate(self, step: int) -> float:
        """Learning rate at a step, as a share of the peak."""
        return one_cycle(step, self._steps * self._epochs)

    def _pass_over_training_rows(self) -> float:
        self._module.train()
        seed = self._settings.seed * _SEED_STRIDE + len(self.epochs)
        order = torch.randperm(self.task.train_rows, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed + _RANK_STRIDE * (1 + self._group.rank))  # dropout and hidden categories
        total = torch.zeros((), device=self._group.device)
        for step in range(self._steps):
            own = self._own_rows(order, step)
            if isinstance(self.task, PrefetchingTask):
                self.task.prefetch(self._own_rows(order, step + 1))
            self._optimizer.zero_grad(set_to_none=True)
            total += self._gradients(own)
            if self._settings.clip is not None:
                nn.utils.clip_grad_norm_(self.net.parameters(), self._settings.clip)
            self._optimizer.step()
            self._schedule.step()
        return float(self._group.all_reduce_sum(total)) / (self._steps * self._group.size)

    def _gradients(self, rows: Tensor) -> Tensor:
        """Add up the gradients of the mean loss of `rows` over micro-batches; returns that loss."""
        micro_batches = rows.chunk(self._settings.accumulate)
        total = torch.zeros((), device=self._group.device)
        for micro_batch in micro_batches:
            with self._group.micro_step(self._module, last=micro_batch is micro_batches[-1]):
                loss = self._loss(self._stepped, self._fetched(micro_batch), "mean")
                loss = loss * (len(micro_batch) / len(rows))
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
        return total

    def _own_rows(self, order: Tensor, step: int) -> Tensor:
        """Numbers of the rows of a step that this worker takes."""
        return order[step * self._batch : (step + 1) * self._batch][self._group.rank :: self._group.size]

    def _fetched(self, rows: Tensor) -> Batch:
        began = time.perf_counter()
        batch = self.task.train_batch(rows)
        self._waited_s += time.perf_counter() - began
        return batch

    def _validate(self) -> float:
        """Mean loss of the validation rows; all workers take equally many passes, as a split model requires."""
        self.net.eval()
        total = torch.zeros((), device=self._group.device)
        rows, most = self.task.valid_rows, self._batch * _SCORED_STEPS
        with torch.no_grad():
            for start in range(0, rows, most):
                own = torch.arange(start, min(start + most, rows))[self._group.rank :: self._group.size]
                total += self._loss(self.net, self.task.valid_batch(own), "sum")
        return float(self._group.all_reduce_sum(total)) / rows

    def _loss(self, module: nn.Module, batch: Batch, reduction: str) -> Tensor:
        device = self._group.device
        batch = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
        half = self._settings.precision == "bf16"
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            return self.task.loss(module, batch, reduction=reduction)

    def _check(self, epoch: Epoch) -> None:
        for name, loss in (("training", epoch.train_loss), ("validation", epoch.valid_loss)):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the {name} loss of epoch {epoch.number} is {loss}: training stopped and registered nothing; "
                    f"lower lr (now {self._settings.lr}) or look for extreme values in the features"
                )


def train(
    trainer: Trainer,
    group: ProcessGroup,
    *,
    on_epoch: OnEpoch | None = None,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train until the schedule or patience ends, and put the best epoch back.

    on_epoch: called with each epoch, also with those trained before an interruption.
    checkpoints: where an interrupted training resumes; each epoch is saved, by the first worker or in shards by all.
    Raises: TrainingDiverged if a loss stops being a number; RuntimeError if the workers do not begin with the same epoch.
    """
    saved = checkpoints.latest(group.shard) if checkpoints else None
    if saved is not None:
        trainer.resume(saved)
    _require_same_epoch(len(trainer.epochs), group)
    report = on_epoch or (lambda _: None)
    for epoch in trainer.epochs:
        report(epoch)
    while not trainer.finished:
        with span("epoch", **{"toque.epoch": len(trainer.epochs)}) if group.rank == 0 else nullcontext():
            epoch = trainer.run_epoch()
        report(epoch)
        if checkpoints is not None and (group.rank == 0 or group.shard != WHOLE):
            checkpoints.save(epoch.number, trainer.snapshot(), group.shard)
    trainer.restore_best()


def _require_same_epoch(number: int, group: ProcessGroup) -> None:
    """Check that all workers resume from one epoch: one thought dead may have saved while the others were reading."""
    total = int(group.all_reduce_sum(torch.tensor(number, device=group.device)))
    if total != number * group.size:
        raise RuntimeError(
            f"worker {group.rank} of {group.size} resumes at epoch {number}, others at another: start them again"
        )


def one_cycle(step: int, total: int) -> float:
    """Learning rate at a step, as a share of the peak: a linear rise over the first quarter, then half a cosine down."""
    rise = max(1, round(_RISE * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups of the optimiser: weights decay, biases do not."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _gpus(device: str) -> list[torch.device]:
    """GPUs whose random numbers a pass uses."""
    return [] if device == "cpu" else [torch.device(device)]
