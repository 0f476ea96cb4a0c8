"""What a card can do for a scorer: hold what is copied to it, run one thing after the other, do it again at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["Captured", "Card", "CudaCard", "Outputs", "is_full"]

Outputs = tuple[torch.Tensor, ...]
_WARM_UPS = 3
_MEMORY_ALLOCATION = 2
"""cudaErrorMemoryAllocation, the `error_code` of an AcceleratorError."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A run that can be done again. replay: does it, reading the same tensors. outputs: the tensors it writes."""

    replay: Callable[[], None]
    outputs: Outputs


class Card(Protocol):
    """A device, and an order of our own in which it works."""

    @property
    def device(self) -> torch.device:
        """Where tensors are."""
        ...

    def stream(self) -> AbstractContextManager[object]:
        """What is begun inside is done one after the other, and beside what else the card does."""
        ...

    def host(self, size_bytes: int) -> torch.Tensor:
        """Bytes of this machine's memory that the card copies from and to by itself."""
        ...

    def wait(self) -> None:
        """Return when what was begun in the stream is done."""
        ...

    def capture(self, run: Callable[[], Outputs]) -> Captured:
        """Record a run. Raises: what the card raises for a run that cannot be recorded."""
        ...


class CudaCard:
    """The first card that this process sees: Ray shows a replica the one that it reserved."""

    def __init__(self) -> None:
        torch.backends.cudnn.allow_tf32 = False  # answers are to be those of the CPU, to fp32's precision
        self.device = torch.device("cuda", 0)
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def stream(self) -> AbstractContextManager[object]:
        """Ours, and not the default one, which cannot be captured."""
        return torch.cuda.stream(self._stream)

    def host(self, size_bytes: int) -> torch.Tensor:
        """Pinned memory."""
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def wait(self) -> None:
        """For our stream alone; other threads of Python go on meanwhile."""
        self._stream.synchronize()

    def capture(self, run: Callable[[], Outputs]) -> Captured:
        """A CUDA graph with memory of its own, after some runs in which libraries choose and allocate what they need.

        Waits for the whole card once. Raises: RuntimeError, AcceleratorError for a run that waits or copies to the host.
        Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, "CUDA Graphs".
        """
        for _ in range(_WARM_UPS):  # in this thread: libraries have handles for each
            run()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may allocate meanwhile
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            outputs = run()
        return Captured(graph.replay, outputs)


def is_full(error: RuntimeError) -> bool:
    """Whether an error of the card says that memory does not suffice: on the card, pinned, or for a library of CUDA's."""
    code = getattr(error, "error_code", None)
    out = isinstance(error, torch.OutOfMemoryError) or code == _MEMORY_ALLOCATION
    return out or "STATUS_ALLOC_FAILED" in str(error)
