"""Keeping of a training's state: checkpoints beside the steps, and resumption from the newest whole one on all workers."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from toque.functions.training.checkpoints.index import Index
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.checkpoints.storage import CheckpointDamaged, StoreReader, StoreWriter
from toque.functions.training.checkpoints.uploads import Pace
from toque.functions.training.errors import TrainingError
from toque.functions.training.loop.process_groups.process_group import ProcessGroup
from toque.functions.training.loop.pulse import Cadence, Notice, Pulse

_WRITING_SHARE = 0.25  # of an interval, at the end of which another checkpoint is written
_MOST_WRITING_S = 300.0  # well within what a worker with a smaller part waits for the others
_logger = logging.getLogger(__name__)
warnings.filterwarnings(
    "ignore", "torch.distributed is disabled", UserWarning
)  # one process is what was asked for


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
        cadence: Cadence = Cadence(),  # noqa: B008 - frozen
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
