"""AdamW for stacked weights: each trial has a rate, a decay and a greatest norm of its own, all have taken equally many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from toque.functions.training.loop.updates import one_cycle
from toque.functions.training.params import TabularParams

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
