"""Scores on a CUDA device: inputs go there from pinned memory, outputs come back into it, one thread at a time.

Rows are padded with zeros up to a power of two where that changes no answer, so that batches of any size have few
shapes. Those that recur are soon captured as CUDA graphs: one call then queues the whole run. A program's outputs on
the device are compared with the CPU's before it takes requests.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from cachetools import LRUCache

from toque.kernels.hashing import hash_strings
from toque.ray_apps.predictor.protocol.datatypes import Array
from toque.ray_apps.predictor.protocol.errors import DeviceFailed, DeviceOutOfMemory
from toque.ray_apps.predictor.versions.loaded import Scorer
from toque.registry.models import Signature

REPEATS = 3

"""The occurrence of a shape at which its graph is captured."""

MAX_PADDED_ROWS = 1_024

"""Larger batches are not padded: computing the padding takes longer than a graph saves."""

MAX_GRAPHS = 12

"""The eleven powers of two up to `MAX_PADDED_ROWS`, and one more."""

_MAX_COUNTED = 256

Shapes = tuple[tuple[int, ...], ...]
_WARM_UPS = 3
_MEMORY_ALLOCATION = 2

"""cudaErrorMemoryAllocation, the `error_code` of an AcceleratorError."""
TOLERANCES: dict[str, tuple[float, float]] = {
    "float16": (1e-2, 1e-3),
    "float32": (1e-4, 1e-5),
    "float64": (1e-4, 1e-5),  # as a rule fp32's, cast
}
"""Relative and absolute tolerance by dtype; other dtypes must be equal."""
Outputs = tuple[torch.Tensor, ...]
Arrays = Mapping[str, Array]
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


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A recorded run that can be repeated by one call.

    replay: repeats it on the same input tensors. outputs: the tensors that it writes.
    """

    replay: Callable[[], None]
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class _Entry:
    inputs: Sequence[torch.Tensor]
    graph: CapturedGraph


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


class _Model(Protocol):
    def predict(self, inputs: Mapping[str, Any]) -> Arrays: ...


def has_open_rows(signature: Signature) -> bool:
    """Whether the first dimension of all inputs and outputs is open, so that a request chooses its number of rows."""
    specs = [*signature.inputs, *signature.outputs]
    return bool(signature.inputs) and all(spec.shape[:1] == [-1] for spec in specs)


def samples(example: Arrays, signature: Signature) -> list[Arrays]:
    """Inputs to compare two runs on: the signature's example, and three copies of its rows where rows are open."""
    if not has_open_rows(signature):
        return [example]
    return [example, {name: np.concatenate([array] * 3) for name, array in example.items()}]


def difference(wanted: Arrays, got: Arrays) -> str | None:
    """Describe the first output that differs by more than its tolerance; None if all agree."""
    for name, array in wanted.items():
        other = got[name]
        if (other.shape, other.dtype) != (array.shape, array.dtype):
            return f"output {name!r} is {other.dtype} {other.shape}, not {array.dtype} {array.shape}"
        if array.dtype.kind != "f":
            wrong = int((array != other).sum())
            if wrong:
                return f"output {name!r} differs in {wrong} of {array.size} values"
            continue
        rtol, atol = TOLERANCES[array.dtype.name]
        if not np.allclose(other, array, rtol=rtol, atol=atol, equal_nan=True):
            with np.errstate(invalid="ignore"):  # of infinities
                gaps = np.abs(other.astype(np.float64) - array)
            finite = gaps[np.isfinite(gaps)]
            return f"output {name!r} differs by {finite.max(initial=0.0):.3g}"
    return None


def rows_are_independent(model: _Model, example: Arrays) -> bool:
    """Whether rows of zeros appended to a batch leave the answers of its other rows unchanged.

    Tried with multiples of the example's numbers of either sign: a maximum over rows, say, sees zeros only among
    negatives. example: texts as hashes. False, too, where the model refuses such inputs.
    """
    for factors in ((1.0, 2.0, 0.5), (-1.0, -2.0, -0.5)):
        rows = {name: _multiples(array, factors) for name, array in example.items()}
        padded = {name: np.concatenate([a, np.zeros_like(a), np.zeros_like(a)]) for name, a in rows.items()}
        try:
            wanted, got = model.predict(rows), model.predict(padded)
        except (ValueError, RuntimeError, IndexError):
            return False
        if difference(wanted, {name: got[name][: len(array)] for name, array in wanted.items()}) is not None:
            return False
    return True


def _multiples(array: Array, factors: Sequence[float]) -> Array:
    if array.dtype.kind != "f":  # classes and counts are what they are
        return np.concatenate([array] * len(factors))
    return np.concatenate([array * array.dtype.type(factor) for factor in factors])


__all__ = [
    "MAX_PADDED_ROWS",
    "REPEATS",
    "CapturedGraph",
    "CudaDevice",
    "CudaScorer",
    "Device",
    "GraphCache",
    "Outputs",
    "StagingBuffer",
    "UnfitForDevice",
    "difference",
    "has_open_rows",
    "is_out_of_memory",
    "rows_are_independent",
    "samples",
]
