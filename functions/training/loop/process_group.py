"""Process groups of a training: one process, or workers with the whole model, a shard of it, or split layers each.

Layers are split on a mesh of two dimensions: along one workers split each layer (tensor parallel), along the other the rows
(FSDP2). The first matrix of a pair is split by its outputs, the second by its inputs, so that the pair needs one sum over the
workers. torch does it (`parallelize_module`); the network says which matrices are which: a `transformers` one by its own plan, a
recipe's by an attribute `layer_split`.
Host memory that tensors have freed is kept for the next step, or given back at once, by `mallopt` of glibc (its manual, "Malloc
Tunable Parameters"); other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from toque.functions.training.errors import TrainingError
from toque.functions.training.loop.first_weights import FirstWeights, Held, fill, hold_frozen_in_bfloat16

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


T = TypeVar("T")
_C = ctypes.CDLL(None)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_NEVER_TRIM, _MIB = -1, 1 << 20
_MOST_MMAP_THRESHOLD = 32 * _MIB  # larger blocks go back to the system in any case
_THREAD_HEAP = 64 * _MIB  # memory of a thread is kept in heaps of this size
_DEFAULT_THRESHOLD = _DEFAULT_PAD = 128 << 10  # of malloc
_lock = threading.Lock()
_keeping = 0  # contexts that keep freed memory now
Side = Literal["colwise", "rowwise"]
"""By which side a matrix is split: by its outputs, or by its inputs; their names are those of torch."""
_HEADS = ("num_attention_heads", "num_key_value_heads")


class ProcessGroup:
    """Workers that train together, as one of them sees them; this one is of a single worker, without any communication.

    rank, size: number of this worker in the group, from 0, and how many there are; device: that it computes on, as torch names it.
    copies: workers that take the same rows, since they split each layer: neighbours by their numbers.
    host_group: of torch, for messages between host memories, apart from the steps' own; None for a single process.
    Every worker has to call `broadcast`, `all_reduce_sum` and `full_tensor`.
    """

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
        """Give every worker the value of the first one."""
        return value

    def place(self, net: nn.Module, weights: FirstWeights | None, *, half: bool) -> nn.Module:
        """Bring the network to this worker's device, in place, and return it with its gradients averaged over the workers.

        weights: of a network that was built without any; half: compute in bfloat16, in which split weights are gathered, and frozen
        ones lie in memory if they are `Stored`.
        """
        if half:
            hold_frozen_in_bfloat16(net, weights)
        if weights is not None:
            fill(net, weights, device=self.device, held=self.held, local=self.local_part)
        return net.to(self.device)

    def memory(self) -> AbstractContextManager[None]:
        """Context of a training's steps, which keeps what steps on a processor free for the next ones."""
        return freed_memory_kept() if self.device == "cpu" else nullcontext()

    def micro_step(self, module: nn.Module, *, last: bool) -> AbstractContextManager[None]:  # noqa: ARG002 - no other worker
        """Context of one micro-batch through what `place` gave; `last`: after it the step is taken."""
        return nullcontext()

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum `values` over the workers."""
        return values

    def held(self, tensor: Tensor) -> Held:
        """Places of a weight that this worker holds; all of one that is not split."""
        return tuple(range(size) for size in tensor.shape)

    def local_part(self, tensor: Tensor) -> Tensor:
        """Rows that this worker holds of a weight or its optimiser state; the tensor itself if it is not split."""
        return tensor

    def from_local(self, part: Tensor, like: Tensor) -> Tensor:  # noqa: ARG002 - nothing is split
        """Distributed tensor of each worker's `part`, which lies in host memory and stays there; the part if `like` is not split."""
        return part

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Gather a tensor that may be split."""
        return tensor


class SingleProcess(ProcessGroup):
    """Process group of one worker."""


class ReplicatedGroup(ProcessGroup):
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

        if half:
            hold_frozen_in_bfloat16(net, weights)
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


@cache
def _on_host(mesh: DeviceMesh) -> DeviceMesh:
    """Mesh of the same workers whose tensors lie in host memory; they are saved and read, and never computed with."""
    from torch.distributed.device_mesh import DeviceMesh  # late: needed to split a model only

    if mesh.device_type == "cpu":
        return mesh
    return DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names, _init_backend=False)


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


def return_freed_memory() -> None:
    """Give freed tensors back to the system from now on: by default glibc comes to keep blocks of up to 32 MiB, and so gathered layers."""
    _set(_MMAP_THRESHOLD, _DEFAULT_THRESHOLD)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what a step frees for the next one; at the end of the last such context all of it goes back.

    By default glibc gives back the free end of its heap, and a thread's heaps as they empty. Whether gradients are such an end is
    chance: what a checkpoint leaves in memory decides it. Then the kernel has to clear their pages anew in each step, which took
    .4 s for .7 GiB.
    """
    global _keeping  # noqa: PLW0603 - the allocator is the process's own, too
    with _lock:
        _keeping += 1
        _set(_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
        _set(_TRIM_THRESHOLD, _NEVER_TRIM)
        _set(_TOP_PAD, _THREAD_HEAP)  # a heap that empties stays if this much is not left before it
    try:
        yield
    finally:
        with _lock:
            _keeping -= 1
            if not _keeping:
                _set(_TRIM_THRESHOLD, 2 * _MOST_MMAP_THRESHOLD)  # where glibc's own adaption ends
                _set(_TOP_PAD, _DEFAULT_PAD)
                if trim := getattr(_C, "malloc_trim", None):
                    trim(ctypes.c_size_t(0))


def _set(parameter: int, value: int) -> None:
    if mallopt := getattr(_C, "mallopt", None):
        mallopt(parameter, value)
