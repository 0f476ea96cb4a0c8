"""First weights of a network that is larger than a worker: built without memory, split, and filled shard by shard.

`without_weights` builds a network whose weights have shapes only (torch's meta device). After it was split among workers,
`fill` gives each worker the memory of its shard and fills it, one module at a time, so that no process ever holds the
network. Each module's random numbers follow from the seed and its name: one worker begins with the weights that many do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from toque.functions.training.errors import TrainingError

Rows = Callable[[range], Tensor]
"""Reads some rows of a weight; a range over all of them reads the whole weight."""
Held = tuple[range, ...]
"""Places of a weight that a worker holds, one range for each of its dimensions."""


class FirstWeights(Protocol):
    """Source of the weights that a training begins with."""

    def of(self, module: nn.Module, path: str) -> Mapping[str, Rows]:
        """Readers of the weights that belong to `module` itself, by name; the module stands at `path` in the network."""


class Stored:
    """First weights of which the result reads those that were not learnt again, so that a training may hold these in less precision."""


@dataclass(frozen=True, slots=True)
class Initialised:
    """First weights that are random numbers. initialise: sets the weights of one module, as `reset_parameters` does."""

    initialise: Callable[[nn.Module], None]
    seed: int

    def of(self, module: nn.Module, path: str) -> Mapping[str, Rows]:
        """Initialise a copy of the module, whole; equal seeds and paths give equal weights."""
        whole: nn.Module = object.__new__(type(module))  # a split module's class refuses to be copied
        vars(whole).update(vars(module))
        whole._parameters = {  # noqa: SLF001 - the copy's own, so that the module keeps its shards
            name: None if weight is None else nn.Parameter(torch.zeros(weight.shape, dtype=weight.dtype))
            for name, weight in module._parameters.items()  # noqa: SLF001 - also those that a module does without
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed(self.seed, path))
            self.initialise(whole)
        return {name: rows_of(weight) for name, weight in whole.named_parameters(recurse=False)}


def rows_of(weight: Tensor) -> Rows:
    """Make a reader of the rows of a weight that is there."""
    return lambda rows: weight[rows.start : rows.stop] if weight.ndim else weight


def reset(module: nn.Module) -> None:
    """Initialise a module of torch by its own `reset_parameters`. Raises: TrainingError if it has none."""
    if not callable(getattr(module, "reset_parameters", None)):
        raise TrainingError(
            f"{type(module).__name__} has weights but no reset_parameters(): give it one, or pass `initialise`"
        )
    module.reset_parameters()  # type: ignore[operator]  # checked above


def hold_frozen_in_bfloat16(net: nn.Module, source: FirstWeights | None) -> None:
    """Give weights without gradients two bytes each, if the source is `Stored`; those that are learnt stay as they are.

    Before the network is filled: then no device has room for more at any time.
    """
    if isinstance(source, Stored):
        for weight in net.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.to(torch.bfloat16)


@contextmanager
def without_weights() -> Iterator[None]:
    """Build networks within whose weights take no memory; buffers are there."""
    handle = register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]  # what it returns is taken
    try:
        yield
    finally:
        handle.remove()


def fill(
    net: nn.Module,
    source: FirstWeights,
    *,
    device: str,
    held: Callable[[Tensor], Held],
    local: Callable[[Tensor], Tensor],
) -> None:
    """Give a network without weights the memory of its shard on `device`, and fill it.

    held: places that this worker holds of a weight; local: the tensor that holds them, the weight itself if it is not split.
    """
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with _same_objects():  # so that a weight that two modules share stays one
        net.to_empty(device=device)
    for name, buffer in net.named_buffers():
        buffer.copy_(buffers[name])
    filled: set[int] = set()
    for path, module in net.named_modules():
        own = {n: w for n, w in module.named_parameters(recurse=False) if id(w) not in filled}
        if own:
            filled |= {id(weight) for weight in own.values()}
            _fill(own, source.of(module, path), held, local)


def _fill(
    own: Mapping[str, nn.Parameter],
    found: Mapping[str, Rows],
    held: Callable[[Tensor], Held],
    local: Callable[[Tensor], Tensor],
) -> None:
    with torch.no_grad():
        for name, weight in own.items():
            part = local(weight)
            rows, *others = held(weight) or (range(1),)
            if part.numel():
                values = found[name](rows)
                for dimension, places in enumerate(others, start=1):
                    values = values.narrow(dimension, places.start, len(places))
                part.copy_(values)


def _to_meta(module: nn.Module, name: str, weight: nn.Parameter | None) -> nn.Parameter | None:  # noqa: ARG001 - torch's hook
    if weight is None or weight.is_meta:
        return weight
    return nn.Parameter(weight.detach().to("meta"), requires_grad=weight.requires_grad)


@contextmanager
def _same_objects() -> Iterator[None]:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _seed(seed: int, path: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=7).digest(), "little")
