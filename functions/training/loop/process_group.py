"""Process groups of a training: one process, workers with the whole model each, or workers with a shard each."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from functions.training.loop.first_weights import FirstWeights, fill
from functions.training.workers import WHOLE, Shard

T = TypeVar("T")
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_RETURNED_BYTES = 128 << 10  # its default, which it raises unless it is set


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

    @property
    def host_group(self) -> torch.distributed.ProcessGroup | None:
        """Group of torch for messages between host memories, apart from the steps' own; None for a single process."""

    def broadcast(self, value: T) -> T:
        """Give every worker the value of the first one; every worker has to call it."""

    def place(self, net: nn.Module, weights: FirstWeights | None, *, half: bool) -> nn.Module:
        """Bring the network to this worker's device, in place, and return it with its gradients averaged over the workers.

        weights: of a network that was built without any; half: compute in bfloat16, where the group casts split weights.
        """

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch through what `place` gave; `last`: after it the step is taken."""

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
        self.host_group: torch.distributed.ProcessGroup | None = None

    def broadcast(self, value: T) -> T:
        """Return the value, which is the first worker's."""
        return value

    def place(self, net: nn.Module, weights: FirstWeights | None, *, half: bool) -> nn.Module:  # noqa: ARG002 - autocast
        """Bring the network to the device, and return it, since there are no other gradients."""
        if weights is not None:
            fill(net, weights, device=self.device, shard=self.shard, local=self.local_part)
        return net.to(self.device)

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
        self.host_group = torch.distributed.new_group(backend="gloo")

    def broadcast(self, value: T) -> T:
        """Give every worker the value of the first one."""
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.host_group)
        return values[0]

    def place(self, net: nn.Module, weights: FirstWeights | None, *, half: bool) -> nn.Module:
        """Bring the network to the device, wrapped so that its gradients are averaged over the workers."""
        return DistributedDataParallel(super().place(net, weights, half=half), forward_sync_buffers=False)

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
        if device == "cpu":
            _return_freed_memory()
        self.shard = Shard(self.rank, self.size)
        self._mesh = init_device_mesh(torch.device(device).type, (self.size,))

    def place(self, net: nn.Module, weights: FirstWeights | None, *, half: bool) -> nn.Module:
        """Split the network's weights by rows, in place, before any worker has memory for them."""
        from torch.distributed.fsdp import (  # late: needed to split a model only
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
        )

        low = torch.bfloat16 if half else None
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if half else None)
        blocks = [each for found in net.modules() if isinstance(found, nn.ModuleList) for each in found]
        for unit in (*reversed(blocks), net):  # blocks within a block before the outer one
            fully_shard(unit, mesh=self._mesh, mp_policy=policy)
        if self.device == "cpu":  # it has no stream on which the layer before could be gathered meanwhile
            for block in blocks:
                cast("FSDPModule", block).set_modules_to_backward_prefetch([cast("FSDPModule", net)])
        if weights is not None:
            fill(net, weights, device=self.device, shard=self.shard, local=self.local_part)
        return net

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 - each is alike
        """Context that reduces gradients after each micro-batch, so that a worker never holds those of the whole model."""
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


def _return_freed_memory() -> None:
    """Let glibc return freed tensors to the system: by default it comes to keep blocks of up to 32 MiB, and so gathered layers."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries keep no such blocks
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES)
