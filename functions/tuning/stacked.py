"""Training of several tabular networks at once, which takes the steps that `Trainer` would take with each, up to rounding.

Trials of a stack see the same rows in the same order, since no sweep varies their seed: numbers are coded once, and the first
layer's part on them is one matrix product. Each weight has a first axis of trials; all have taken equally many steps. Dropout
draws for each trial what it would draw alone: trials with the same rate share a mask.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, linear, silu

from toque.functions.training.loop.task import Batch, epoch_seed
from toque.functions.training.loop.training_loop import stream_of
from toque.functions.training.loop.updates import one_cycle
from toque.functions.training.tabular.fitting import Prepared, new_network, new_task
from toque.functions.training.tabular.network import TabularNet
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.trainer import Epoch, diverged
from toque.functions.tuning.trial_states import Snapshot

OWN = ("lr", "weight_decay", "dropout", "clip")  # settings in which trials of one stack may differ
_SCORED_ROWS = 16_384  # rows scored at once, of all trials together


def stack_key(settings: TabularParams) -> str:
    """Settings that trials of one stack have in common, as text."""
    return settings.model_copy(update=dict.fromkeys(OWN)).model_dump_json()


@dataclass(slots=True)
class _Member:
    """Trial that trains in a stack. best_epoch: of its lowest validation loss so far."""

    number: int
    settings: TabularParams
    epochs: list[Epoch]

    @property
    def best_epoch(self) -> int:
        losses = [each.valid_loss for each in self.epochs]
        return losses.index(min(losses)) if losses else -1

    @property
    def finished(self) -> bool:
        epochs, patience = self.settings.epochs_and_patience
        done = len(self.epochs)
        return done >= epochs or done - 1 - self.best_epoch >= patience


class StackedTrainer:
    """Trains the networks of several trials, an epoch of all of them at a time.

    trials: settings by number, equal but for those in `OWN`. Raises: ValueError if they are not.
    """

    def __init__(self, prepared: Prepared, trials: Mapping[int, TabularParams], device: str = "cpu") -> None:
        if len({stack_key(each) for each in trials.values()}) != 1:
            raise ValueError(f"trials {sorted(trials)} differ in more than {OWN}: they cannot be stacked")
        rows = len(prepared.train)
        self._members = [_Member(number, each.resolved(rows), []) for number, each in trials.items()]
        first = self._members[0].settings
        self._device, self._task = device, new_task(prepared, first)
        self._stack = StackedNet(new_network(prepared, first).to(device), len(trials))  # as each has it alone
        self._batch = first.batch_rows(rows)
        self._steps = max(1, rows // self._batch)
        self._updates = StackedUpdates(self._stack.weights, total=self._steps * first.epochs_and_patience[0])

    @property
    def numbers(self) -> list[int]:
        """Numbers of the trials that are in training."""
        return [each.number for each in self._members]

    @property
    def epochs(self) -> int:
        """Number of epochs that the trials have been trained."""
        return len(self._members[0].epochs)

    def finished(self) -> list[int]:
        """Numbers of the trials whose schedule is done, or whose patience has run out."""
        return [each.number for each in self._members if each.finished]

    def run_epoch(self) -> dict[int, Epoch | str]:
        """Train all trials for one epoch: losses of each by number, or why it diverged; such a trial leaves the stack.

        Seconds and speed of an epoch are a trial's share of those of the stack.
        """
        began, number, count = time.perf_counter(), self.epochs, len(self._members)
        gpus = [] if self._device == "cpu" else [torch.device(self._device)]
        with torch.random.fork_rng(devices=gpus):
            train_losses = self._pass_over_training_rows(gpus).tolist()
        valid_losses = self._validate().tolist()
        seconds = (time.perf_counter() - began) / count
        found: dict[int, Epoch | str] = {}
        for member, train_loss, valid_loss in zip(self._members, train_losses, valid_losses, strict=True):
            epoch = Epoch(number, train_loss, valid_loss, seconds, self._task.train_rows / seconds)
            member.epochs.append(epoch)
            found[member.number] = diverged(epoch, member.settings.lr) or epoch
        self.keep([each for each in self.numbers if isinstance(found[each], Epoch)])
        return found

    def keep(self, numbers: Sequence[int]) -> None:
        """Let only these trials stay in the stack."""
        if list(numbers) == self.numbers:
            return
        rows = [self.numbers.index(each) for each in numbers]
        self._members = [self._members[row] for row in rows]
        self._put({name: each.detach()[rows] for name, each in self._tensors()})

    def state(self) -> Snapshot:
        """State of all trials: each tensor has them on its first axis, in the order of the fact "trials"."""
        facts = [
            {"number": each.number, "epochs": [asdict(epoch) for epoch in each.epochs]}
            for each in self._members
        ]
        return Snapshot({name: each.detach() for name, each in self._tensors()}, {"trials": facts})

    def resume(self, states: Sequence[Snapshot]) -> None:
        """Continue from states that hold the trials of this stack together, whatever stacks they were in.

        Raises: KeyError if a trial is in none of them.
        """
        where: dict[int, tuple[Snapshot, int, dict[str, Any]]] = {}
        for state in states:
            where |= {each["number"]: (state, row, each) for row, each in enumerate(state.facts["trials"])}
        for member in self._members:
            member.epochs = [Epoch(**each) for each in where[member.number][2]["epochs"]]
        chosen = [where[number][:2] for number in self.numbers]
        self._put(
            {
                name: torch.stack([state.tensors[name][row] for state, row in chosen])
                for name, _ in self._tensors()
            }
        )

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        parts = {"net": self._stack.weights, "first": self._updates.first, "second": self._updates.second}
        for part, tensors in parts.items():
            for name, each in tensors.items():
                yield f"{part}.{name}", each

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "first": {}, "second": {}}
        for full, value in tensors.items():
            part, _, name = full.partition(".")
            parts[part][name] = value.to(self._device)
        if self._members:
            self._stack.put(parts["net"])
            self._updates.first, self._updates.second = parts["first"], parts["second"]

    def _pass_over_training_rows(self, gpus: Sequence[torch.device]) -> Tensor:
        """Mean training loss of each trial over the steps of an epoch."""
        settings = [each.settings for each in self._members]
        seed = epoch_seed(settings[0].seed, self.epochs)
        order = self._task.order(settings[0].seed, self.epochs)
        total = torch.zeros(len(settings), device=self._device)
        for step in range(self._steps):
            torch.manual_seed(stream_of(seed, step))
            batch = self._task.train_batch(order[step * self._batch : (step + 1) * self._batch])
            losses = self._losses(batch, self._masks(len(batch[-1]), gpus)).mean(1)
            losses.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += losses.detach()
            self._updates.apply(self._stack.weights, settings, self.epochs * self._steps + step)
        return total / self._steps

    def _masks(self, rows: int, gpus: Sequence[torch.device]) -> list[Tensor]:
        """Dropout of each hidden layer, (trials, rows, width): a trial's is what it would draw alone."""
        rates = [each.settings.dropout for each in self._members]
        if not any(rates):
            return []
        drawn: dict[float, list[Tensor]] = {}
        for rate in dict.fromkeys(rates):
            with torch.random.fork_rng(devices=gpus):
                ones = [torch.ones(rows, width, device=self._device) for width in self._stack.hidden]
                drawn[rate] = [dropout(each, rate) for each in ones]
        return [
            torch.stack([drawn[rate][layer] for rate in rates]) for layer in range(len(self._stack.hidden))
        ]

    def _validate(self) -> Tensor:
        """Mean loss of the validation rows under each trial."""
        rows, most = self._task.valid_rows, max(self._batch, _SCORED_ROWS // len(self._members))
        total = torch.zeros(len(self._members), device=self._device)
        with torch.no_grad():
            for start in range(0, rows, most):
                batch = self._task.valid_batch(torch.arange(start, min(start + most, rows)))
                total += self._losses(batch, []).sum(1)
        return total / rows

    def _losses(self, batch: Batch, masks: Sequence[Tensor]) -> Tensor:
        """Loss of each row under each trial: (trials, rows)."""
        numeric, missing, category, label = (each.to(self._device, non_blocking=True) for each in batch)
        logits = self._stack(numeric, missing, category, masks)
        count = len(logits)
        losses = self._task.target.loss(logits.flatten(0, 1), label.repeat(count), reduction="none")
        return losses.view(count, -1)


_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8  # as torch.optim.AdamW has them by default
_NORM_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it
_MATRIX = 3  # axes of a stacked weight that decays; those of a bias are fewer


class StackedUpdates:
    """Applies gradients to stacked weights, step by step of `total`, under one cycle.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, as torch.optim.AdamW computes it.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, total: int) -> None:
        self._total = total
        self.first = {name: torch.zeros_like(each) for name, each in weights.items()}
        self.second = {name: torch.zeros_like(each) for name, each in weights.items()}

    def apply(self, weights: Mapping[str, Tensor], trials: Sequence[TabularParams], step: int) -> None:
        """Take step `step`, counted from 0, by the gradients that are there, and clear them."""
        like = next(iter(weights.values()))
        rate = one_cycle(step, self._total) * _column([each.lr for each in trials], like)
        decay = 1.0 - rate * _column([each.weight_decay for each in trials], like)
        clipped = self._clipping(weights, trials)
        square = math.sqrt(1.0 - _BETA2 ** (step + 1))
        size = -rate / (1.0 - _BETA1 ** (step + 1))
        with torch.no_grad():
            for name, weight in weights.items():
                assert weight.grad is not None  # noqa: S101 - every weight is used by every trial
                gradient = weight.grad if clipped is None else weight.grad * _spread(clipped, weight)
                first = self.first[name].lerp_(gradient, 1.0 - _BETA1)
                second = self.second[name].mul_(_BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
                if weight.ndim >= _MATRIX:
                    weight.mul_(_spread(decay, weight))
                update = first / second.sqrt().div_(square).add_(_EPS)
                weight.addcmul_(update, _spread(size, weight))
                weight.grad = None

    @staticmethod
    def _clipping(weights: Mapping[str, Tensor], trials: Sequence[TabularParams]) -> Tensor | None:
        """Factor of each trial's gradients, 1 where their norm is within the trial's greatest; None if no trial has one."""
        if all(each.clip is None for each in trials):
            return None
        squares = [each.grad.flatten(1).square().sum(1) for each in weights.values() if each.grad is not None]
        norm = torch.stack(squares).sum(0).sqrt()
        most = _column([math.inf if each.clip is None else each.clip for each in trials], norm)
        return (most / (norm + _NORM_EPS)).clamp(max=1.0)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(like)


def _spread(column: Tensor, weight: Tensor) -> Tensor:
    """Give a number for each trial the axes of a stacked weight."""
    return column.view(-1, *[1] * (weight.ndim - 1))


_TABLE, _LAYER = "embedding.weight", "layers.{}.{}"
_EACH = 3  # modules of a hidden layer: linear, SiLU, dropout
Weights = dict[str, Tensor]


class StackedNet:
    """Networks of `count` trials with the shape of `net`, and its weights to begin with.

    weights: by their name in `net`, each (count, …).
    """

    def __init__(self, net: TabularNet, count: int) -> None:
        self.net, self.count = net, count
        self.weights: Weights = {}
        self.put({name: each.detach().expand(count, *each.shape) for name, each in net.named_parameters()})

    @property
    def hidden(self) -> list[int]:
        """Widths of the hidden layers, each followed by dropout."""
        return [each.out_features for each in self._linear[:-1]]

    @property
    def _linear(self) -> list[nn.Linear]:
        return [each for each in self.net.layers if isinstance(each, nn.Linear)]

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights of all trials, of which there may be others than before."""
        self.weights = {name: each.clone().requires_grad_() for name, each in weights.items()}
        self.count = len(next(iter(self.weights.values())))

    def __call__(self, numeric: Tensor, missing: Tensor, category: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Compute logits (count, rows, outputs) of encoded rows; masks: (count, rows, width) of each dropout, none to score."""
        shared = torch.cat([self.net.preprocessing.bins(numeric), numeric, missing], dim=1)
        found = self._first(shared, self._embedded(category))
        for number in range(1, len(self._linear)):
            found = silu(found) if not masks else silu(found) * masks[number - 1]
            weight, bias = self._layer(number)
            found = torch.baddbmm(bias.unsqueeze(1), found, weight.transpose(1, 2))
        return found if self.net.line is None else found + self.net.line(numeric, missing, category)

    def _embedded(self, category: Tensor) -> Tensor:
        """Vectors of the rows' categories, one after the other: (count, rows, columns * embedding_dim)."""
        table = self.weights[_TABLE]  # [count, embedding_rows, embedding_dim]
        first = torch.arange(self.count, device=category.device) * table.shape[1]
        return embedding(category + first[:, None, None], table.flatten(0, 1)).flatten(2)

    def _first(self, shared: Tensor, embedded: Tensor) -> Tensor:
        """First layer: (count, rows, width) of what all trials share, (rows, inputs), and of what each has embedded."""
        weight, bias = self._layer(0)
        width, own = weight[:, :, : shared.shape[1]], weight[:, :, shared.shape[1] :]
        common = linear(shared, width.flatten(0, 1), bias.flatten())  # [rows, count * width]
        common = common.view(len(shared), self.count, -1).transpose(0, 1)
        return torch.baddbmm(common, embedded, own.transpose(1, 2))

    def _layer(self, number: int) -> tuple[Tensor, Tensor]:
        weight, bias = (self.weights[_LAYER.format(number * _EACH, each)] for each in ("weight", "bias"))
        return weight, bias
