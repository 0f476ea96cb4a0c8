"""Benchmark of early stopping: a sweep under ASHA beside the same settings trained to their last epoch.

python -m load.benchmarks.sweeps --flights FILE [--trials 16] [--epochs 9]

FILE is what `python -m examples.flights.table FILE` writes; January to March is learnt. The exit code is 1 if the sweep's best
validation loss is more than 1 % above that of the full grid, or if it took more than 30 % of its epochs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

from functions import Context, use_context
from functions.training.params import TabularParams
from functions.training.tabular.fitting import fit, prepare
from functions.tuning.jobs import tune_tabular
from functions.tuning.space import DEFAULT_SPACE, draw_points
from load.benchmarks.timing import print_machine
from load.benchmarks.training import flight_columns
from registry import Table, open_store

MOST_LOSS, MOST_EPOCHS = 1.01, 0.30
LEARNT_MONTHS = 3


def main() -> None:
    """Train all settings, run the sweep, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flights", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print_machine("torch", "ray", "pyarrow")
    table = pq.read_table(given.flights)
    table = table.filter(pc.less_equal(pc.month(table["event_timestamp"]), LEARNT_MONTHS))
    params = TabularParams(epochs=given.epochs, patience=given.epochs)
    grid_loss, grid_epochs, grid_s = full_grid(table, params, given.trials)
    print(f"full grid: best {grid_loss:.4f}, {grid_epochs} epochs, {grid_s:.0f} s on one core", flush=True)
    loss, epochs, swept_s = swept(table, params, given.trials)
    print(
        f"ASHA:      best {loss:.4f} ({loss / grid_loss:.4f} x, at most {MOST_LOSS}), {epochs} epochs "
        f"({epochs / grid_epochs:.1%}, at most {MOST_EPOCHS:.0%}), {swept_s:.0f} s on Ray, two at a time"
    )
    sys.exit(loss > MOST_LOSS * grid_loss or epochs > MOST_EPOCHS * grid_epochs)


def full_grid(table: pa.Table, params: TabularParams, trials: int) -> tuple[float, int, float]:
    """Train all settings: the best validation loss, their epochs together, and the seconds it took."""
    began = time.perf_counter()
    prepared = prepare(table, flight_columns(table), params)
    points = draw_points(DEFAULT_SPACE, params, trials, seed=0)
    all_epochs = [fit(prepared, point.resolved(len(prepared.train))).epochs for point in points]
    best = min(epoch.valid_loss for epochs in all_epochs for epoch in epochs)
    return best, sum(map(len, all_epochs)), time.perf_counter() - began


def swept(table: pa.Table, params: TabularParams, trials: int) -> tuple[float, int, float]:
    """Run the sweep: its best loss, epochs and seconds, with the start of its workers."""
    columns = flight_columns(table)
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
            )
        took = time.perf_counter() - began
        ray.shutdown()
    return sweep.best_loss, sum(trial.epochs for trial in sweep.trials), took


if __name__ == "__main__":
    main()
