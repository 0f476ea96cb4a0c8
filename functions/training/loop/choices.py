"""Optimizers, schedules and losses of torch, made from their names and arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.named import Named

T = TypeVar("T")
_LENGTHS = ("total_steps", "T_max")  # arguments of schedules that mean the number of all steps
_FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}


def new_optimizer(
    chosen: Named, groups: Iterable[Mapping[str, Any]], *, lr: float, weight_decay: float
) -> optim.Optimizer:
    """Make the optimizer for groups of parameters; each group has a weight decay of its own, where the optimizer knows one.

    Raises: TrainingDataError if torch.optim has none of this name, its arguments do not fit, or its step needs a closure.
    """
    kind = _found(chosen, optim, optim.Optimizer, field="optimizer")
    if inspect.signature(kind.step).parameters["closure"].default is inspect.Parameter.empty:
        raise TrainingDataError(
            f"optimizer={chosen.name!r} computes a step several times: choose another one"
        )
    own = {"lr", "weight_decay"} & set(chosen.arguments)
    if own:
        raise TrainingDataError(
            f"optimizer.arguments has {sorted(own)}: set the fields of those names instead"
        )
    known = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"lr": lr, **chosen.arguments}
    if "weight_decay" in known:
        arguments["weight_decay"] = weight_decay
    else:
        groups = [
            {name: value for name, value in group.items() if name != "weight_decay"} for group in groups
        ]
    if chosen.name in _FUSED and not {"fused", "foreach", "differentiable"} & set(chosen.arguments):
        arguments["fused"] = True
    return cast("optim.Optimizer", _made(kind, chosen, "optimizer", list(groups), **arguments))


def new_schedule(chosen: Named, optimizer: optim.Optimizer, *, steps: int) -> LRScheduler:
    """Make the schedule that changes the learning rate after each of `steps` steps; its length is given where it takes one.

    Raises: TrainingDataError if torch has none of this name, its arguments do not fit, or it follows a loss.
    """
    kind = _found(chosen, optim.lr_scheduler, LRScheduler, field="schedule")
    if issubclass(kind, ReduceLROnPlateau):
        raise TrainingDataError(f"schedule={chosen.name!r} follows a loss: choose one that counts steps")
    known = inspect.signature(kind).parameters
    length = {name: steps for name in _LENGTHS if name in known}
    return cast("LRScheduler", _made(kind, chosen, "schedule", optimizer, **{**length, **chosen.arguments}))


def new_loss(chosen: Named, *, reduction: str = "mean") -> nn.Module:
    """Make a loss such as "CrossEntropyLoss". Raises: TrainingDataError if torch.nn has none of this name, or on its arguments."""
    kind = _found(chosen, nn, nn.Module, field="loss")
    if not chosen.name.endswith("Loss"):
        raise TrainingDataError(f"loss={chosen.name!r} is no loss of torch.nn: choose one such as 'MSELoss'")
    arguments = {name: _tensor(value) for name, value in chosen.arguments.items()}
    return cast("nn.Module", _made(kind, chosen, "loss", **{**arguments, "reduction": reduction}))


def _tensor(value: Any) -> Any:
    """Turn a list, such as the weights of classes, into a tensor."""
    return torch.tensor(value) if isinstance(value, list) else value


def _found(chosen: Named, module: ModuleType, kind: type[T], *, field: str) -> type[Any]:
    """Find a class of torch by its name. Raises: TrainingDataError, with those that there are."""
    classes = {
        name: each
        for name, each in vars(module).items()
        if isinstance(each, type) and issubclass(each, kind) and each is not kind and not name.startswith("_")
    }
    if chosen.name not in classes:
        raise TrainingDataError(
            f"{field}={chosen.name!r}: {module.__name__} has {', '.join(sorted(classes))}"
        )
    return classes[chosen.name]


def _made(kind: type[Any], chosen: Named, field: str, *given: Any, **arguments: Any) -> Any:
    try:
        return kind(*given, **arguments)
    except (TypeError, ValueError) as error:
        raise TrainingDataError(
            f"{field}={chosen.name!r} does not take arguments={chosen.arguments}: {error}"
        ) from error
