"""A program on a card, captured for the shapes that come again: one call then begins all that it does."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ray_apps.predictor.versions.cuda_device import Captured, Card, Outputs

__all__ = ["MOST_PADDED_ROWS", "REPEATS", "Captures"]

REPEATS = 3
"""Shapes are captured when they come for this time."""
MOST_PADDED_ROWS = 1_024
"""Larger batches are not padded: what they compute takes longer than what a capture saves."""
MOST_CAPTURED = 12
"""The eleven powers of two up to `MOST_PADDED_ROWS`, and one more."""
_MOST_COUNTED = 256
_log = logging.getLogger("ray.serve")

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _Known:
    inputs: Sequence[torch.Tensor]
    captured: Captured


class Captures:
    """Runs a program on a card. One thread at a time, in the card's stream, in inference mode.

    run: the program. most: how many shapes stay captured; the one that was asked for longest ago goes first.
    """

    def __init__(self, run: Callable[..., Outputs], card: Card, *, most: int = MOST_CAPTURED) -> None:
        self._run, self._card, self._most = run, card, most
        self._known: OrderedDict[Shapes, _Known] = OrderedDict()
        self._seen: OrderedDict[Shapes, int] = OrderedDict()
        self.refused = False
        """Whether the program cannot be captured, so that it is run step by step from then on."""

    def __len__(self) -> int:
        return len(self._known)

    def place(self, hosts: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Begin to copy inputs from the host; returns where `run` reads them."""
        known = self._known.get(_shapes(hosts))
        places = known.inputs if known else [torch.empty_like(h, device=self._card.device) for h in hosts]
        for place, host in zip(places, hosts, strict=True):
            place.copy_(host, non_blocking=True)
        return places

    def run(self, inputs: Sequence[torch.Tensor]) -> Outputs:
        """Begin to compute on inputs that `place` gave; the outputs hold until the next call."""
        shapes = _shapes(inputs)
        known = self._known.get(shapes)
        if known is None and self._is_due(shapes):
            known = self._capture(shapes, inputs)
        if known is None:
            return self._run(*inputs)
        self._known.move_to_end(shapes)
        known.captured.replay()
        return known.captured.outputs

    def clear(self) -> None:
        """Give back the memory of all captures."""
        self._known.clear()
        self._seen.clear()

    def _is_due(self, shapes: Shapes) -> bool:
        if self.refused or any(0 in shape for shape in shapes):  # of nothing there is nothing to record
            return False
        times = self._seen.pop(shapes, 0) + 1
        if times >= REPEATS:
            return True
        self._seen[shapes] = times
        if len(self._seen) > _MOST_COUNTED:
            self._seen.popitem(last=False)
        return False

    def _capture(self, shapes: Shapes, inputs: Sequence[torch.Tensor]) -> _Known | None:
        while len(self._known) >= self._most:
            self._known.popitem(last=False)
        try:
            known = _Known(inputs, self._card.capture(lambda: self._run(*inputs)))
        except RuntimeError as error:
            self.refused = True
            self.clear()  # room for what runs step by step
            _log.warning("the program cannot be captured as a CUDA graph and runs step by step: %s", error)
            return None
        self._known[shapes] = known
        return known


def _shapes(tensors: Sequence[torch.Tensor]) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors)
