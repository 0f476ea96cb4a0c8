"""Benchmark of checkpoints beside steps, to `--store s3://bucket/prefix?…`.

A network of linear layers under AdamW, whose state (weights and two moments) is `--gib` large, is trained in one process with
`--threads` threads. Steps without a checkpoint are the floor; steps while one is written to the store take turns with them, so that a
noisy neighbour hits both. A checkpoint is written as one after `--interval` seconds would be, though the benchmark waits for `--quiet`
steps only. Printed are their medians and the ratio, by the clock and in processor seconds of the thread that steps, what a
checkpoint takes until it counts, and how long the steps stand while it is staged in host memory.

Then 1, 2 and 4 processes, each with a part of the network, read it back: seconds, and bytes that were read over the state's.

Start the server first, apart from this process: `weed server -s3`. Where it runs on this machine, start it by `chrt -i 0`, in the class
of programs that run only while a processor has nothing else to do: S3 computes elsewhere, and what is measured is the training's own
cost. The exit code is 1 if the ratio by the clock is above 1.02, or if a worker reads more than 1.05 of what is its own.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from toque.functions.training import RecipeParams
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.first_weights import Initialised, reset, without_weights
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import ProcessGroup, ShardedGroup, SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.load.benchmarks.harness import GIB, bound, main, say, temporary
from toque.registry import ObjectStore, open_store

WIDTH, LEAST_ROWS, STEPS = 2_048, 16, 10_000  # more steps than are taken
LAYER_BYTES = 3 * 4 * WIDTH * (WIDTH + 1)  # weights and two moments
FOLDER = "benchmarks/checkpoints/"


def run(
    *,
    store: str,
    gib: float = 2.0,
    rows: Annotated[int, "of a step: more make it longer"] = 64,
    checkpoints: int = 3,
    threads: Annotated[int, "that compute a step"] = 1,
    quiet: Annotated[int, "steps between checkpoints"] = 8,
    interval: Annotated[float, "seconds between checkpoints"] = 600.0,
) -> None:
    """Write and read checkpoints, print what it cost, and judge it."""
    torch.set_num_threads(threads)
    layers, opened = max(1, round(gib * GIB / LAYER_BYTES)), open_store(store)
    _delete(opened)  # what a run has left that was stopped
    group, state = SingleProcess(), layers * LAYER_BYTES
    trainer = new_trainer(layers, max(LEAST_ROWS, rows), group)
    rounds = Rounds(opened, trainer, checkpoints, quiet, interval)
    with group.memory(), suppress(Enough):
        trainer.run_epoch(rounds.after_step)
    ratio, lost_s = rounds.report()
    say(
        f"state {state / GIB:.2f} GiB; {lost_s:.2f} s lost a checkpoint, {lost_s / interval:.2%} of {interval:.0f} s"
    )
    shares = [_read_by(count, store, layers, state) for count in (1, 2, 4)]
    _delete(opened)
    bound("a step beside a write, of one without", ratio, most=1.02)
    bound("what a worker reads, of its own part", max(shares), most=1.05)


def _delete(store: ObjectStore) -> None:
    for key in list(store.list(FOLDER)):
        store.delete(key)


class Layers(nn.Module):
    """Linear layers, one after the other, each split among the workers by itself."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Pass rows through all layers."""
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


@dataclass(frozen=True, slots=True)
class Noise:
    """Rows of noise that are to be left as they are. rows: of a step, by which a step is as long as is wanted."""

    rows: int
    valid_rows: int = 1
    units: dict[str, int] = field(default_factory=dict)

    @property
    def train_rows(self) -> int:
        """Number of rows of an epoch."""
        return self.rows * STEPS

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Draw rows of noise, seeded by the number of the first."""
        return (torch.randn(len(rows), WIDTH, generator=torch.Generator().manual_seed(int(rows[0]))),)

    valid_batch = train_batch

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        """Squared change of a row, the mean over its numbers."""
        change: Tensor = (module(batch[0]) - batch[0]).square().mean(1)
        return change.sum() if reduction == "sum" else change.mean()


def new_trainer(layers: int, rows: int, group: ProcessGroup) -> Trainer:
    """Trainer of so many layers, whose weights each worker fills for its own part."""
    with without_weights():
        net = Layers(layers)
    params = RecipeParams(lr=1e-6, epochs=1, batch_size=rows, clip=None, checkpoint_s=None)
    return Trainer(net, Noise(rows), params, group, Initialised(reset, 0))


class Enough(Exception):  # noqa: N818 - ends an epoch that has no end
    """As many checkpoints were written as were wanted."""


class Rounds:
    """Has a checkpoint written beside the steps after each `quiet` ones without; called after each step.

    steps: seconds by the clock and of this thread's processor, alone and beside a write.
    """

    def __init__(
        self, store: ObjectStore, trainer: Trainer, checkpoints: int, quiet: int, interval_s: float
    ) -> None:
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._quiet = quiet
        self._interval_s = interval_s
        self._now_s = 0.0  # by the training's clock
        self._keeper = Keeper(SingleProcess(), Checkpoints(store, FOLDER), clock=lambda: self._now_s)
        self._keeper.resume(trainer)  # else a first commit would take over what a run before has left
        self.steps: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        self.staged_s: list[float] = []
        self.written_s: list[float] = []
        self._since, self._beside = -1, False  # the first step makes the moments, and does not count
        self._began = 0.0
        self._last = time.perf_counter(), time.thread_time()

    def after_step(self) -> None:
        """Note the step; begin a checkpoint, or see that one counts. Raises: Enough."""
        now = time.perf_counter(), time.thread_time()
        if self._since >= 0:
            self.steps[self._beside].append((now[0] - self._last[0], now[1] - self._last[1]))
        self._since += 1
        if self._beside and not self._keeper.writing:
            self._keeper.wait()
            self.written_s.append(time.perf_counter() - self._began)
            self._since, self._beside = 0, False
            if len(self.written_s) == self._checkpoints:
                raise Enough
        elif not self._beside and self._since > self._quiet:
            self._began = time.perf_counter()
            self._now_s += self._interval_s
            self._keeper.save(self._trainer)
            self.staged_s.append(time.perf_counter() - self._began)
            self._beside = True
        self._last = time.perf_counter(), time.thread_time()

    def report(self) -> tuple[float, float]:
        """Print the medians; returns the ratio of steps by the clock, and the seconds that a checkpoint costs."""
        (alone_s, alone_cpu), (beside_s, beside_cpu) = (
            np.median(self.steps[one], axis=0) for one in (False, True)
        )
        staged_s, written_s = np.median(self.staged_s), np.median(self.written_s)
        say(
            f"step alone {alone_s:.3f} s, beside a write {beside_s:.3f} s ({beside_cpu / alone_cpu:.3f} x in processor seconds); "
            f"until it counts {written_s:.1f} s; staged in {staged_s:.2f} s"
        )
        lost_s = staged_s + len(self.steps[True]) / self._checkpoints * (beside_s - alone_s)
        return float(beside_s / alone_s), float(lost_s)


def _read_by(count: int, store_url: str, layers: int, state_bytes: int) -> float:
    """Read the newest checkpoint by so many workers; returns the largest share of its own part that one has read."""
    with temporary() as folder:
        spawn(read, args=(count, store_url, layers, str(folder)), nprocs=count)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        results = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    share = max(result["bytes"] for result in results) / (state_bytes / count)
    say(
        f"read by {count}: {max(result['seconds'] for result in results):.1f} s, a worker reads {share:.3f} of its part"
    )
    return float(share)


@dataclass(slots=True)
class CountedStore:
    """Store that counts the bytes that are read by ranges."""

    store: ObjectStore
    read_bytes: int = 0

    def find_range(self, key: str, start: int, size_bytes: int) -> bytes | None:
        """Read a range, and count it."""
        self.read_bytes += size_bytes
        return self.store.find_range(key, start, size_bytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def read(rank: int, count: int, url: str, layers: int, folder: str) -> None:
    """Read the newest checkpoint as one of `count` workers."""
    torch.set_num_threads(1)
    group: ProcessGroup = SingleProcess()
    if count > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=count
        )
        group = ShardedGroup()
    trainer, store = new_trainer(layers, count, group), CountedStore(open_store(url))
    began = time.perf_counter()
    Keeper(group, Checkpoints(store, FOLDER)).resume(trainer)
    result = {"seconds": time.perf_counter() - began, "bytes": store.read_bytes}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    if count > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(run, "torch", "boto3")
