"""Updates of a network's weights: clipped gradients, with optimizer, schedule and loss of torch by name, resumable."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import Named, RecipeParams

_RISE = 0.25  # part of one cycle in which the learning rate rises
T = TypeVar("T")
_LENGTHS = ("total_steps", "T_max")  # arguments of schedules that mean the number of all steps
_FUSED = {"Adam", "AdamW", "SGD", "Adagrad"}  # that torch computes in one kernel


class Updates:
    """Applies gradients to a network's weights, step by step of `steps`, as its settings say.

    whole: gathers a tensor that may be split among workers.
    """

    def __init__(
        self,
        net: nn.Module,
        settings: RecipeParams,
        *,
        steps: int,
        whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self._net, self._settings, self._steps, self._whole = net, settings, steps, whole
        groups = _groups(net, settings.weight_decay)
        self._optimizer = new_optimizer(
            settings.optimizer, groups, lr=settings.lr, weight_decay=settings.weight_decay
        )
        if len(_by_mesh(self.weights)) > 1:  # torch's fused loops over all weights want one mesh
            for group in self._optimizer.param_groups:
                group.update({"foreach": False} if "foreach" in group else {})
        self._schedule = self._new_schedule()

    def apply(self) -> bool:
        """Take a step by the gradients that are there, clipped by their norm over all shards, and clear them.

        Returns whether it was taken, the same in all workers: with `nonfinite="skip"` gradients that are no finite numbers change
        nothing, and the schedule goes on.
        """
        skips, clip, taken = self._settings.nonfinite == "skip", self._settings.clip, True
        if skips or clip is not None:
            norm = self._clipped(math.inf if clip is None else clip)
            taken = not skips or bool(norm.isfinite())
        with warnings.catch_warnings() if not taken else nullcontext():
            if taken:
                self._optimizer.step()
            else:
                warnings.simplefilter("ignore", UserWarning)  # a schedule wants a step of the optimizer first
            self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        return taken

    def _clipped(self, most: float) -> Tensor:
        """Clip the gradients by their norm over all weights and shards, and return it. torch does so for weights of one mesh alone."""
        weights = [weight for weight in self._net.parameters() if weight.grad is not None]
        meshes = _by_mesh(weights)
        if len(meshes) < 2:  # noqa: PLR2004 - torch's own does
            return self._whole(nn.utils.clip_grad_norm_(weights, most))
        norms = [
            self._whole(nn.utils.get_total_norm([weight.grad for weight in alike if weight.grad is not None]))
            for alike in meshes
        ]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        for alike in meshes:
            nn.utils.clip_grads_with_norm_(alike, most, norm)
        return norm

    @property
    def weights(self) -> list[nn.Parameter]:
        """Weights in the optimizer's order, by whose numbers `moments` are named."""
        return [weight for group in self._optimizer.param_groups for weight in group["params"]]

    def moments(self) -> dict[str, Tensor]:
        """State of the optimizer: tensors named by the number of a weight and their own name."""
        state = self._optimizer.state_dict()["state"]
        return {
            f"{number}.{name}": value
            for number, own in state.items()
            for name, value in own.items()
            if isinstance(value, Tensor)
        }

    def facts(self) -> dict[str, Any]:
        """State of a schedule chosen by name, as JSON; one cycle follows from the settings and the step."""
        if self._settings.schedule is None:
            return {}
        groups = [{n: v for n, v in group.items() if n != "params"} for group in self._optimizer.param_groups]
        return {"schedule": _plain(self._schedule.state_dict()), "groups": [_plain(each) for each in groups]}

    def resume(self, step: int, moments: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue after `step` steps from what `moments` and `facts` gave; one cycle goes on under these settings."""
        state = self._optimizer.state_dict()
        for full, value in moments.items():
            number, _, name = full.partition(".")
            state["state"].setdefault(int(number), {})[name] = value
        if "schedule" in facts and self._settings.schedule is not None:
            self._schedule.load_state_dict(self._schedule.state_dict() | facts["schedule"])
            for group, saved in zip(state["param_groups"], facts["groups"], strict=True):
                group.update(saved)
        else:
            rate = self._settings.lr * self._rate(step)
            rates = [rate for _ in state["param_groups"]]
            position = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
            self._schedule.load_state_dict(self._schedule.state_dict() | position)
            for group in state["param_groups"]:
                group["lr"] = rate
        self._optimizer.load_state_dict(state)

    def _new_schedule(self) -> LRScheduler:
        chosen = self._settings.schedule
        if chosen is None:
            return LambdaLR(self._optimizer, self._rate)
        return new_schedule(chosen, self._optimizer, steps=self._steps)

    def _rate(self, step: int) -> float:
        """Learning rate at a step, as a share of the peak."""
        return one_cycle(step, self._steps)


def one_cycle(step: int, total: int) -> float:
    """Learning rate at a step, as a share of the peak: a linear rise over the first quarter, then half a cosine down."""
    rise = max(1, round(_RISE * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))


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


def _by_mesh(weights: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Weights that are split over the same workers, together."""
    found: dict[Any, list[nn.Parameter]] = {}
    for weight in weights:
        found.setdefault(getattr(weight, "device_mesh", None), []).append(weight)
    return list(found.values())


def _groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of the optimizer: weights decay, biases do not."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Part of a state that is JSON; the rest is made anew."""
    found = {}
    for name, value in state.items():
        try:
            found[name] = json.loads(json.dumps(value))
        except TypeError:
            continue
    return found


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
