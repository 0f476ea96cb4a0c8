"""The training loop of any network on any data: large batches, AdamW under one cycle, the best epoch kept.

One loop serves a single process and each of several workers. Every worker draws the same permutation and takes its rows of
each batch, so N workers take the steps that one would take, up to rounding. Steps may be compiled by torch, or compute
activations again; weights and their names stay the same.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from toque.functions.runtime.telemetry import span
from toque.functions.training.errors import TrainingDataError, TrainingDiverged, TrainingError
from toque.functions.training.loop.first_weights import FirstWeights
from toque.functions.training.loop.process_group import ProcessGroup, SingleProcess
from toque.functions.training.loop.task import (
    Batch,
    LearningTask,
    Order,
    OrderedTask,
    PrefetchingTask,
    WeightedTask,
    epoch_seed,
    uniform_order,
)
from toque.functions.training.loop.updates import Updates
from toque.functions.training.params import RecipeParams
from toque.functions.training.trainer import Epoch, OnEpoch, diverged, not_finite

if TYPE_CHECKING:
    from toque.functions.training.loop.keeping import Keeper


_logger = logging.getLogger(__name__)
_RANK_STRIDE = 1_000_003  # so that no two workers share a random stream
_STEP_STRIDE, _SEEDS = 10_000_019, 1 << 63
_MOST_SKIPPED = 10  # steps in a row
OnStep = Callable[[], None]


@dataclass(slots=True)
class _Part:
    """Steps of an epoch so far, and how many were skipped. weight: of those that were taken, one each unless the task says it.

    before: sum of the losses, by weight, of those that a process before this one took; total: of the others.
    """

    steps: int = 0
    skipped: int = 0
    weight: float = 0.0
    before: float = 0.0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass(slots=True)
class _Best:
    loss: float = math.inf
    epoch: int = -1
    state: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """Trains one network epoch by epoch; read `finished` before each, and call `restore_best` at the end."""

    def __init__(
        self,
        net: nn.Module,
        task: LearningTask,
        settings: RecipeParams,
        group: ProcessGroup | None = None,
        weights: FirstWeights | None = None,
    ) -> None:
        self.net, self.task = net, task
        self.epochs: list[Epoch] = []
        self._settings = settings
        self._group: ProcessGroup = group or SingleProcess()
        torch.backends.cuda.matmul.allow_tf32 = True  # fp32 on cards, as it is planned; processors stay exact
        if settings.recompute:
            recompute_blocks(net)
        self._module = self._group.place(net, weights, half=settings.precision == "bf16")
        self._stepped = Compiled(self._module) if settings.compiled else self._module
        self._epochs, self._patience = settings.epochs_and_patience
        if task.train_rows < self._group.rows_size:
            raise TrainingDataError(
                f"{task.train_rows} rows to learn from and num_workers={self._group.size}: each worker needs one; give more "
                "rows, or ask for fewer workers"
            )
        self._batch = settings.batch_rows(task.train_rows, workers=self._group.rows_size)
        self._steps = max(1, task.train_rows // self._batch)
        self._updates = Updates(
            net, settings, steps=self._steps * self._epochs, whole=self._group.full_tensor
        )
        self._best, self._part = _Best(), _Part()
        self._waited_s, self._skipped_in_a_row = 0.0, 0

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

    def run_epoch(self, on_step: OnStep | None = None) -> Epoch:
        """Train one epoch, or what is left of it, validate, remember the best weights.

        on_step: called after each step but the last. Raises: TrainingDiverged if a loss is not a finite number.
        """
        begin, self._waited_s, first = time.perf_counter(), 0.0, self._part.steps
        with torch.random.fork_rng(devices=_gpus(self._group.device)):
            train_loss = self._pass_over_training_rows(on_step)
        busy = 1.0 - self._waited_s / (time.perf_counter() - begin)
        valid_loss = self._validate()
        seconds = time.perf_counter() - begin
        rate = self.task.train_rows * (1 - first / self._steps) / seconds
        units = {name: count * rate for name, count in self.task.units.items()}
        counts = self._part.skipped, self._group.size
        epoch = Epoch(len(self.epochs), train_loss, valid_loss, seconds, rate, units, busy, *counts)
        if reason := diverged(epoch, self._settings.lr):
            raise TrainingDiverged(reason)
        self.epochs.append(epoch)
        self._part = _Part()
        if valid_loss < self._best.loss:
            self._best = _Best(valid_loss, epoch.number, self._copy_of_weights())
        return epoch

    def learnt(self) -> dict[str, Tensor]:
        """Weights that are learnt, and buffers, by name; what is frozen stays as it was at the beginning."""
        named = self.net.named_parameters(remove_duplicate=False)  # a head that is tied to embeddings too
        frozen = {name for name, each in named if not each.requires_grad}
        return {name: value for name, value in self.net.state_dict().items() if name not in frozen}

    def _copy_of_weights(self) -> dict[str, Tensor]:
        """Copy this worker's part of the weights to its host memory, where a device needs no room for the best ones."""
        state = {name: self._group.local_part(value) for name, value in self.learnt().items()}
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def restore_best(self) -> None:
        """Put the weights of the best epoch back into the network."""
        with torch.no_grad():
            for name, value in self.learnt().items():
                self._group.local_part(value).copy_(self._best.state[name])

    @property
    def step(self) -> int:
        """Number of steps that were taken since the training began."""
        return len(self.epochs) * self._steps + self._part.steps

    @property
    def piece_rows(self) -> int:
        """Rows that all workers compute at once in a step, which therefore fit the memory of each."""
        own = -(-self._batch // self._group.rows_size)
        return -(-own // self._settings.accumulate) * self._group.rows_size

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and facts that are JSON, that the next steps depend on; their random numbers follow from seed and step.

        Every worker has to call it, since the loss of a part of an epoch is summed over all.
        Raises: TrainingDiverged if that is no finite number, so that no checkpoint of before makes room for such a state.
        """
        net, loss = self.learnt(), self._loss_so_far()
        if not math.isfinite(loss):
            raise TrainingDiverged(not_finite("training", len(self.epochs), loss, self._settings.lr))
        state = {f"net.{name}": value for name, value in net.items()}
        for name, value in self._best.state.items():
            state[f"best.{name}"] = self._group.from_local(value, net[name])
        state |= {f"optimizer.{name}": value for name, value in self._updates.moments().items()}
        facts = {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": [self._best.loss, self._best.epoch],
            "part": [self._part.steps * self._batch, loss],
            "skipped": self._part.skipped,
            "weight": self._part.weight,
            **self._updates.facts(),
        }
        return state, facts

    def room_for(self, shapes: dict[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """Tensors into which a state is read: the weights themselves, and moments split as their weights are."""
        net, weights = self.learnt(), self._updates.weights
        room = {}
        for full, (size, dtype) in shapes.items():
            part, _, name = full.partition(".")
            if part != "optimizer" and name not in net:  # frozen, in a checkpoint that kept tied heads too
                continue
            like = net[name] if part != "optimizer" else weights[int(name.partition(".")[0])].detach()
            if part == "net":
                room[full] = like
            elif part == "best":  # in host memory, as they are there
                own = torch.empty_like(self._group.local_part(like), device="cpu", dtype=dtype)
                room[full] = self._group.from_local(own, like)
            elif like.shape == size:
                room[full] = torch.empty_like(like, dtype=dtype)
            else:
                room[full] = torch.empty(size, dtype=dtype)
        return room

    def resume(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state of a trainer of the same data and network.

        That trainer's settings may differ: weights, moments and epochs are taken over, and the schedule continues after as
        many steps under the settings of this trainer.
        """
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "best": {}, "optimizer": {}}
        for full, value in tensors.items():
            part, _, name = full.partition(".")
            parts[part][name] = value
        whole = parts["net"].keys() == self.net.state_dict().keys()
        self.net.load_state_dict(parts["net"], strict=whole)
        loss, epoch = facts["best"]
        best = {name: self._group.local_part(value).cpu() for name, value in parts["best"].items()}
        self._best = _Best(loss, epoch, best)
        self.epochs[:] = [Epoch(**saved) for saved in facts["epochs"]]
        rows, loss = facts["part"]
        steps, skipped = min(rows // self._batch, self._steps), facts.get("skipped", 0)
        self._part = _Part(steps, skipped, facts.get("weight", float(steps - skipped)), loss)
        self._updates.resume(self.step, parts["optimizer"], facts)

    def _pass_over_training_rows(self, on_step: OnStep | None = None) -> float:
        self._module.train()
        seed, part = epoch_seed(self._settings.seed, len(self.epochs)), self._part
        order = self._order(seed)
        part.total = torch.zeros((), device=self._group.device)
        for step in range(part.steps, self._steps):
            rows = self._rows_of(order, step)
            if isinstance(self.task, PrefetchingTask):
                self.task.prefetch(self._own_rows(self._rows_of(order, step + 1)))
            torch.manual_seed(stream_of(seed, step, self._group.rows_rank))  # dropout and hidden categories
            weight = self.task.train_weight(rows) if isinstance(self.task, WeightedTask) else None
            loss = self._gradients(self._own_rows(rows), weight)
            if self._updates.apply():
                counted = 1 if weight is None else weight
                part.total, part.weight = part.total + loss * counted, part.weight + counted
                self._skipped_in_a_row = 0
            else:
                self._skip(step)
            part.steps += 1
            if on_step is not None and step + 1 < self._steps:
                on_step()
        return self._loss_so_far() / max(1.0, part.weight)

    def _skip(self, step: int) -> None:
        """Count a step that changed nothing, and say so. Raises: TrainingDiverged if there were too many in a row."""
        self._part.skipped += 1
        self._skipped_in_a_row += 1
        what = f"gradients of step {step} of epoch {len(self.epochs)} are no finite numbers"
        if self._group.rank == 0:
            _logger.warning("%s: the step is skipped", what)
        if self._skipped_in_a_row > _MOST_SKIPPED:
            raise TrainingDiverged(
                f"{what}, as those of the {_MOST_SKIPPED} before: training stopped and registered nothing; lower lr (now "
                f"{self._settings.lr}) or look for extreme values in the features"
            )

    def _loss_so_far(self) -> float:
        """Sum over the steps of this epoch of their mean losses, by weight; every worker has to call it."""
        own = self._part.total.to(self._group.device)
        return self._part.before + float(self._group.all_reduce_sum(own.clone())) / self._group.size

    def _gradients(self, rows: Tensor, weight: int | None) -> Tensor:
        """Add up the gradients of the mean loss of `rows` over micro-batches; returns that loss.

        weight: of the rows of all workers, by which the sum of losses is divided; None: all rows count alike.
        """
        micro_batches = rows.chunk(self._settings.accumulate)
        total = torch.zeros((), device=self._group.device)
        for micro_batch in micro_batches:
            with self._group.micro_step(self._module, last=micro_batch is micro_batches[-1]):
                batch = self._fetched(micro_batch)
                if weight is None:
                    loss = self._loss(self._stepped, batch, "mean") * (len(micro_batch) / len(rows))
                else:  # workers' gradients and losses are averaged
                    loss = self._loss(self._stepped, batch, "sum") * (self._group.rows_size / weight)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
        return total

    def _order(self, seed: int) -> Order:
        if isinstance(self.task, OrderedTask):
            return self.task.order(self._settings.seed, len(self.epochs))
        return uniform_order(self.task.train_rows, seed)

    def _rows_of(self, order: Order, step: int) -> Tensor:
        """Numbers of the rows of a step over all workers."""
        return order[step * self._batch : (step + 1) * self._batch]

    def _own_rows(self, rows: Tensor) -> Tensor:
        """Select the rows of a step that this worker takes."""
        return rows[self._group.rows_rank :: self._group.rows_size]

    def _fetched(self, rows: Tensor) -> Batch:
        began = time.perf_counter()
        batch = self.task.train_batch(rows)
        self._waited_s += time.perf_counter() - began
        return batch

    def _validate(self) -> float:
        """Mean loss of the validation rows, in pieces of a step's size; all workers take equally many, as a split model requires."""
        self.net.eval()
        total = torch.zeros((), device=self._group.device)
        rows, most = self.task.valid_rows, self.piece_rows
        with torch.no_grad():
            for start in range(0, rows, most):
                own, counted = rows_of_worker(range(start, min(start + most, rows)), self._group)
                loss = self._loss(self.net, self.task.valid_batch(own), "sum")
                total += loss if counted else torch.zeros_like(loss)
        weight = self.task.valid_weight() if isinstance(self.task, WeightedTask) else rows
        return float(self._group.all_reduce_sum(total)) / (weight * self._group.copies)

    def _loss(self, module: nn.Module, batch: Batch, reduction: str) -> Tensor:
        device = self._group.device
        batch = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
        half = self._settings.precision == "bf16"
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            return self.task.loss(module, batch, reduction=reduction)


def train(
    trainer: Trainer,
    group: ProcessGroup,
    *,
    on_epoch: OnEpoch | None = None,
    keeper: Keeper | None = None,
) -> None:
    """Train until the schedule or patience ends, and put the best epoch back.

    on_epoch: called with each epoch, also with those trained before an interruption.
    keeper: writes checkpoints, from which an interrupted training resumes.
    Raises: TrainingDiverged if a loss stops being a number; Resting if a machine will be taken; what a checkpoint raised.
    """
    # late: trials of sweeps start a second sooner without
    from toque.functions.training.loop.keeping import Keeper

    keeper = keeper or Keeper(group, None)
    with group.memory():
        keeper.resume(trainer)
        report = on_epoch or (lambda _: None)
        for epoch in trainer.epochs:
            report(epoch)
        while not trainer.finished:
            with span("epoch", **{"toque.epoch": len(trainer.epochs)}) if group.rank == 0 else nullcontext():
                epoch = trainer.run_epoch(lambda: keeper.after_step(trainer))
            report(epoch)
            keeper.save(trainer, loss=epoch.valid_loss)
        keeper.close()
        trainer.restore_best()


def stream_of(seed: int, step: int, rank: int = 0) -> int:
    """Seed of the random numbers that a worker draws in a step of the epoch with this seed."""
    return ((seed + _RANK_STRIDE * (1 + rank)) * _STEP_STRIDE + step) % _SEEDS


def rows_of_worker(rows: range, group: ProcessGroup) -> tuple[Tensor, bool]:
    """Share rows of a pass among the workers: the numbers of this worker's own, and whether they count.

    A worker that is left without any gets the first row, which does not count: of a split model every worker has to take each
    pass, and networks of `transformers` refuse a batch of no rows.
    """
    own = torch.arange(rows.start, rows.stop)[group.rows_rank :: group.rows_size]
    return (own, True) if len(own) else (torch.tensor([rows.start]), False)


def _gpus(device: str) -> list[torch.device]:
    """GPUs whose random numbers a pass uses."""
    return [] if device == "cpu" else [torch.device(device)]


class Compiled(nn.Module):
    """Compiled form of a network, with the network's own weights. Compilation waits for the first call.

    Where blocks of a `ModuleList` hold most of the weights, each block is compiled by itself, in place: blocks alike share a program,
    and what decoders of `transformers` do around them, such as choosing a causal kernel over a mask, stays free to look at values.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._name, blocks = type(module).__name__, _blocks(module)
        if 2 * sum(map(_weights, blocks)) > _weights(module):
            for block in blocks:
                block.compile()
            self._fast: Any = module
        else:
            self._fast = torch.compile(module)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Compute the network's output from compiled code. Raises: TrainingError if torch cannot compile it here."""
        from torch._dynamo.exc import TorchDynamoException  # late: the errors have no public name

        try:
            return self._fast(*inputs, **named)
        except TorchDynamoException as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise TrainingError(
                f"compiled=True: torch.compile cannot compile {self._name} here ({reason}); it needs a C++ compiler, and "
                "Triton on a GPU; train with compiled=False"
            ) from error


def recompute_blocks(net: nn.Module) -> None:
    """Let each block of a `ModuleList` compute its activations again for its gradients; a block within a block does so once."""
    for block in _outer(net):
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def computed(
        *inputs: Any, **named: Any
    ) -> Any:  # a function, since torch.compile passes a partial of `checkpoint` by
        return checkpoint(forward, *inputs, use_reentrant=False, **named)

    return computed


def _outer(net: nn.Module) -> list[nn.Module]:
    """Members of `ModuleList`s that stand in no other member."""
    lists = [found for found in net.modules() if isinstance(found, nn.ModuleList)]
    inner = {id(each) for found in lists for block in found for each in block.modules() if each is not block}
    return [each for found in lists for each in found if id(each) not in inner]


def _blocks(net: nn.Module) -> list[nn.Module]:
    """Outer members that have layers of their own: a list of single layers leaves nothing to join within one."""
    return [each for each in _outer(net) if next(each.children(), None) is not None]


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
