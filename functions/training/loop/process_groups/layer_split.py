"""Workers on a mesh of two dimensions: along one they split each layer (tensor parallel), along the other the rows (FSDP2).

A layer that is too large for one worker, or whose pass takes too long, is split within: the first matrix of a pair by its outputs,
the second by its inputs, so that the pair needs one sum over the workers. torch does it (`parallelize_module`); the network says
which matrices are which: a `transformers` one by its own plan, a recipe's by an attribute `layer_split`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from toque.functions.training.errors import TrainingError
from toque.functions.training.loop.first_weights import FirstWeights
from toque.functions.training.loop.process_groups.process_group import ShardedGroup

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Side = Literal["colwise", "rowwise"]
"""By which side a matrix is split: by its outputs, or by its inputs; their names are those of torch."""
_HEADS = ("num_attention_heads", "num_key_value_heads")


class LayerSplitGroup(ShardedGroup):
    """Processes of which `tensor` neighbours split each layer, and the rest of the weights and the rows are split over all.

    Neighbours compute the same rows, so that a batch has as many parts as there are groups of them.
    """

    def __init__(self, device: str, tensor: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh  # late: needed to split a model only

        super().__init__(device)
        self.copies = tensor
        kind, shape = torch.device(device).type, (self.size // tensor, tensor)
        self._layers = init_device_mesh(kind, shape, mesh_dim_names=("rows", "layer"))
        # It warns that gathering a weight takes two messages, in each worker.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

    def place(self, net: nn.Module, weights: FirstWeights | None, *, half: bool) -> nn.Module:
        """Split each layer, then all weights by rows, in place, before any worker has memory for them.

        Raises: TrainingError if the network does not say how its layers are split, or cannot be split so.
        """
        from torch.distributed.tensor.parallel import (  # late: needed to split a model only
            ColwiseParallel,
            RowwiseParallel,
            parallelize_module,
        )

        sides = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
        split = layer_split(net, self.copies)
        parallelize_module(net, self._layers["layer"], {path: sides[side]() for path, side in split.items()})
        return super().place(net, weights, half=half)

    def _meshes(self, units: Sequence[nn.Module]) -> Mapping[nn.Module, DeviceMesh]:
        """Weights beside a split layer are split over the other dimension alone, since torch wants one mesh in a unit; others over all."""
        from torch.distributed.tensor import DTensor  # late: needed to split a model only

        found, seen = {}, set[int]()
        for unit in units:
            own = [weight for weight in unit.parameters() if id(weight) not in seen]
            seen |= {id(weight) for weight in own}
            found[unit] = (
                self._layers["rows"] if any(isinstance(each, DTensor) for each in own) else self._mesh
            )
        return found


def layer_split(net: nn.Module, workers: int) -> dict[str, Side]:
    """Find by which side each matrix of a network's layers is split among so many workers, by its path.

    Raises: TrainingError if the network does not say it, or a matrix or the heads of its attention cannot be split evenly.
    """
    said: Mapping[str, str] = getattr(net, "layer_split", None) or getattr(net, "_tp_plan", None) or {}
    layers = {
        pattern: side for pattern, side in said.items() if side in {"colwise", "rowwise"} or "*" in pattern
    }
    if not layers:
        raise TrainingError(
            f"tensor={workers}: {type(net).__name__} does not say how its layers are split; give it `layer_split`, as in "
            "{'blocks.*.first': 'colwise', 'blocks.*.second': 'rowwise'}, or leave tensor out"
        )
    found: dict[str, Side] = {}
    for path, module in net.named_modules():
        side = next((side for pattern, side in layers.items() if fnmatchcase(path, pattern)), None)
        if side is not None:
            found[path] = _checked(path, module, side, workers)
    if not found:
        raise TrainingError(
            f"tensor={workers}: {type(net).__name__} has no module of the names that it says are split, such as {next(iter(layers))!r}; "
            "leave tensor out"
        )
    _check_heads(net, workers)
    return found


def _checked(path: str, module: nn.Module, side: str, workers: int) -> Side:
    """Check that a matrix can be split so. Raises: TrainingError."""
    if side not in {"colwise", "rowwise"} or not isinstance(module, nn.Linear):
        raise TrainingError(
            f"tensor={workers}: {path} is a {type(module).__name__}, to be split {side!r}: only linear layers are, by 'colwise' or "
            "'rowwise'; leave tensor out"
        )
    size, what = (module.out_features, "outputs") if side == "colwise" else (module.in_features, "inputs")
    if size % workers:
        raise TrainingError(
            f"tensor={workers}: {path} has {size} {what}, which so many workers do not share evenly"
        )
    return cast("Side", side)


def _check_heads(net: nn.Module, workers: int) -> None:
    config: Any = getattr(net, "config", None)
    for name in _HEADS:
        heads = getattr(config, name, None)
        if heads is not None and heads % workers:
            raise TrainingError(
                f"tensor={workers}: the network has {name}={heads}, which so many workers do not share evenly; give a divisor"
            )
