"""Benchmark of training and scoring the tabular network: bare torch loops over the same rows are the baselines.

epoch: on one core, in this process; and the saved model beside the bare network on arrays that are already loaded. Start-up of Ray is no part
of it. workers: rows a second with one worker and with two, beside torch's DistributedDataParallel on gloo, one thread a worker. One worker
and two, bare and ours, take turns in the same two processes, so that a noisy neighbour hits all. Reported are medians over the rounds, and
the CPU seconds of the first worker, which neighbours hardly change: half as many with two would be the most that can be had. The exit
code is 1 if two workers of ours are less than 1.7 times one, and two bare ones are not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
import torch.distributed
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from toque.functions.model_formats.table_inputs import table_inputs
from toque.functions.training.loop.process_group import ProcessGroup, ReplicatedGroup, SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.tabular.fitting import Prepared, fit, new_trainer, prepare
from toque.functions.training.tabular.job import tabular_signature, write_artifact
from toque.functions.training.tabular.out_of_core import prepare_on_disk
from toque.load.benchmarks.harness import line, main, say, temporary, timed
from toque.load.benchmarks.training.fixtures import COLUMNS, PARAMS, synthetic_table
from toque.registry import Table, open_store

WORKERS = 2
LEAST = 1.7  # times one worker
RESULT = "rates.json"


def run(*, cases: tuple[Literal["epoch", "workers"], ...] = ("epoch", "workers"), rounds: int = 7) -> bool:
    """Run the cases; returns whether two workers are worth it."""
    torch.set_num_threads(1)
    if "epoch" in cases:
        _epoch()
    if "workers" not in cases:
        return True
    with temporary() as folder:
        spawn(worker, args=(str(folder), rounds), nprocs=WORKERS)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        measured = json.loads((folder / RESULT).read_text())
    passed, report = judged(**measured)
    say(report)
    return passed


@dataclass(frozen=True, slots=True)
class PlainLoop:
    """Training loop in plain torch, as a person would write it."""

    prepared: Prepared
    group: ProcessGroup
    net: nn.Module
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, prepared: Prepared, group: ProcessGroup | None = None) -> PlainLoop:
        """Make a loop with a fresh network over rows that are loaded."""
        net: nn.Module = new_trainer(prepared, PARAMS).net.train()
        net = net if group is None or group.size == 1 else DistributedDataParallel(net)
        optimizer = torch.optim.AdamW(net.parameters(), lr=PARAMS.lr, fused=True)
        return cls(prepared, group or SingleProcess(), net, optimizer)

    def __call__(self) -> int:
        """Pass over the rows once, in as many steps as the trainer takes; returns how many they were."""
        label = self.prepared.train.label
        steps = len(label) // PARAMS.batch_size
        order = torch.randperm(len(label), generator=torch.Generator().manual_seed(0))
        for step in range(steps):
            batch = order[step * PARAMS.batch_size : (step + 1) * PARAMS.batch_size]
            mine = batch[self.group.rank :: self.group.size]
            rows = self.prepared.train.rows.take(mine)
            logits = self.net(rows.numeric, rows.missing, rows.category).squeeze(1)
            self.optimizer.zero_grad(set_to_none=True)
            binary_cross_entropy_with_logits(logits, label[mine]).backward()  # type: ignore[no-untyped-call]  # torch
            self.optimizer.step()
        return steps * PARAMS.batch_size


def training_pass(trainer: Trainer) -> Callable[[], None]:
    """Make what passes over a trainer's rows once more, without its validation."""

    def once() -> None:
        trainer._pass_over_training_rows()  # noqa: SLF001 - what is measured
        trainer._part = type(trainer._part)()  # noqa: SLF001 - else the next pass would find this one done

    return once


def _epoch() -> None:
    table = synthetic_table()
    prepared = prepare(table, COLUMNS, PARAMS)
    trainer = new_trainer(prepared, PARAMS)
    bare = timed(PlainLoop.of(prepared), repeats=5)
    line("bare torch loop, an epoch", bare, bare)
    line("Trainer, an epoch", timed(training_pass(trainer), repeats=5), bare)
    memory = timed(trainer.run_epoch, repeats=5)
    line(f"Trainer, an epoch and validation, busy {trainer.epochs[-1].busy:.1%}", memory, bare)
    with temporary() as folder:  # rows in a file, the page cache warm
        stored = Table(open_store(f"file://{folder}"), "rows")
        disk = new_trainer(prepare_on_disk(stored, stored.append(table), COLUMNS, PARAMS), PARAMS)
        took = timed(disk.run_epoch, repeats=5)
        line(f"Trainer, the same on disk, busy {disk.epochs[-1].busy:.1%}", took, memory)
    _scoring(table, prepared)


def _scoring(table: pa.Table, prepared: Prepared) -> None:
    """Time the saved program against the network in memory."""
    params = PARAMS.model_copy(update={"epochs": 1})
    fitted = fit(prepared, params)
    signature = tabular_signature(COLUMNS, table, fitted.scorer.target)
    with temporary() as folder:
        model = write_artifact(folder, fitted, signature=signature, columns=COLUMNS, params=params)
    arrays = table_inputs(table.slice(0, 50_000), model.signature)
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    with torch.inference_mode():
        bare = timed(lambda: fitted.scorer(*tensors))
    line("bare model, 50,000 loaded rows", bare, bare)
    line("ScoringModel, the same", timed(lambda: model.predict(arrays)), bare)


def worker(rank: int, folder: str, rounds: int) -> None:
    """Run one worker process; the first writes down the rates. A spare worker waits for the other one."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=WORKERS
    )
    prepared = prepare(synthetic_table(), COLUMNS, PARAMS)
    passes: dict[str, Callable[[], object]] = {}
    for count in (1, WORKERS):
        group: ProcessGroup = SingleProcess() if count == 1 else ReplicatedGroup()
        idle = rank >= count
        passes[f"bare {count}"] = int if idle else PlainLoop.of(prepared, group)
        passes[f"ours {count}"] = int if idle else training_pass(new_trainer(prepared, PARAMS, group))
    rows = len(prepared.train) // PARAMS.batch_size * PARAMS.batch_size
    rates: dict[str, list[float]] = {name: [] for name in passes}
    cpu_s: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):  # the first is to warm up
        for name, one_pass in passes.items():
            torch.distributed.barrier()
            began, used = time.perf_counter(), time.process_time()
            one_pass()
            if number:
                rates[name].append(rows / (time.perf_counter() - began))
                cpu_s[name].append(time.process_time() - used)
    if rank == 0:
        (Path(folder) / RESULT).write_text(json.dumps({"rates": rates, "cpu_s": cpu_s}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


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


if __name__ == "__main__":
    main(run, "torch", "numpy", "pyarrow")
