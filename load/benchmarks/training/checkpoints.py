"""Benchmark of checkpoints beside steps: `python -m toque.load.benchmarks.training.checkpoints --store s3://bucket/prefix?… [--gib 2]`.

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

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from toque.functions.training import RecipeParams
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.first_weights import Initialised, reset, without_weights
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_groups.process_group import (
    ProcessGroup,
    ShardedGroup,
    SingleProcess,
)
from toque.functions.training.loop.training_loop import Trainer
from toque.load.benchmarks.timing import print_machine
from toque.registry import ObjectStore, open_store

WIDTH, LEAST_ROWS, STEPS = 2_048, 16, 10_000  # more steps than are taken
LAYER_BYTES = 3 * 4 * WIDTH * (WIDTH + 1)  # weights and two moments
MOST, MOST_READ = 1.02, 1.05
FOLDER = "benchmarks/checkpoints/"


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
    steps: int
    valid_rows: int = 1
    units: dict[str, int] = field(default_factory=dict)

    @property
    def train_rows(self) -> int:
        """Number of rows of an epoch."""
        return self.rows * self.steps

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Draw rows of noise, seeded by the number of the first."""
        return (torch.randn(len(rows), WIDTH, generator=torch.Generator().manual_seed(int(rows[0]))),)

    valid_batch = train_batch

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...], *, reduction: str = "mean") -> Tensor:
        """Squared change of a row, the mean over its numbers."""
        change: Tensor = (module(batch[0]) - batch[0]).square().mean(1)
        return change.sum() if reduction == "sum" else change.mean()


@dataclass(slots=True)
class Step:
    """One step: seconds by the clock and of this thread's processor, and whether a checkpoint was being written."""

    seconds: float
    cpu_s: float
    beside: bool


def new_trainer(layers: int, rows: int, steps: int, group: ProcessGroup) -> Trainer:
    """Trainer of so many layers, whose weights each worker fills for its own part."""
    with without_weights():
        net = Layers(layers)
    params = RecipeParams(lr=1e-6, epochs=1, batch_size=rows, clip=None, checkpoint_s=None)
    return Trainer(net, Noise(rows, steps), params, group, Initialised(reset, 0))


@dataclass(slots=True)
class Clock:
    """Clock of the training, by which an interval passes whenever it is told to."""

    interval_s: float
    now_s: float = 0.0

    def __call__(self) -> float:
        """Read the clock, in seconds."""
        return self.now_s

    def pass_interval(self) -> None:
        """Let one interval between checkpoints pass."""
        self.now_s += self.interval_s


class Enough(Exception):  # noqa: N818 - ends an epoch that has no end
    """As many checkpoints were written as were wanted."""


class Rounds:
    """Has a checkpoint written beside the steps after each `quiet` ones without; called after each step."""

    def __init__(self, trainer: Trainer, keeper: Keeper, clock: Clock, checkpoints: int, quiet: int) -> None:
        self._trainer, self._keeper, self._clock = trainer, keeper, clock
        self._checkpoints, self._quiet = checkpoints, quiet
        self.taken: list[Step] = []
        self.staged_s: list[float] = []
        self.written_s: list[float] = []
        self._since, self._beside = -1, False  # the first step makes the moments, and does not count
        self._began = self._last = time.perf_counter()
        self._last_cpu = time.thread_time()

    def after_step(self) -> None:
        """Note the step; begin a checkpoint, or see that one counts. Raises: Enough."""
        now, cpu = time.perf_counter(), time.thread_time()
        if self._since >= 0:
            self.taken.append(Step(now - self._last, cpu - self._last_cpu, self._beside))
        self._since += 1
        if self._beside and not self._keeper.writing:
            self._keeper.wait()
            self.written_s.append(time.perf_counter() - self._began)
            self._since, self._beside = 0, False
            if len(self.written_s) == self._checkpoints:
                raise Enough
        elif not self._beside and self._since > self._quiet:
            self._began = time.perf_counter()
            self._clock.pass_interval()
            self._keeper.save(self._trainer)
            self.staged_s.append(time.perf_counter() - self._began)
            self._beside = True
        self._last, self._last_cpu = time.perf_counter(), time.thread_time()


def measure(
    store: ObjectStore, layers: int, rows: int, checkpoints: int, quiet: int, interval_s: float
) -> dict[str, Any]:
    """Take steps with checkpoints beside some of them; returns medians, and what checkpoints took."""
    group, clock = SingleProcess(), Clock(interval_s)
    trainer = new_trainer(layers, rows, STEPS, group)
    keeper = Keeper(group, Checkpoints(store, FOLDER), clock=clock)
    keeper.resume(trainer)  # sees to what a run before has left, which a first commit would take for it
    rounds = Rounds(trainer, keeper, clock, checkpoints, quiet)
    with group.memory(), suppress(Enough):
        trainer.run_epoch(rounds.after_step)
    return _summary(rounds.taken, rounds.staged_s, rounds.written_s)


def _summary(taken: list[Step], staged_s: list[float], written_s: list[float]) -> dict[str, Any]:
    found = {}
    for name in ("seconds", "cpu_s"):
        alone, busy = (
            float(np.median([getattr(each, name) for each in taken if each.beside is beside]))
            for beside in (False, True)
        )
        found[name] = {"alone": alone, "beside": busy, "ratio": busy / alone}
    steps = sum(each.beside for each in taken)
    return {**found, "steps_beside": steps, "staged_s": staged_s, "written_s": written_s}


@dataclass(slots=True)
class Counted:
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
    trainer, store = new_trainer(layers, count, STEPS, group), Counted(open_store(url))
    began = time.perf_counter()
    Keeper(group, Checkpoints(store, FOLDER)).resume(trainer)
    found = {"seconds": time.perf_counter() - began, "bytes": store.read_bytes, "step": trainer.step}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    if count > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    """Write and read checkpoints, print what it cost, and judge it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=64, help="of a step: more make it longer")
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="that compute a step")
    parser.add_argument("--quiet", type=int, default=8, help="steps between checkpoints")
    parser.add_argument("--interval", type=float, default=600.0, help="seconds between checkpoints")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print_machine("torch", "boto3")
    print(f"# load {os.getloadavg()[0]:.0f}")
    layers, store = max(1, round(given.gib * 2**30 / LAYER_BYTES)), open_store(given.store)
    for key in list(store.list(FOLDER)):  # of a run that was stopped
        store.delete(key)
    state = layers * LAYER_BYTES
    rows = max(LEAST_ROWS, given.rows)
    found = measure(store, layers, rows, given.checkpoints, given.quiet, given.interval)
    wall, cpu = found["seconds"], found["cpu_s"]
    lost = float(np.median(found["staged_s"])) + found["steps_beside"] / given.checkpoints * (
        wall["beside"] - wall["alone"]
    )
    print(
        f"state {state / 2**30:.2f} GiB; step alone {wall['alone']:.3f} s, beside a write {wall['beside']:.3f} s: "
        f"{wall['ratio']:.3f} × ({cpu['ratio']:.3f} × in processor seconds)\n"
        f"until it counts {np.median(found['written_s']):.1f} s; staged in {np.median(found['staged_s']):.2f} s; "
        f"in all {lost:.2f} s a checkpoint, {lost / given.interval:.2%} of an interval of {given.interval:.0f} s"
    )
    most_read = 0.0
    for count in (1, 2, 4):
        with tempfile.TemporaryDirectory(prefix="toque-checkpoints-") as folder:
            spawn(read, args=(count, given.store, layers, folder), nprocs=count)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            each = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
        share = max(one["bytes"] for one in each) / (state / count)
        most_read = max(most_read, share)
        took = max(one["seconds"] for one in each)
        print(f"read by {count}: {took:.1f} s, a worker reads {share:.3f} of its part")
    for key in list(store.list(FOLDER)):
        store.delete(key)
    sys.exit(int(wall["ratio"] > MOST or most_read > MOST_READ))


if __name__ == "__main__":
    main()
