"""Process groups of a training: one process, workers with the whole model each, or workers with a shard each."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from functions.training.checkpoints import WHOLE, Shard


class ProcessGroup(Protocol):
    """Collective operations that the training loop needs, as one worker of the group sees them."""

    @property
    def rank(self) -> int:
        """Number of this worker in the group, from 0."""

    @property
    def size(self) -> int:
        """Number of workers in the group."""

    @property
    def device(self) -> str:
        """Device that this worker computes on, as torch names it."""

    @property
    def shard(self) -> Shard:
        """Shard of the weights that this worker holds."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with its gradients averaged over the workers."""

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch through what `wrap` gave; gradients are averaged after the last one only."""

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the workers; every worker has to call it."""

    def local_part(self, tensor: Tensor) -> Tensor:
        """Rows that this worker holds of a weight or its optimiser state; the tensor itself if it is not split."""

    def from_local(self, part: Tensor, like: Tensor) -> Tensor:
        """Distributed tensor made of each worker's `part`, split as `like` is."""

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Gather a tensor that may be split; every worker has to call it."""


class SingleProcess:
    """Process group of one worker, without any communication."""

    def __init__(self, device: str = "cpu") -> None:
        self.rank, self.size, self.device, self.shard = 0, 1, device, WHOLE

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module unchanged, since there are no other gradients."""
        return module

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 - no other worker
        """Do nothing, since gradients of micro-batches add up by themselves."""
        return nullcontext()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the values unchanged, since one worker's sum is the sum."""
        return values

    def local_part(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself, which is not split."""
        return tensor

    def from_local(self, part: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002 - nothing is split
        """Return the part itself, which is the whole tensor."""
        return part

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself, which is not split."""
        return tensor


class ReplicatedGroup(SingleProcess):
    """Processes of torch.distributed that each hold the whole model (DDP), seen by one of them."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device)
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap the module so that its gradients are averaged over the workers."""
        return DistributedDataParallel(module, forward_sync_buffers=False)

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Context that averages gradients after the last micro-batch only."""
        return nullcontext() if last else cast("DistributedDataParallel", module).no_sync()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the workers, in place."""
        torch.distributed.all_reduce(values)
        return values


class ShardedGroup(ReplicatedGroup):
    """Processes that each hold a shard of the weights and of the optimiser's state (FSDP2), seen by one of them.

    A block in a `ModuleList` is gathered for its own pass and released after it; so a worker holds its shard of the
    model and one whole block.
    """

    def __init__(self, device: str = "cpu") -> None:
        from torch.distributed.device_mesh import init_device_mesh  # late: needed to split a model only

        super().__init__(device)
        self.shard = Shard(self.rank, self.size)
        self._mesh = init_device_mesh(torch.device(device).type, (self.size,))

    def wrap(self, module: nn.Module) -> nn.Module:
        """Split the module's weights by rows, in place."""
        from torch.distributed.fsdp import fully_shard  # late: needed to split a model only

        blocks = [each for found in module.modules() if isinstance(found, nn.ModuleList) for each in found]
        for unit in (*reversed(blocks), module):  # blocks within a block before the outer one
            fully_shard(unit, mesh=self._mesh)
        return module

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Context that reduces gradients after the last micro-batch; until then a worker holds them unsplit."""
        from torch.distributed.fsdp import FSDPModule  # late: needed to split a model only

        cast("FSDPModule", module).set_requires_gradient_sync(last)
        return nullcontext()

    def local_part(self, tensor: Tensor) -> Tensor:
        """Rows of a weight that this worker holds."""
        from torch.distributed.tensor import DTensor  # late: needed to split a model only

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def from_local(self, part: Tensor, like: Tensor) -> Tensor:
        """Distributed weight that this worker's `part` is the rows of."""
        from torch.distributed.tensor import DTensor, placement_types  # late: needed to split a model only

        return DTensor.from_local(
            part,
            self._mesh,
            [placement_types.Shard(0)],
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Gather the weight's rows from all workers."""
        from torch.distributed.tensor import DTensor  # late: needed to split a model only

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
