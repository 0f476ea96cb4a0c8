"""Keeping of a training's state: checkpoints beside the steps, and resumption from the newest whole one on all workers.

About once a second all workers agree whether to go on, to save, or to save and rest. At Ctrl-C while Ray trains, the caller gets
its KeyboardInterrupt, and its own handler back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from toque.functions.training.checkpoints.saved import Checkpoints, Index
from toque.functions.training.checkpoints.storage import CheckpointDamaged, Pace, StoreReader, StoreWriter
from toque.functions.training.errors import TrainingError
from toque.functions.training.loop.process_group import ProcessGroup

_AGREE_EVERY_S = 1.0  # on what is next
_MOST_STEPS = 1_000_000  # between two agreements
Beat = Literal["go on", "save", "rest"]
Notice = Callable[[], bool]
"""Whether the machine of this worker will be taken soon; all workers ask alike."""
_WRITING_SHARE = 0.25  # of an interval, at the end of which another checkpoint is written
_MOST_WRITING_S = 300.0  # well within what a worker with a smaller part waits for the others
_logger = logging.getLogger(__name__)
# one process is what was asked for
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


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
        self._next, self._steps, self._asked_at = (
            min(_MOST_STEPS, max(1, round(_AGREE_EVERY_S / mean_s))),
            0,
            now,
        )
        return "rest" if rest else "save" if save else "go on"


class Resting(TrainingError):  # noqa: N818 - says what happens
    """The workers are to make way: a machine will be taken or is slow, or more workers have room. The state is saved, others go on."""

    left: frozenset[str] = frozenset()
    """Nodes, by id, that those who go on keep away from."""


class Kept(Protocol):
    """Trainer whose state is kept: its tensors, split or whole, and facts that are JSON."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and facts, that the next steps depend on."""

    def room_for(self, shapes: dict[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """Tensors into which a state of these sizes is read, split among the workers as they are now."""

    def resume(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continue from a state that was read."""

    @property
    def step(self) -> int:
        """Number of steps that were taken since the training began."""


class Keeper:
    """Writes checkpoints of a trainer while it goes on, one at a time, and reads the newest one back.

    checkpoints: None to keep nothing. notice, clock: see `Pulse`.
    """

    def __init__(
        self,
        group: ProcessGroup,
        checkpoints: Checkpoints | None,
        cadence: Cadence = Cadence(),
        *,
        notice: Notice = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group, self._checkpoints = group, checkpoints
        self._pulse = Pulse(group, cadence, notice=notice, clock=clock)
        self._pending: Future[Any] | None = None
        self._pace = Pace()
        self._stager: DefaultStager | None = None

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written beside the steps."""
        return self._pending is not None and not self._pending.done()

    def after_step(self, trainer: Kept) -> None:
        """Save if it is time to. Raises: Resting after a notice, once the state is saved."""
        if self._checkpoints is None:
            return
        told = self._pulse.beat()
        if told != "go on":
            self.save(trainer)
        if told == "rest":
            self.wait()
            raise Resting(
                f"the workers are to make way: saved after step {trainer.step}; start the training again"
            )

    def save(self, trainer: Kept, *, loss: float | None = None) -> None:
        """Copy the state to host memory and write it beside the next steps; the checkpoint before must be there first.

        A large part is written over a quarter of the time since the save before, five minutes at most, so that steps notice
        little of it.
        loss: of the rows held out, after an epoch. Raises: what the checkpoint before raised.
        """
        if self._checkpoints is None:
            return
        self.wait()
        self._stager = self._stager or _new_stager()
        tensors, facts = trainer.state()
        step, checkpoints = trainer.step, self._checkpoints
        self._pace = Pace(min(self._pulse.saved() * _WRITING_SHARE, _MOST_WRITING_S))

        def commit(index: Index) -> None:
            checkpoints.commit(step, loss, index)

        writer = StoreWriter(checkpoints.store, checkpoints.parts, facts, commit, self._pace)
        self._pending = async_save(
            tensors,
            storage_writer=writer,
            process_group=self._group.host_group,
            async_stager=self._stager,
            no_dist=self._group.size == 1,
        )  # type: ignore[assignment]  # a future, as the checkpointer's type says

    def wait(self) -> None:
        """Wait until the checkpoint that is under way counts, which is written as fast as it can be now. Raises: what it raised."""
        self._pace.hurry()
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                pending.result()
            except CheckpointException as error:
                raise next(iter(error.failures.values()))[0] from error

    def close(self) -> None:
        """Wait as `wait` does, and give the memory of the copies back. Raises: what the checkpoint raised."""
        try:
            self.wait()
        finally:
            if self._stager is not None:
                self._stager.close()
                self._stager = None

    def resume(self, trainer: Kept) -> None:
        """Put the newest whole checkpoint into the trainer, the same in all workers; do nothing if there is none."""
        if self._checkpoints is None:
            return
        found = self._checkpoints.find_latest() if self._group.rank == 0 else iter(())
        while (index := self._group.broadcast(next(found, (None, None))[1])) is not None:
            if self._read(trainer, index):
                return

    def _read(self, trainer: Kept, index: Index) -> bool:
        assert self._checkpoints is not None  # noqa: S101 - `resume` has returned else
        tensors = trainer.room_for(index.shapes)
        try:
            load(
                tensors,
                storage_reader=StoreReader(self._checkpoints.store, index),
                process_group=self._group.host_group,
                no_dist=self._group.size == 1,
            )
        except (CheckpointException, CheckpointDamaged) as error:
            _logger.warning("a checkpoint is damaged; the one before it is used: %s", error)
            return False
        trainer.resume(tensors, index.facts)
        return True


def _new_stager() -> DefaultStager:
    """Make what copies a state, into memory that it keeps from one checkpoint to the next: fresh pages cost more than the copy."""
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Run Ray Train or Tune so that Ctrl-C ends in KeyboardInterrupt and their signal handlers are removed.

    Ray Train turns the signal into SystemExit, or swallows it when its run is just over, and never removes its handler;
    Tune ends the sweep early and returns as if it were complete. Python also writes each signal to a wakeup file
    descriptor, whichever handler takes it: there the interrupt is read.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # neither Ray Train nor Tune installs a handler there
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    handler, descriptor = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(writer)
    try:
        yield
    except BaseException as error:
        if _interrupted(reader):
            raise KeyboardInterrupt from error
        raise
    else:
        if _interrupted(reader):
            raise KeyboardInterrupt
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGINT, handler)
        os.close(reader)
        os.close(writer)


def _interrupted(reader: int) -> bool:
    try:
        return signal.SIGINT in os.read(reader, 1024)
    except BlockingIOError:  # no signal came
        return False
