"""Scores on a CUDA device: inputs go there from pinned memory, outputs come back into it, one thread at a time.

Rows are padded with zeros up to a power of two where that changes no answer, so that batches of any size have few
shapes, whose graphs are soon captured.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch

from toque.kernels.hashing import hash_strings
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import DeviceFailed, DeviceOutOfMemory
from toque.ray_apps.predictor.versions.cuda_device import Device, Outputs, is_out_of_memory
from toque.ray_apps.predictor.versions.cuda_graphs import MAX_PADDED_ROWS, REPEATS, GraphCache
from toque.ray_apps.predictor.versions.loaded import Scorer
from toque.ray_apps.predictor.versions.parity import difference, has_open_rows, rows_are_independent, samples
from toque.registry.models import Signature

__all__ = ["CudaScorer", "StagingBuffer", "UnfitForDevice"]


_log = logging.getLogger("ray.serve")


class UnfitForDevice(Exception):  # noqa: N818 - a reason to stay on the CPU
    """A program does not answer on the device as it does on the CPU."""


class StagingBuffer:
    """Pinned memory of one input or output, reused by every request; it grows to the largest."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor in the buffer, holding whatever was there before."""
        size = prod(shape) * dtype.itemsize
        if size > self._bytes.numel():
            self._bytes = self._device.pinned(1 << (size - 1).bit_length())
        return self._bytes[:size].view(dtype).reshape(tuple(shape))

    def filled(self, array: Array, rows: int | None) -> torch.Tensor:
        """Copy an input into the buffer, with rows of zeros up to `rows`."""
        shape = array.shape if rows is None else (rows, *array.shape[1:])
        tensor = self.tensor(shape, torch.from_numpy(np.empty(0, array.dtype)).dtype)
        room = tensor.numpy()
        if rows is None:
            room[...] = array
        else:
            room[: len(array)] = array
            room[len(array) :] = 0  # never another caller's rows
        return tensor


class CudaScorer:
    """Scores inputs that are known to fit a signature. Safe to call from several threads.

    run: the program on the device, from tensors in the signature's order to a tuple of tensors.
    """

    def __init__(self, run: Callable[..., Outputs], signature: Signature, device: Device) -> None:
        self._texts = [(spec.name, spec.datatype == "BYTES") for spec in signature.inputs]
        self._names = [spec.name for spec in signature.outputs]
        self._signature = signature
        self.device, self._lock = device, threading.Lock()
        self._input_buffers = [StagingBuffer(device) for _ in self._texts]
        self._output_buffers = [StagingBuffer(device) for _ in self._names]
        self.graphs = GraphCache(run, device)
        self.pads = False

    def verify(self, checked: Scorer, example: Mapping[str, Any], hashed: Mapping[str, Array]) -> None:
        """Decide whether rows are padded, and compare all answers, by graphs too, with the program on the CPU.

        example, hashed: the signature's example, with texts and with their hashes.
        Raises: UnfitForDevice with the largest difference; DeviceOutOfMemory, DeviceFailed.
        """
        self.pads = has_open_rows(self._signature) and rows_are_independent(checked, hashed)
        for inputs in samples(example, self._signature):
            wanted = checked.predict(inputs)
            for _ in range(REPEATS + 1):
                gap = difference(wanted, self.predict(inputs))
                if gap is not None:
                    raise UnfitForDevice(gap)

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        """Score inputs, texts hashed here; returns the outputs by name.

        Raises: ValueError for bytes that are no text; DeviceOutOfMemory if this request does not fit; DeviceFailed.
        """
        arrays = self.arrays(inputs)
        with self.exclusive():
            placed = self.copy_in(arrays)
            return self.copy_out(self.graphs.run(placed), arrays)

    def arrays(self, inputs: Mapping[str, Any]) -> list[Array]:
        """Inputs in the program's order, texts as their hashes."""
        return [hash_strings(inputs[name]) if text else inputs[name] for name, text in self._texts]

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the buffers and the stream. Raises: DeviceOutOfMemory, DeviceFailed for errors of the device inside."""
        with self._lock, torch.inference_mode(), self.device.stream():
            try:
                yield
            except RuntimeError as error:
                if is_out_of_memory(error):
                    self.graphs.clear()
                    _log.warning("no room on the CUDA device for a request: %s", error)
                    raise DeviceOutOfMemory(
                        "no room on the CUDA device for this request; send fewer rows"
                    ) from error
                if isinstance(error, torch.AcceleratorError) and not self._works():
                    _log.exception("the CUDA device failed")
                    raise DeviceFailed(
                        "the CUDA device failed; its replica is replaced, send again soon"
                    ) from error
                raise

    def copy_in(self, arrays: Sequence[Array]) -> Sequence[torch.Tensor]:
        """Queue the copy of inputs to the device, padded."""
        rows = self._padded_rows(arrays)
        hosts = [
            buffer.filled(array, rows) for buffer, array in zip(self._input_buffers, arrays, strict=True)
        ]
        return self.graphs.copy_in(hosts)

    def copy_out(self, outputs: Outputs, arrays: Sequence[Array]) -> Mapping[str, Array]:
        """Wait for outputs and copy them to the host, without the padding."""
        if self.pads:
            outputs = tuple(output[: len(arrays[0])] for output in outputs)
        hosts = [
            buffer.tensor(o.shape, o.dtype) for buffer, o in zip(self._output_buffers, outputs, strict=True)
        ]
        for host, output in zip(hosts, outputs, strict=True):
            host.copy_(output, non_blocking=True)
        self.device.wait()
        return {name: host.numpy().copy() for name, host in zip(self._names, hosts, strict=True)}

    def _works(self) -> bool:
        """Whether the device still does any work: after some errors nothing in this process succeeds."""
        try:
            self.device.wait()
        except torch.AcceleratorError:
            return False
        return True

    def _padded_rows(self, arrays: Sequence[Array]) -> int | None:
        if not self.pads or self.graphs.unsupported or len(arrays[0]) > MAX_PADDED_ROWS:
            return None
        return 1 << max(0, len(arrays[0]) - 1).bit_length()
