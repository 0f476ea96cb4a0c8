"""Pulse of a worker group: about once a second all workers agree whether to go on, to save, or to save and rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from toque.functions.training.loop.process_groups.process_group import ProcessGroup
from toque.functions.training.loop.settings import Settings

_EVERY_S = 1.0
_MOST_STEPS = 1_000_000
Beat = Literal["go on", "save", "rest"]
Notice = Callable[[], bool]
"""Whether the machine of this worker will be taken soon; all workers ask alike."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """When checkpoints are written within an epoch: every so many steps, every so many seconds, or never. One is after each epoch."""

    steps: int | None = None
    seconds: float | None = None


class Pulse:
    """Decides after each step what is next, the same in all workers.

    notice: asked about once a second.
    """

    def __init__(
        self,
        group: ProcessGroup,
        cadence: Cadence,
        *,
        notice: Notice = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group, self._cadence, self._notice, self._clock = group, cadence, notice, clock
        self._steps = self._since_saved = 0
        self._next, self._asked_at, self._saved_at = 1, clock(), clock()

    def saved(self) -> float:
        """Begin a new interval, since a checkpoint is begun; returns the seconds of the one that ended."""
        now, before = self._clock(), self._saved_at
        self._since_saved, self._saved_at = 0, now
        return now - before

    def beat(self) -> Beat:
        """Count a step that was taken, and say what is next; every worker has to call it after each step."""
        self._steps += 1
        self._since_saved += 1
        told: Beat = "go on"
        if self._steps >= self._next:
            told = self._agree()
        if told == "go on" and self._cadence.steps is not None and self._since_saved >= self._cadence.steps:
            told = "save"
        return told

    def _agree(self) -> Beat:
        """Share the slowest step's time, whether time is up, and whether any machine will be taken."""
        now = self._clock()
        each_s = (now - self._asked_at) / max(1, self._steps)
        late = self._cadence.seconds is not None and now - self._saved_at >= self._cadence.seconds
        own = [each_s, float(late and self._group.rank == 0), float(self._notice())]
        shared = torch.tensor(own, dtype=torch.float64, device=self._group.device)
        total_s, save, rest = self._group.all_reduce_sum(shared).tolist()
        mean_s = max(total_s / self._group.size, 1e-9)
        self._next, self._steps, self._asked_at = min(_MOST_STEPS, max(1, round(_EVERY_S / mean_s))), 0, now
        return "rest" if rest else "save" if save else "go on"


def cadence_of(settings: Settings) -> Cadence:
    """When the settings of a training want checkpoints within an epoch."""
    return Cadence(settings.checkpoint_steps, settings.checkpoint_s)
