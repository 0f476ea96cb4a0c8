"""CUDA graphs of one program, captured for input shapes that recur: one call then queues the whole run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from cachetools import LRUCache

from toque.ray_apps.predictor.versions.cuda_device import CapturedGraph, Device, Outputs

__all__ = ["MAX_PADDED_ROWS", "REPEATS", "GraphCache"]

REPEATS = 3
"""The occurrence of a shape at which its graph is captured."""
MAX_PADDED_ROWS = 1_024
"""Larger batches are not padded: computing the padding takes longer than a graph saves."""
MAX_GRAPHS = 12
"""The eleven powers of two up to `MAX_PADDED_ROWS`, and one more."""
_MAX_COUNTED = 256
_log = logging.getLogger("ray.serve")

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    inputs: Sequence[torch.Tensor]
    graph: CapturedGraph


class GraphCache:
    """Runs a program on a device, by a captured graph where there is one for its shapes.

    To be used by one thread at a time, in the device's stream, in inference mode. run: the program. limit: graphs
    that are kept; the least recently used one is dropped first.
    """

    def __init__(self, run: Callable[..., Outputs], device: Device, *, limit: int = MAX_GRAPHS) -> None:
        self._run, self._device = run, device
        self._entries: LRUCache[Shapes, _Entry] = LRUCache(limit)
        self._counts: LRUCache[Shapes, int] = LRUCache(_MAX_COUNTED)
        self.unsupported = False
        """Whether the program cannot be captured, so that it is run step by step from then on."""

    def __len__(self) -> int:
        return len(self._entries)

    def copy_in(self, hosts: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Queue the copy of inputs from the host; returns the device tensors that `run` reads."""
        entry = self._entries.get(_shapes(hosts))
        inputs = (
            entry.inputs if entry else [torch.empty_like(h, device=self._device.torch_device) for h in hosts]
        )
        for tensor, host in zip(inputs, hosts, strict=True):
            tensor.copy_(host, non_blocking=True)
        return inputs

    def run(self, inputs: Sequence[torch.Tensor]) -> Outputs:
        """Queue a run on inputs of `copy_in`; the outputs are valid until the next call."""
        shapes = _shapes(inputs)
        entry = self._entries.get(shapes)
        if entry is None and self._is_due(shapes):
            entry = self._capture(shapes, inputs)
        if entry is None:
            return self._run(*inputs)
        entry.graph.replay()
        return entry.graph.outputs

    def clear(self) -> None:
        """Free the memory of all graphs."""
        self._entries.clear()
        self._counts.clear()

    def _is_due(self, shapes: Shapes) -> bool:
        if self.unsupported or any(0 in shape for shape in shapes):  # an empty tensor has no work to record
            return False
        count = self._counts.pop(shapes, 0) + 1
        if count < REPEATS:
            self._counts[shapes] = count
        return count >= REPEATS

    def _capture(self, shapes: Shapes, inputs: Sequence[torch.Tensor]) -> _Entry | None:
        if len(self._entries) >= self._entries.maxsize:
            self._entries.popitem()  # before the capture, so that no more memory is taken
        try:
            entry = _Entry(inputs, self._device.capture(lambda: self._run(*inputs)))
        except RuntimeError as error:
            self.unsupported = True
            self.clear()  # room for what runs step by step
            _log.warning("the program cannot be captured as a CUDA graph and runs step by step: %s", error)
            return None
        self._entries[shapes] = entry
        return entry


def _shapes(tensors: Sequence[torch.Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors)
