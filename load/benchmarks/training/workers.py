"""Benchmark of a second training worker: rows a second with one worker and with two, beside a bare torch loop.

The bare loop is the same network, optimiser and batch of 4,096 rows in all under torch's DistributedDataParallel on gloo; both
learn from the same encoded rows, one thread a worker. One worker and two, bare and ours, take turns in the same two processes,
so that a noisy neighbour hits all; start-up and validation are not part of it. Reported are medians over the rounds, and the CPU
seconds of the first worker, which neighbours hardly change: half as many with two would be the most that can be had.

The exit code is 1 if two workers of ours are less than 1.7 times one, and two bare ones are not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from toque.functions.training.loop.process_group import ProcessGroup, ReplicatedGroup, SingleProcess
from toque.functions.training.tabular.fitting import Prepared, new_trainer, prepare
from toque.load.benchmarks.harness import main, say, temporary
from toque.load.benchmarks.training.fixtures import COLUMNS, PARAMS, synthetic_table

WORKERS = 2
LEAST = 1.7  # times one worker
RESULT = "rates.json"


def run(*, rounds: int = 7) -> bool:
    """Start the processes, print their rates, and judge them."""
    with temporary() as folder:
        spawn(worker, args=(str(folder), rounds), nprocs=WORKERS)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        measured = json.loads((folder / RESULT).read_text())
    passed, report = judged(**measured)
    say(report)
    return passed


def judged(rates: dict[str, list[float]], cpu_s: dict[str, list[float]]) -> tuple[bool, str]:
    """Judge the rounds' rows a second and CPU seconds: whether the bound holds, and the report."""
    lines, gains = [], {}
    for name in ("bare", "ours"):
        one, two = (np.array(rates[f"{name} {count}"]) for count in (1, WORKERS))
        cpu = [float(np.median(cpu_s[f"{name} {count}"])) for count in (1, WORKERS)]
        gains[name] = float(np.median(two / one))
        lines.append(
            f"{name}: {np.median(one):9,.0f} rows/s with one worker, {np.median(two):9,.0f} with two: {gains[name]:.2f} x "
            f"(rounds {(two / one).min():.2f} to {(two / one).max():.2f}); CPU {cpu[0]:.2f} and {cpu[1]:.2f} s a pass"
        )
    if gains["ours"] >= LEAST:
        return True, "\n".join([*lines, f"at least {LEAST} x: met"])
    if gains["bare"] >= LEAST:
        return False, "\n".join([*lines, f"at least {LEAST} x, as the bare loop does: missed"])
    return True, "\n".join([*lines, f"at least {LEAST} x: not to be had here, the bare loop does not either"])


def worker(rank: int, folder: str, rounds: int) -> None:
    """Run one worker process; the first writes down the rates."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=WORKERS
    )
    prepared = prepare(synthetic_table(), COLUMNS, PARAMS)
    passes = {
        f"{kind} {count}": made for count in (1, WORKERS) for kind, made in loops(prepared, count, rank)
    }
    rates: dict[str, list[float]] = {name: [] for name in passes}
    cpu_s: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):  # the first is to warm up
        for name, one_pass in passes.items():
            torch.distributed.barrier()
            began, used = time.perf_counter(), time.process_time()
            rows = one_pass()
            if number:
                rates[name].append(rows / (time.perf_counter() - began))
                cpu_s[name].append(time.process_time() - used)
    if rank == 0:
        (Path(folder) / RESULT).write_text(json.dumps({"rates": rates, "cpu_s": cpu_s}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def loops(prepared: Prepared, count: int, rank: int) -> list[tuple[str, Callable[[], int]]]:
    """Make the passes over the rows, bare and ours, by so many workers; a spare worker returns at once."""
    if rank >= count:
        return [("bare", lambda: 0), ("ours", lambda: 0)]
    group: ProcessGroup = SingleProcess() if count == 1 else ReplicatedGroup()
    trainer = new_trainer(prepared, PARAMS, group)

    def ours() -> int:
        trainer._pass_over_training_rows()  # noqa: SLF001 - what is measured
        return steps(prepared) * PARAMS.batch_size

    return [("bare", PlainLoop.of(prepared, group)), ("ours", ours)]


def steps(prepared: Prepared) -> int:
    """Count the whole batches in the training rows."""
    return len(prepared.train) // PARAMS.batch_size


@dataclass(frozen=True, slots=True)
class PlainLoop:
    """Training loop in plain torch, as a person would write it."""

    prepared: Prepared
    group: ProcessGroup
    net: nn.Module
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, prepared: Prepared, group: ProcessGroup) -> PlainLoop:
        """Make a loop with a fresh network."""
        net: nn.Module = new_trainer(prepared, PARAMS).net.train()
        net = net if group.size == 1 else DistributedDataParallel(net)
        return cls(prepared, group, net, torch.optim.AdamW(net.parameters(), lr=PARAMS.lr, fused=True))

    def __call__(self) -> int:
        """Run one pass over the rows."""
        rows, label = self.prepared.train.rows, self.prepared.train.label
        order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
        for step in range(steps(self.prepared)):
            batch = order[step * PARAMS.batch_size : (step + 1) * PARAMS.batch_size]
            mine = batch[self.group.rank :: self.group.size]
            taken = rows.take(mine)
            logits = self.net(taken.numeric, taken.missing, taken.category).squeeze(1)
            self.optimizer.zero_grad(set_to_none=True)
            binary_cross_entropy_with_logits(logits, label[mine]).backward()  # type: ignore[no-untyped-call]  # torch
            self.optimizer.step()
        return steps(self.prepared) * PARAMS.batch_size


if __name__ == "__main__":
    main(run, "torch")
