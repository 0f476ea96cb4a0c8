"""A CUDA device as a scorer uses it: pinned memory, one stream of work, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["CapturedGraph", "CudaDevice", "Device", "Outputs", "is_out_of_memory"]

Outputs = tuple[torch.Tensor, ...]
_WARM_UPS = 3
_MEMORY_ALLOCATION = 2
"""cudaErrorMemoryAllocation, the `error_code` of an AcceleratorError."""


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A recorded run that can be repeated by one call.

    replay: repeats it on the same input tensors. outputs: the tensors that it writes.
    """

    replay: Callable[[], None]
    outputs: Outputs


class Device(Protocol):
    """An accelerator with one stream of its own, in which work is done in order."""

    @property
    def torch_device(self) -> torch.device:
        """The torch device that tensors are placed on."""
        ...

    def stream(self) -> AbstractContextManager[object]:
        """Context in which work is queued in this object's stream, beside other work of the device."""
        ...

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """Bytes of host memory that the device copies from and to by itself."""
        ...

    def wait(self) -> None:
        """Return when everything queued in the stream is done."""
        ...

    def capture(self, run: Callable[[], Outputs]) -> CapturedGraph:
        """Record a run for replays. Raises: what the device raises for a run that cannot be recorded."""
        ...


class CudaDevice:
    """The first CUDA device that this process sees: Ray shows a replica the one that it reserved."""

    def __init__(self) -> None:
        torch.backends.cudnn.allow_tf32 = False  # answers are to be those of the CPU, to fp32's precision
        self.torch_device = torch.device("cuda", 0)
        self._stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]

    def stream(self) -> AbstractContextManager[object]:
        """Context of this object's stream; the default stream cannot be captured."""
        return torch.cuda.stream(self._stream)

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """Allocate `size_bytes` of pinned host memory."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def wait(self) -> None:
        """Wait for this object's stream alone; other Python threads go on meanwhile."""
        self._stream.synchronize()

    def capture(self, run: Callable[[], Outputs]) -> CapturedGraph:
        """Capture a CUDA graph with its own memory, after warm-up runs in which libraries choose and allocate.

        Waits for the whole device once.
        Raises: RuntimeError, AcceleratorError for a run that waits or copies to the host.
        Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs".
        """
        for _ in range(_WARM_UPS):  # in this thread: libraries have handles for each
            run()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may allocate meanwhile
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            outputs = run()
        return CapturedGraph(graph.replay, outputs)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory does not suffice: on the device, pinned, or for a CUDA library."""
    code = getattr(error, "error_code", None)
    out = isinstance(error, torch.OutOfMemoryError) or code == _MEMORY_ALLOCATION
    return out or "STATUS_ALLOC_FAILED" in str(error)
