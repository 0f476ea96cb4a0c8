"""Process groups of a training: one process, workers with the whole model each, or workers with a shard each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from toque.functions.training.loop.first_weights import FirstWeights, Held, fill
from toque.functions.training.loop.process_groups.host_memory import freed_memory_kept, return_freed_memory

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


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
    def copies(self) -> int:
        """Number of workers that take the same rows, since they split each layer: neighbours by their numbers."""

    @property
    def rows_rank(self) -> int:
        """Number of this worker's rows among the parts of a batch, from 0."""

    @property
    def rows_size(self) -> int:
        """Number of parts of a batch, each taken by `copies` workers."""

    @property
    def host_group(self) -> torch.distributed.ProcessGroup | None:
        """Group of torch for messages between host memories, apart from the steps' own; None for a single process."""

    def broadcast(self, value: T) -> T:
        """Give every worker the value of the first one; every worker has to call it."""

    def place(self, net: nn.Module, weights: FirstWeights | None, *, half: bool) -> nn.Module:
        """Bring the network to this worker's device, in place, and return it with its gradients averaged over the workers.

        weights: of a network that was built without any; half: compute in bfloat16, where the group casts split weights.
        """

    def memory(self) -> AbstractContextManager[None]:
        """Context of a training's steps: what this process does with host memory that they free."""

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch through what `place` gave; `last`: after it the step is taken."""

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the workers; every worker has to call it."""

    def local_part(self, tensor: Tensor) -> Tensor:
        """Rows that this worker holds of a weight or its optimiser state; the tensor itself if it is not split."""

    def from_local(self, part: Tensor, like: Tensor) -> Tensor:
        """Distributed tensor of each worker's `part`, which lies in host memory and stays there; the part if `like` is not split."""

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Gather a tensor that may be split; every worker has to call it."""


class SingleProcess:
    """Process group of one worker, without any communication."""

    def __init__(self, device: str = "cpu") -> None:
        self.rank, self.size, self.device, self.copies = 0, 1, device, 1
        self.host_group: torch.distributed.ProcessGroup | None = None

    @property
    def rows_rank(self) -> int:
        """Number of this worker's rows among the parts of a batch, from 0."""
        return self.rank // self.copies

    @property
    def rows_size(self) -> int:
        """Number of parts of a batch, each taken by `copies` workers."""
        return self.size // self.copies

    def broadcast(self, value: T) -> T:
        """Return the value, which is the first worker's."""
        return value

    def place(self, net: nn.Module, weights: FirstWeights | None, *, half: bool) -> nn.Module:  # noqa: ARG002 - autocast
        """Bring the network to the device, and return it, since there are no other gradients."""
        if weights is not None:
            fill(net, weights, device=self.device, held=self.held, local=self.local_part)
        return net.to(self.device)

    def memory(self) -> AbstractContextManager[None]:
        """Context that keeps what steps on a processor free for the next ones."""
        return freed_memory_kept() if self.device == "cpu" else nullcontext()

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 - no other worker
        """Do nothing, since gradients of micro-batches add up by themselves."""
        return nullcontext()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the values unchanged, since one worker's sum is the sum."""
        return values

    def held(self, tensor: Tensor) -> Held:
        """Places of a tensor that this worker holds: all of them."""
        return tuple(range(size) for size in tensor.shape)

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
            return_freed_memory()
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
        units = (*reversed(blocks), net)  # blocks within a block before the outer one
        meshes = self._meshes(units)
        for unit in units:
            fully_shard(unit, mesh=meshes[unit], mp_policy=policy)
        if self.device == "cpu":  # it has no stream on which the layer before could be gathered meanwhile
            for block in blocks:
                cast("FSDPModule", block).set_modules_to_backward_prefetch([cast("FSDPModule", net)])
        if weights is not None:
            fill(net, weights, device=self.device, held=self.held, local=self.local_part)
        return net

    def _meshes(self, units: Sequence[nn.Module]) -> Mapping[nn.Module, DeviceMesh]:
        """Mesh over which the weights of each unit are split that are in no unit before it."""
        return dict.fromkeys(units, self._mesh)

    def held(self, tensor: Tensor) -> Held:
        """Places of a weight that this worker holds; all of one that is not split."""
        from torch.distributed.tensor import DTensor  # late: needed to split a model only
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        if not isinstance(tensor, DTensor):
            return super().held(tensor)
        placed = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        return tuple(range(start, start + size) for size, start in zip(*placed, strict=True))

    def memory(self) -> AbstractContextManager[None]:
        """Do nothing, since freed layers are given back from the beginning."""
        return nullcontext()

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 - each is alike
        """Context that reduces gradients after each micro-batch, so that a worker never holds those of the whole model."""
        return nullcontext()

    def local_part(self, tensor: Tensor) -> Tensor:
        """Rows of a weight that this worker holds."""
        from torch.distributed.tensor import DTensor  # late: needed to split a model only

        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def from_local(self, part: Tensor, like: Tensor) -> Tensor:
        """Distributed weight that this worker's `part`, in host memory, belongs to; the part itself of one that is not split."""
        from torch.distributed.tensor import DTensor  # late: needed to split a model only

        if not isinstance(like, DTensor):
            return part
        return DTensor.from_local(
            part,
            _on_host(like.device_mesh),  # a tensor is moved to the device of its mesh
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Gather the weight's rows from all workers."""
        from torch.distributed.tensor import DTensor  # late: needed to split a model only

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@cache
def _on_host(mesh: DeviceMesh) -> DeviceMesh:
    """Mesh of the same workers whose tensors lie in host memory; they are saved and read, and never computed with."""
    from torch.distributed.device_mesh import DeviceMesh  # late: needed to split a model only

    if mesh.device_type == "cpu":
        return mesh
    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names, _init_backend=False)
