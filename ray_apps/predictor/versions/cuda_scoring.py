"""Scores on a card: inputs go there from pinned memory, outputs come back into it, and one thread at a time waits.

Rows are padded with zeros up to a power of two where that changes no answer, so that batches of any size are of few
shapes, and their runs are captured soon.
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

from kernels.hashing import hash_strings
from ray_apps.predictor.protocol.datatypes import Array
from ray_apps.predictor.protocol.errors import CardFailed, CardFull
from ray_apps.predictor.versions.cuda_device import Card, Outputs, is_full
from ray_apps.predictor.versions.cuda_graphs import MOST_PADDED_ROWS, REPEATS, Captures
from ray_apps.predictor.versions.loaded import Scorer
from ray_apps.predictor.versions.parity import difference, has_open_rows, rows_stand_alone, samples
from registry.models import Signature

__all__ = ["CardScorer", "Staging", "Unfit"]


_log = logging.getLogger("ray.serve")


class Unfit(Exception):  # noqa: N818 - a reason to stay on the CPU
    """A program does not answer on the card as it does on the CPU."""


class Staging:
    """One tensor's place in pinned memory, used again for each request; it grows to the largest."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Room for a tensor, with whatever was there before."""
        size = prod(shape) * dtype.itemsize
        if size > self._bytes.numel():
            self._bytes = self._card.host(1 << (size - 1).bit_length())
        return self._bytes[:size].view(dtype).reshape(tuple(shape))

    def filled(self, array: Array, rows: int | None) -> torch.Tensor:
        """An input, with rows of zeros up to `rows`."""
        shape = array.shape if rows is None else (rows, *array.shape[1:])
        tensor = self.tensor(shape, torch.from_numpy(np.empty(0, array.dtype)).dtype)
        room = tensor.numpy()
        if rows is None:
            room[...] = array
        else:
            room[: len(array)] = array
            room[len(array) :] = 0  # never another caller's rows
        return tensor


class CardScorer:
    """Scores inputs that are known to fit a signature. Safe to call from several threads.

    run: the program, on the card, as a function of tensors in the signature's order, giving a tuple of tensors.
    """

    def __init__(self, run: Callable[..., Outputs], signature: Signature, card: Card) -> None:
        self._texts = [(spec.name, spec.datatype == "BYTES") for spec in signature.inputs]
        self._names = [spec.name for spec in signature.outputs]
        self._signature = signature
        self.card, self._lock = card, threading.Lock()
        self._into, self._back = [Staging(card) for _ in self._texts], [Staging(card) for _ in self._names]
        self.captures = Captures(run, card)
        self.pads = False

    def settle(self, checked: Scorer, example: Mapping[str, Any], hashed: Mapping[str, Array]) -> None:
        """Decide whether rows are padded, and compare with the same program on the CPU, captured too.

        example, hashed: the signature's example, texts as they come and as hashes.
        Raises: Unfit with the largest difference; CardFull, CardFailed.
        """
        self.pads = has_open_rows(self._signature) and rows_stand_alone(checked, hashed)
        for inputs in samples(example, self._signature):
            wanted = checked.predict(inputs)
            for _ in range(REPEATS + 1):
                gap = difference(wanted, self.predict(inputs))
                if gap is not None:
                    raise Unfit(gap)

    def predict(self, inputs: Mapping[str, Any]) -> Mapping[str, Array]:
        """Outputs by name; texts are hashed here.

        Raises: ValueError for bytes that are no text; CardFull if there is no room for this request; CardFailed.
        """
        arrays = self.arrays(inputs)
        with self.turn():
            placed = self.copy_in(arrays)
            return self.copy_out(self.captures.run(placed), arrays)

    def arrays(self, inputs: Mapping[str, Any]) -> list[Array]:
        """Inputs in the program's order, as numbers."""
        return [hash_strings(inputs[name]) if text else inputs[name] for name, text in self._texts]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The buffers and the stream are ours inside. Raises: CardFull, CardFailed for what the card raises there."""
        with self._lock, torch.inference_mode(), self.card.stream():
            try:
                yield
            except RuntimeError as error:
                if is_full(error):
                    self.captures.clear()
                    _log.warning("no room on the card for a request: %s", error)
                    raise CardFull("no room on the card for this request; send fewer rows") from error
                if isinstance(error, torch.AcceleratorError) and not self._works():
                    _log.exception("the card failed")
                    raise CardFailed("the card failed; its replica is replaced, send again soon") from error
                raise

    def copy_in(self, arrays: Sequence[Array]) -> Sequence[torch.Tensor]:
        """Begin to copy inputs to the card, padded."""
        rows = self._padded_rows(arrays)
        hosts = [place.filled(array, rows) for place, array in zip(self._into, arrays, strict=True)]
        return self.captures.place(hosts)

    def copy_out(self, outputs: Outputs, arrays: Sequence[Array]) -> Mapping[str, Array]:
        """Wait for outputs and copy them here, without the padding."""
        if self.pads:
            outputs = tuple(output[: len(arrays[0])] for output in outputs)
        hosts = [place.tensor(o.shape, o.dtype) for place, o in zip(self._back, outputs, strict=True)]
        for host, output in zip(hosts, outputs, strict=True):
            host.copy_(output, non_blocking=True)
        self.card.wait()
        return {name: host.numpy().copy() for name, host in zip(self._names, hosts, strict=True)}

    def _works(self) -> bool:
        """Whether the card does anything more: after some errors nothing in this process succeeds."""
        try:
            self.card.wait()
        except torch.AcceleratorError:
            return False
        return True

    def _padded_rows(self, arrays: Sequence[Array]) -> int | None:
        if not self.pads or self.captures.refused or len(arrays[0]) > MOST_PADDED_ROWS:
            return None
        return 1 << max(0, len(arrays[0]) - 1).bit_length()
