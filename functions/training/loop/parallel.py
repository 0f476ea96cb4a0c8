"""The workers that train together, as one of them sees it: alone, each with the whole model, or each with a share of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from functions.training.checkpoints import WHOLE, Share


class World(Protocol):
    """What the training loop asks of the other workers."""

    @property
    def rank(self) -> int:
        """Which of them this one is, from 0."""

    @property
    def size(self) -> int:
        """How many they are."""

    @property
    def device(self) -> str:
        """Where this one computes, as torch names it."""

    @property
    def share(self) -> Share:
        """What this one holds of the weights."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the workers."""

    def piece(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Within it a piece of a step is passed through what `wrap` gave; only after the last do gradients meet."""

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the workers."""

    def part(self, tensor: Tensor) -> Tensor:
        """What this worker holds of a weight, or of what goes with one; the tensor itself if that is all of it."""

    def joined(self, part: Tensor, like: Tensor) -> Tensor:
        """A part as the tensor that it is a part of, which is split as `like` is."""

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor that may be split; every worker has to ask."""


class Alone:
    """A world of one worker."""

    def __init__(self, device: str = "cpu") -> None:
        self.rank, self.size, self.device, self.share = 0, 1, device, WHOLE

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def piece(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 - there is nobody to meet
        """Nothing: gradients add up by themselves."""
        return nullcontext()

    def total(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def part(self, tensor: Tensor) -> Tensor:
        """All of it."""
        return tensor

    def joined(self, part: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002 - nothing is split
        """It is whole."""
        return part

    def whole(self, tensor: Tensor) -> Tensor:
        """It is whole."""
        return tensor


class Replicas(Alone):
    """One worker among the processes of torch.distributed; each holds the whole model (DDP)."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the workers."""
        return DistributedDataParallel(module, forward_sync_buffers=False)

    def piece(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """One that averages gradients after the last piece."""
        return nullcontext() if last else cast("DistributedDataParallel", module).no_sync()

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over the workers."""
        torch.distributed.all_reduce(values)
        return values


class Shards(Replicas):
    """One worker of several that each hold a share of the model's weights and of the optimiser's state (FSDP2).

    What stands in a `ModuleList` is gathered for its own pass and let go after it; so a worker holds its share of the
    model and one block of it.
    """

    def __init__(self, device: str = "cpu") -> None:
        from torch.distributed.device_mesh import (
            init_device_mesh,
        )  # late: only who splits a model waits for its import

        super().__init__(device)
        self.share = Share(self.rank, self.size)
        self._mesh = init_device_mesh(torch.device(device).type, (self.size,))

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself, its weights split by rows."""
        from torch.distributed.fsdp import fully_shard  # late: the same

        blocks = [each for found in module.modules() if isinstance(found, nn.ModuleList) for each in found]
        for unit in (*reversed(blocks), module):  # what is within a block before the block
            fully_shard(unit, mesh=self._mesh)
        return module

    def piece(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """One that shares gradients out after the last piece; until then a worker holds those of the whole model."""
        from torch.distributed.fsdp import FSDPModule  # late: the same

        cast("FSDPModule", module).set_requires_gradient_sync(last)
        return nullcontext()

    def part(self, tensor: Tensor) -> Tensor:
        """Its rows of a weight."""
        from torch.distributed.tensor import DTensor  # late: the same

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def joined(self, part: Tensor, like: Tensor) -> Tensor:
        """The weight that `part` is the rows of."""
        from torch.distributed.tensor import DTensor, Shard  # late: the same

        return DTensor.from_local(
            part, self._mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride()
        )

    def whole(self, tensor: Tensor) -> Tensor:
        """The weight with the rows of all."""
        from torch.distributed.tensor import DTensor  # late: the same

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
