"""Benchmark of training and scoring on one core, by cases.

speed: a bare torch loop over the same encoded tensors with the same network and optimiser, and the bare network on arrays
that are already loaded, are the baselines, in the same process. Start-up of Ray is not part of it.
bundled, flights: the tabular default with its default settings beside scikit-learn's learners: on five of the data sets that
come with it, cross-validated, and on 2013's flights, learnt from January to March and tested on each later month
(`--flights FILE`, which `python -m examples.flights.table FILE` writes).
delays: the network of a number beside ridge regression on minutes of delay, which are nearly a line of the delay at departure.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from toque.functions.evaluation.baselines import number_linear
from toque.functions.model_formats.table_inputs import table_inputs
from toque.functions.training.params import TabularParams
from toque.functions.training.tabular.artifact import tabular_signature, write_artifact
from toque.functions.training.tabular.fitting import Prepared, fit, new_trainer, prepare
from toque.functions.training.tabular.out_of_core import prepare_on_disk
from toque.functions.training.tabular.preprocessing import EncodedRows
from toque.load.benchmarks.harness import NotPossible, line, main, say, temporary, timed
from toque.load.benchmarks.training.learners import (
    BUNDLED,
    Learner,
    boosted,
    bundled,
    delays,
    linear,
    loss,
    ours,
)
from toque.load.benchmarks.training.rows import (
    COLUMNS,
    LEARNT_MONTHS,
    PARAMS,
    flight_columns,
    synthetic_table,
)
from toque.registry import Table, open_store

FOLDS, REPEATS, SEEDS = 5, 2, 3
DELAYS = 18_628


def run(
    *,
    cases: tuple[Literal["speed", "bundled", "delays", "flights"], ...] = ("speed",),
    flights: Annotated[Path | None, "what examples.flights.table wrote"] = None,
) -> None:
    """Run the cases and print one line for each figure."""
    torch.set_num_threads(1)
    if "speed" in cases:
        _speed()
    if "bundled" in cases:
        _bundled()
    if "delays" in cases:
        _delays()
    if "flights" in cases:
        if flights is None:
            raise NotPossible("--cases flights wants --flights FILE")
        _flights(pq.read_table(flights))


def _speed() -> None:
    table = synthetic_table()
    line("prepare", timed(lambda: prepare(table, COLUMNS, PARAMS), repeats=3), rows=table.num_rows)
    prepared = prepare(table, COLUMNS, PARAMS)
    trainer = new_trainer(prepared, PARAMS)
    loaded = prepared.train.rows.take(torch.arange(len(prepared.train)))
    bare = timed(lambda: _bare_epoch(prepared, loaded), repeats=5)
    line("bare torch loop, an epoch", bare, bare)
    line("Trainer, an epoch", timed(trainer._pass_over_training_rows, repeats=5), bare)  # noqa: SLF001 - what is compared
    memory = timed(trainer.run_epoch, repeats=5)
    line(f"Trainer, an epoch and validation, busy {trainer.epochs[-1].busy:.1%}", memory, bare)
    with temporary() as folder:  # rows in a file, the page cache warm
        stored = Table(open_store(f"file://{folder}"), "rows")
        disk = new_trainer(prepare_on_disk(stored, stored.append(table), COLUMNS, PARAMS), PARAMS)
        took = timed(disk.run_epoch, repeats=5)
        line(f"Trainer, the same on disk, busy {disk.epochs[-1].busy:.1%}", took, memory)
    _scoring(table, prepared)


def _bare_epoch(prepared: Prepared, rows: EncodedRows) -> None:
    """Train an epoch, without validation, of as many steps as the trainer takes."""
    net = new_trainer(prepared, PARAMS).net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=PARAMS.lr, fused=True)
    label = prepared.train.label
    order = torch.randperm(len(label))
    for start in range(0, len(label) - PARAMS.batch_size + 1, PARAMS.batch_size):
        index = order[start : start + PARAMS.batch_size]
        logits = net(rows.numeric[index], rows.missing[index], rows.category[index]).squeeze(1)
        optimizer.zero_grad(set_to_none=True)
        binary_cross_entropy_with_logits(logits, label[index]).backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()


def _scoring(table: pa.Table, prepared: Prepared) -> None:
    """Time the saved program, from arrays and from a table, against the network in memory."""
    params = PARAMS.model_copy(update={"epochs": 1})
    fitted = fit(prepared, params)
    signature = tabular_signature(COLUMNS, table, fitted.scorer.target)
    with temporary() as folder:
        model = write_artifact(folder, fitted, signature=signature, columns=COLUMNS, params=params)
    part = table.slice(0, 50_000)
    for what, rows, repeats in (("50,000 loaded rows", 50_000, 9), ("one row", 1, 200)):
        arrays = {name: array[:rows] for name, array in table_inputs(part, model.signature).items()}
        tensors = [torch.from_numpy(array) for array in arrays.values()]
        with torch.inference_mode():
            bare = timed(lambda tensors=tensors: fitted.scorer(*tensors), repeats=repeats)  # type: ignore[misc]
        line(f"bare model, {what}", bare, bare)
        line(f"ScoringModel, {what}", timed(partial(model.predict, arrays), repeats=repeats), bare)
        if rows > 1:
            from_table: Callable[[], object] = lambda: model.predict(table_inputs(part, model.signature))  # noqa: E731
            line("ScoringModel, 50,000 rows of a table", timed(from_table), bare)


def _bundled() -> None:
    """Print losses by fold, and the paired difference to HistGradientBoosting with its standard error over folds."""
    for name, task in BUNDLED.items():
        params = TabularParams(task=task, split="random")
        learners = [partial(ours, params=params), partial(boosted, task=task), partial(linear, task=task)]
        losses = []
        for seed in range(REPEATS):
            columns, cuts = bundled(name, FOLDS, seed)
            losses += [[loss(b, columns, task, learn(a, b, columns)) for learn in learners] for a, b in cuts]
        means, gap = np.mean(losses, axis=0), np.subtract(*np.array(losses)[:, :2].T)
        error = gap.std(ddof=1) / np.sqrt(FOLDS)  # repeats share rows: only one round of folds counts
        say(
            f"{name:<14} ours {means[0]:.4f}, boosted {means[1]:.4f}, linear {means[2]:.4f}; "
            f"ours less boosted {gap.mean():+.4f} ({error:.4f})"
        )


def _delays() -> None:
    """Print the root mean squared error of the network and of ridge regression on a fifth of the rows, in minutes."""
    params = TabularParams(task="regression", split="random")
    for what, with_departure in (("with", True), ("without", False)):
        table, columns = delays(DELAYS, with_departure=with_departure)
        cut = table.num_rows * 4 // 5
        train, test = table.slice(0, cut), table.slice(cut)
        ridge = number_linear(train, test, columns.numeric, columns.categorical, columns.label)
        answers = (ours(train, test, columns, params), ridge)
        own, straight = (loss(test, columns, "regression", one) for one in answers)
        say(f"arr_delay {what} dep_delay: ours {own:.3f}, ridge {straight:.3f}, ratio {own / straight:.4f}")


def _flights(table: pa.Table) -> None:
    """Print the log loss of each month (UTC) and of all months, for a few seeds."""
    columns = flight_columns(table)
    month = pc.month(table["event_timestamp"]).to_numpy()
    train, test = (table.filter(pa.array(part)) for part in (month <= LEARNT_MONTHS, month > LEARNT_MONTHS))
    month = month[month > LEARNT_MONTHS]
    say(f"learnt from {train.num_rows} flights, tested on {test.num_rows}; by month, and all")
    learners: dict[str, Learner] = {
        f"ours, seed {seed}": partial(ours, params=TabularParams(seed=seed)) for seed in range(SEEDS)
    }
    learners |= {"boosted": partial(boosted, task="binary"), "logistic": partial(linear, task="binary")}
    masks = [*(month == number for number in range(LEARNT_MONTHS + 1, 13)), month > 0]
    for name, learn in learners.items():
        answers = learn(train, test, columns)
        losses = [loss(test.filter(pa.array(mask)), columns, "binary", answers[mask]) for mask in masks]
        say(f"{name:<18} " + " ".join(f"{value:7.4f}" for value in losses))


if __name__ == "__main__":
    main(run, "torch", "numpy", "pyarrow", "scikit-learn")
