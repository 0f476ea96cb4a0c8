"""Benchmark of sweeps: early stopping beside the full grid, and stacked trials beside trials one by one.

python -m toque.load.benchmarks.training.sweeps --flights FILE [--trials 16] [--epochs 9]
python -m toque.load.benchmarks.training.sweeps --stack 32 [--trials 64] [--epochs 9] [--rows 2000] [--rounds 3]

FILE is what `python -m examples.flights.table FILE` writes; January to March is learnt. The exit code is 1 if the sweep's best
validation loss is more than 1 % above that of the full grid, or if it took more than 30 % of its epochs.
With `--stack`, made-up rows and a small network: the exit code is 1 if stacked trials take more than .35 of the time of trials one by
one, both on two cores under ASHA with what Ray and the store take, or if the best losses differ by more than rounding. Both ways
take turns, and the least time of each counts: what else runs on a machine only adds.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

import toque.functions.tuning.sweep  # noqa: F401 - read now, so that neither of the two ways pays for it
from toque.functions import Context, use_context
from toque.functions.training.params import TabularParams
from toque.functions.training.tabular.columns import Columns
from toque.functions.training.tabular.fitting import Prepared, fit, new_trainer, prepare
from toque.functions.tuning.jobs import tune_tabular
from toque.functions.tuning.space import DEFAULT_SPACE, Space, draw_points
from toque.functions.tuning.stacked.trainer import OWN, StackedTrainer
from toque.load.benchmarks.timing import print_machine
from toque.load.benchmarks.training.tabular import COLUMNS, flight_columns, synthetic_table
from toque.registry import Table, open_store

MOST_LOSS, MOST_EPOCHS = 1.01, 0.30
MOST_TIME, ROUNDING, SMALL_ROWS = 0.35, 1e-5, 2_000
LEARNT_MONTHS, EPOCHS = 3, 2


def main() -> None:
    """Run the comparison that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flights", type=Path)
    parser.add_argument("--stack", type=int, help="trials that each of two workers trains together")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--rows", type=int, default=SMALL_ROWS, help="of the made-up table")
    parser.add_argument("--rounds", type=int, default=3, help="sweeps each way, with --stack")
    given = parser.parse_args()
    if (given.flights is None) == (given.stack is None):
        parser.error("want one of --flights FILE and --stack N")
    torch.set_num_threads(1)
    print_machine("torch", "ray", "pyarrow")
    if given.stack is not None:
        trials = given.trials or 64
        sys.exit(not stacked_is_fast(trials, given.epochs, given.stack, given.rows, given.rounds))
    sys.exit(not asha_finds_the_best(given.flights, given.trials or 16, given.epochs))


def stacked_is_fast(trials: int, epochs: int, stack: int, rows: int, rounds: int) -> bool:
    """Run the same sweep one by one and stacked by turns, and compare the least times and the best losses."""
    table = synthetic_table().slice(0, rows)
    params = TabularParams(hidden=(32, 16), epochs=epochs, patience=epochs, split="random")
    space: Space = {name: source for name, source in DEFAULT_SPACE.items() if name in OWN}
    assert tune_tabular.digest  # noqa: S101 - found now, so that neither of the two pays for it
    arithmetic(table, params, draw_points(space, params, stack, seed=0))
    losses: dict[int, float] = {}
    least_s = {1: math.inf, stack: math.inf}
    for size in (1, stack) * rounds:
        losses[size], trained, took = swept(table, params, trials, columns=COLUMNS, space=space, stack=size)
        least_s[size] = min(least_s[size], took)
        print(
            f"stack={size:<3} best {losses[size]:.6f}, {trained} epochs, {took:.1f} s on two cores",
            flush=True,
        )
    share = least_s[stack] / least_s[1]
    gap = abs(losses[stack] / losses[1] - 1)
    print(
        f"{trials} trials stacked: {share:.3f} of the time (at most {MOST_TIME}), best losses differ by {gap:.1e}"
    )
    return share <= MOST_TIME and gap <= ROUNDING


def arithmetic(table: pa.Table, params: TabularParams, points: list[TabularParams]) -> None:
    """Print the processor time of two epochs of each trial, stacked and one by one, without Ray and store."""
    prepared, took = prepare(table, COLUMNS, params), []
    new_trainer(prepared, params).run_epoch()  # what torch makes at first
    for way in (_stacked_epochs, _epochs_one_by_one):
        began = time.process_time()
        way(prepared, points)
        took.append(time.process_time() - began)
    print(
        f"{len(points)} trials, {EPOCHS} epochs of {len(prepared.train)} rows in one thread: {took[0]:.2f} s of a core stacked, "
        f"{took[1]:.2f} s one by one, {took[0] / took[1]:.3f}",
        flush=True,
    )


def _stacked_epochs(prepared: Prepared, points: list[TabularParams]) -> None:
    trainer = StackedTrainer(prepared, dict(enumerate(points)))
    for _ in range(EPOCHS):
        trainer.run_epoch()


def _epochs_one_by_one(prepared: Prepared, points: list[TabularParams]) -> None:
    for point in points:
        trainer = new_trainer(prepared, point)
        for _ in range(EPOCHS):
            trainer.run_epoch()


def asha_finds_the_best(flights: Path, trials: int, epochs: int) -> bool:
    """Run a sweep under ASHA and the full grid, and compare best loss and epochs."""
    table = pq.read_table(flights)
    table = table.filter(pc.less_equal(pc.month(table["event_timestamp"]), LEARNT_MONTHS))
    params = TabularParams(epochs=epochs, patience=epochs)
    grid_loss, grid_epochs, grid_s = full_grid(table, params, trials)
    print(f"full grid: best {grid_loss:.4f}, {grid_epochs} epochs, {grid_s:.0f} s on one core", flush=True)
    loss, trained, swept_s = swept(table, params, trials, columns=flight_columns(table))
    print(
        f"ASHA:      best {loss:.4f} ({loss / grid_loss:.4f} x, at most {MOST_LOSS}), {trained} epochs "
        f"({trained / grid_epochs:.1%}, at most {MOST_EPOCHS:.0%}), {swept_s:.0f} s on Ray, two at a time"
    )
    return loss <= MOST_LOSS * grid_loss and trained <= MOST_EPOCHS * grid_epochs


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
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        url = (Path(folder) / "store").as_uri()
        store = open_store(url)
        snapshot = Table(store, "flights").append(table)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        began = time.perf_counter()
        with use_context(Context(store, url, actor="bench")):
            sweep = tune_tabular(
                "late",
                snapshot,
                columns.label,
                list(columns.numeric),
                list(columns.categorical),
                params=params,
                num_samples=trials,
                concurrency=2,
                space=space,
                stack=stack,
            )
        took = time.perf_counter() - began
        ray.shutdown()
    return sweep.best_loss, sum(trial.epochs for trial in sweep.trials), took


if __name__ == "__main__":
    main()
