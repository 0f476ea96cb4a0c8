"""Benchmark of sweeps: early stopping beside the full grid, and stacked trials beside trials one by one.

With `--flights FILE`, which `python -m examples.flights.table FILE` writes, January to March is learnt: the exit code is 1 if the sweep's best
validation loss is more than 1 % above that of the full grid, or if it took more than 30 % of its epochs.
Else made-up rows and a small network are used: the exit code is 1 if stacked trials take more than .35 of the time of trials one by
one, both on two cores under ASHA with what Ray and the store take, or if the best losses differ by more than rounding. Both ways
take turns, and the least time of each counts: what else runs on a machine only adds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

import toque.functions.tuning.sweep  # noqa: F401 - read now, so that neither of the two ways pays for it
from toque.functions import Context, use_context
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.tabular.fitting import fit, new_trainer, prepare
from toque.functions.training.tabular.params import TabularParams
from toque.functions.training.tabular.settings import Columns
from toque.functions.tuning.jobs import tune_tabular
from toque.functions.tuning.space import DEFAULT_SPACE, Space, draw_points
from toque.functions.tuning.stacked import OWN, StackedTrainer
from toque.load.benchmarks.harness import Stopwatch, bound, in_turns, main, say, temporary
from toque.load.benchmarks.training.fixtures import COLUMNS, LEARNT_MONTHS, flight_columns, synthetic_table
from toque.registry import Table, open_store

ROUNDING, EPOCHS = 1e-5, 2


def run(
    *,
    flights: Path | None = None,
    stack: Annotated[int, "trials that each of two workers trains together, without --flights"] = 32,
    trials: Annotated[int | None, "(default: 16 with --flights, else 64)"] = None,
    epochs: int = 9,
    rows: Annotated[int, "of the made-up table"] = 2_000,
    rounds: Annotated[int, "sweeps each way, without --flights"] = 3,
) -> None:
    """Run the comparison that was asked for."""
    torch.set_num_threads(1)
    if flights is not None:
        asha_finds_the_best(flights, trials or 16, epochs)
    else:
        stacked_is_fast(trials or 64, epochs, stack, rows, rounds)


def stacked_is_fast(trials: int, epochs: int, stack: int, rows: int, rounds: int) -> None:
    """Run the same sweep one by one and stacked by turns, and compare the least times and the best losses."""
    table = synthetic_table().slice(0, rows)
    params = TabularParams(hidden=(32, 16), epochs=epochs, patience=epochs, split="random")
    space: Space = {name: source for name, source in DEFAULT_SPACE.items() if name in OWN}
    assert tune_tabular.digest  # noqa: S101 - computed now, so that neither of the two pays for it
    arithmetic(table, params, draw_points(space, params, stack, seed=0))
    sweep = partial(swept, table, params, trials, columns=COLUMNS, space=space)
    sweeps = in_turns({size: partial(sweep, stack=size) for size in (1, stack)}, rounds)
    for size, results in sweeps.items():
        for loss, trained, took in results:
            say(f"stack={size:<3} best {loss:.6f}, {trained} epochs, {took:.1f} s on two cores")
    (alone, stacked) = (min(took for _, _, took in results) for results in sweeps.values())
    gap = abs(sweeps[stack][-1][0] / sweeps[1][-1][0] - 1)
    bound(f"of the time, {trials} trials stacked", stacked / alone, most=0.35)
    bound("relative difference of the best losses", gap, most=ROUNDING)


def arithmetic(table: pa.Table, params: TabularParams, points: list[TabularParams]) -> None:
    """Print the processor time of two epochs of each trial, stacked and one by one, without Ray and store."""
    prepared, took = prepare(table, COLUMNS, params), []
    new_trainer(prepared, params).run_epoch()  # what torch makes at first
    ways: list[Iterator[StackedTrainer | Trainer]] = [
        (StackedTrainer(prepared, dict(enumerate(points))) for _ in range(1)),
        (new_trainer(prepared, point) for point in points),
    ]
    for trainers in ways:
        began = time.process_time()
        for trainer in trainers:
            for _ in range(EPOCHS):
                trainer.run_epoch()
        took.append(time.process_time() - began)
    say(
        f"{len(points)} trials, {EPOCHS} epochs of {len(prepared.train)} rows in one thread: {took[0]:.2f} s of a core stacked, "
        f"{took[1]:.2f} s one by one, {took[0] / took[1]:.3f}"
    )


def asha_finds_the_best(flights: Path, trials: int, epochs: int) -> None:
    """Run a sweep under ASHA and the full grid, and compare best loss and epochs."""
    table = pq.read_table(flights)
    table = table.filter(pc.less_equal(pc.month(table["event_timestamp"]), LEARNT_MONTHS))
    params = TabularParams(epochs=epochs, patience=epochs)
    grid_loss, grid_epochs, grid_s = full_grid(table, params, trials)
    say(f"full grid: best {grid_loss:.4f}, {grid_epochs} epochs, {grid_s:.0f} s on one core")
    loss, trained, swept_s = swept(table, params, trials, columns=flight_columns(table))
    say(f"ASHA:      best {loss:.4f}, {trained} epochs, {swept_s:.0f} s on Ray, two at a time")
    bound("times the best loss of the grid", loss / grid_loss, most=1.01)
    bound("of the grid's epochs", trained / grid_epochs, most=0.30)


def full_grid(table: pa.Table, params: TabularParams, trials: int) -> tuple[float, int, float]:
    """Train all settings: the best validation loss, their epochs together, and the seconds it took."""
    began = time.perf_counter()
    prepared = prepare(table, flight_columns(table), params)
    points = draw_points(DEFAULT_SPACE, params, trials, seed=0)
    all_epochs = [fit(prepared, point.resolved(len(prepared.train))).epochs for point in points]
    best = min(epoch.valid_loss for epochs in all_epochs for epoch in epochs)
    return best, sum(map(len, all_epochs)), time.perf_counter() - began


def swept(
    table: pa.Table,
    params: TabularParams,
    trials: int,
    *,
    columns: Columns,
    space: Space | None = None,
    stack: int = 1,
) -> tuple[float, int, float]:
    """Run the sweep: its best loss, epochs and seconds, with the start of its workers."""
    with temporary() as folder:
        url = (folder / "store").as_uri()
        store = open_store(url)
        snapshot = Table(store, "flights").append(table)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        with use_context(Context(store, url, actor="bench")):
            watch = Stopwatch()
            read = columns.label, list(columns.numeric), list(columns.categorical)
            options: dict[str, Any] = {
                "num_samples": trials,
                "concurrency": 2,
                "space": space,
                "stack": stack,
            }
            sweep = tune_tabular("late", snapshot, *read, params=params, **options)
            took_s = watch.wall_s
        ray.shutdown()
    return sweep.best_loss, sum(trial.epochs for trial in sweep.trials), took_s


if __name__ == "__main__":
    main(run, "torch", "ray", "pyarrow")
