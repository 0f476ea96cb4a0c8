"""Benchmark of training and scoring on one core: `python -m toque.load.benchmarks.training.tabular [--cases speed,bundled,flights,delays]`.

speed: a bare torch loop over the same encoded tensors with the same network and optimiser, and the bare network on arrays
that are already loaded, are the baselines, in the same process. Start-up of Ray is not part of it.
bundled, flights: the tabular default with its default settings beside scikit-learn's learners: on five of the data sets that
come with it, cross-validated, and on 2013's flights, learnt from January to March and tested on each later month
(`--flights FILE`, which `python -m examples.flights.table FILE` writes).
delays: the network of a number beside ridge regression on minutes of delay, which are nearly a line of the delay at departure.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from toque.functions.evaluation.baselines import number_linear
from toque.functions.model_formats.load import ScoringModel
from toque.functions.model_formats.table_inputs import table_inputs
from toque.functions.training.params import TabularParams
from toque.functions.training.tabular.artifact import tabular_signature, write_artifact
from toque.functions.training.tabular.columns import Columns
from toque.functions.training.tabular.fitting import Fitted, Prepared, fit, new_trainer, prepare
from toque.functions.training.tabular.out_of_core import prepare_on_disk
from toque.functions.training.tabular.preprocessing import EncodedRows
from toque.load.benchmarks.timing import Timing, print_machine, timed
from toque.load.peers.training import BUNDLED, PATIENT, Learner, boosted, bundled, delays, linear, loss, ours
from toque.registry import Table, open_store

ROWS, FEATURES, CATEGORIES = 160_000, 25, 6
COLUMNS = Columns([f"x{n}" for n in range(FEATURES)], [f"c{n}" for n in range(CATEGORIES)], "y")
PARAMS = TabularParams(batch_size=4_096, epochs=1_000, patience=1_000)


FOLDS, REPEATS, SEEDS = 5, 2, 3
DELAYS = 18_628
LEARNT_MONTHS = 3


def main() -> None:
    """Run the cases and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="speed")
    parser.add_argument("--flights", type=Path, help="what examples.flights.table wrote")
    given = parser.parse_args()
    cases = set(given.cases.split(","))
    if not cases <= {"speed", "bundled", "flights", "delays"} or (
        "flights" in cases and given.flights is None
    ):
        parser.error(
            f"--cases {given.cases}: want speed, bundled, delays or flights, the last with --flights FILE"
        )
    torch.set_num_threads(1)
    print_machine("torch", "numpy", "pyarrow", "scikit-learn")
    if "speed" in cases:
        _speed()
    if "bundled" in cases:
        _bundled()
    if "delays" in cases:
        _delays()
    if "flights" in cases:
        _flights(pq.read_table(given.flights))


def _speed() -> None:
    table = synthetic_table()
    print(f"{'p20 / p50 / p80':>42}")
    preparing = timed(lambda: prepare(table, COLUMNS, PARAMS), repeats=3)
    _line(f"prepare {ROWS} rows x {FEATURES} + {CATEGORIES}", preparing, preparing)
    prepared = prepare(table, COLUMNS, PARAMS)
    _bench_epoch(prepared)
    _bench_disk(table)
    _bench_scoring(table, prepared)


def _bundled() -> None:
    """Print losses by fold, and the paired difference to HistGradientBoosting with its standard error over folds."""
    print(f"{'data set':<14} {'ours':>8} {'boosted':>8} {'linear':>8}   ours - boosted (s.e.)")
    for name, task in BUNDLED.items():
        params = TabularParams(task=task, split="random")
        learners = [partial(ours, params=params), partial(boosted, task=task), partial(linear, task=task)]
        losses = []
        for seed in range(REPEATS):
            columns, cuts = bundled(name, FOLDS, seed)
            losses += [[loss(b, columns, task, one(a, b, columns)) for one in learners] for a, b in cuts]
        found = np.array(losses)
        gap = found[:, 0] - found[:, 1]
        error = gap.std(ddof=1) / np.sqrt(FOLDS)  # repeats share rows: only one round of folds counts
        means = " ".join(f"{value:8.4f}" for value in found.mean(axis=0))
        print(f"{name:<14} {means}   {gap.mean():+.4f} ({error:.4f})", flush=True)


def _delays() -> None:
    """Print the root mean squared error of the network and of ridge regression on a fifth of the rows, in minutes."""
    params = TabularParams(task="regression", split="random")
    for known in (True, False):
        table, columns = delays(DELAYS, known=known)
        cut = table.num_rows * 4 // 5
        train, test = table.slice(0, cut), table.slice(cut)
        line = number_linear(train, test, columns.numeric, columns.categorical, columns.label)
        own, straight = (
            loss(test, columns, "regression", each) for each in (ours(train, test, columns, params), line)
        )
        what = "with" if known else "without"
        print(
            f"arr_delay {what} dep_delay: ours {own:.3f}, ridge {straight:.3f}, ratio {own / straight:.4f}",
            flush=True,
        )


def _flights(table: pa.Table) -> None:
    """Print the log loss of each month (UTC) and of all months, for a few seeds."""
    columns = flight_columns(table)
    month, later = pc.month(table["event_timestamp"]).to_numpy(), range(LEARNT_MONTHS + 1, 13)
    train, test = (table.filter(pa.array(part)) for part in (month <= LEARNT_MONTHS, month > LEARNT_MONTHS))
    month = month[month > LEARNT_MONTHS]
    print(f"learnt from {train.num_rows} flights, tested on {test.num_rows}")
    learners: dict[str, Learner] = {
        f"ours, seed {seed}": partial(ours, params=TabularParams(seed=seed)) for seed in range(SEEDS)
    }
    learners |= {
        "boosted": partial(boosted, task="binary"),
        "boosted, patient": partial(boosted, task="binary", **PATIENT),
        "logistic": partial(linear, task="binary"),
    }
    print(f"{'':<18} " + " ".join(f"{name:>7}" for name in (*later, "all")))
    for name, learner in learners.items():
        answers = learner(train, test, columns)
        row = []
        for number in (*later, None):
            mask = month == number if number else np.full(len(month), fill_value=True)
            row.append(loss(test.filter(pa.array(mask)), columns, "binary", answers[mask]))
        print(f"{name:<18} " + " ".join(f"{value:7.4f}" for value in row), flush=True)


def flight_columns(table: pa.Table) -> Columns:
    """Choose texts as categories and numbers as numeric features, without time and label."""
    kinds = {field.name: field.type for field in table.schema if field.name != "late"}
    numeric = [
        name for name, kind in kinds.items() if pa.types.is_floating(kind) or pa.types.is_integer(kind)
    ]
    categorical = [
        name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ]
    return Columns(numeric, categorical, "late")


def synthetic_table() -> pa.Table:
    """Make rows with gaps, skewed numbers and categories of 10 to 1,000 values."""
    generator = np.random.default_rng(0)
    numbers = generator.lognormal(0.0, 1.0, (ROWS, FEATURES))
    codes = [generator.integers(10 * 10 ** (n % 3), size=ROWS) for n in range(CATEGORIES)]
    logit = np.log(numbers[:, :5]).sum(axis=1) * 0.4 + (codes[0] % 3 - 1.0)
    data = {
        name: pa.array(numbers[:, n], mask=generator.random(ROWS) < 0.1)
        for n, name in enumerate(COLUMNS.numeric)
    }
    data |= {name: pa.array([f"v{code}" for code in codes[n]]) for n, name in enumerate(COLUMNS.categorical)}
    at = np.sort(generator.integers(0, 90 * 86_400_000_000, ROWS))
    data["event_timestamp"] = pa.array(at).cast(pa.timestamp("us", "UTC"))
    data["y"] = pa.array((generator.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(float))
    return pa.table(data)


def _bench_epoch(prepared: Prepared) -> None:
    """Time an epoch of the trainer, without validation, against a bare loop of as many steps."""
    trainer = new_trainer(prepared, PARAMS)
    loaded = prepared.train.rows.take(torch.arange(len(prepared.train)))
    bare = timed(lambda: _bare_epoch(prepared, loaded), repeats=5)
    _line("bare torch loop, an epoch", bare, bare)
    ours = timed(trainer._pass_over_training_rows, repeats=5)  # noqa: SLF001 - what is compared
    _line("Trainer, an epoch", ours, bare)
    _line("Trainer, an epoch and validation", timed(trainer.run_epoch, repeats=5), bare)
    print(f"{'':>42}  {100 * trainer.epochs[-1].busy:5.1f} % of it busy with rows that are there")


def _bench_disk(table: pa.Table) -> None:
    """Time an epoch with the rows in a file, the page cache warm, against rows in memory."""
    with tempfile.TemporaryDirectory() as folder:
        stored = Table(open_store(f"file://{folder}"), "rows")
        snapshot = stored.append(table)
        memory, disk = (
            new_trainer(prepared, PARAMS)
            for prepared in (
                prepare(table, COLUMNS, PARAMS),
                prepare_on_disk(stored, snapshot, COLUMNS, PARAMS),
            )
        )
        here = timed(memory.run_epoch, repeats=5)
        _line("Trainer, an epoch and validation, in memory", here, here)
        _line("Trainer, an epoch and validation, on disk", timed(disk.run_epoch, repeats=5), here)
        print(f"{'':>42}  {100 * disk.epochs[-1].busy:5.1f} % of it busy with rows that are there")


def _bare_epoch(prepared: Prepared, rows: EncodedRows) -> None:
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


def _bench_scoring(table: pa.Table, prepared: Prepared) -> None:
    """Time the saved program, from arrays and from a table, against the network in memory."""
    params = PARAMS.model_copy(update={"epochs": 1})
    fitted = fit(prepared, params)
    model = _saved(table, fitted, params)
    part = table.slice(0, 50_000)
    arrays = table_inputs(part, model.signature)
    numeric, categorical = (torch.from_numpy(array) for array in arrays.values())
    with torch.inference_mode():
        bare = timed(lambda: fitted.scorer(numeric, categorical))
    _line("bare model, 50,000 loaded rows", bare, bare)
    _line("ScoringModel, 50,000 loaded rows", timed(lambda: model.predict(arrays)), bare)
    from_table = timed(lambda: model.predict(table_inputs(part, model.signature)))
    _line("ScoringModel, 50,000 rows of a table", from_table, bare)
    one = {name: array[:1] for name, array in arrays.items()}
    with torch.inference_mode():
        alone = timed(lambda: fitted.scorer(numeric[:1], categorical[:1]), repeats=200)
    _line("bare model, one row", alone, alone)
    _line("ScoringModel, one row", timed(lambda: model.predict(one), repeats=200), alone)


def _saved(table: pa.Table, fitted: Fitted, params: TabularParams) -> ScoringModel:
    signature = tabular_signature(COLUMNS, table, fitted.scorer.target)
    with tempfile.TemporaryDirectory() as folder:
        return write_artifact(Path(folder), fitted, signature=signature, columns=COLUMNS, params=params)


def _line(name: str, timing: Timing, baseline: Timing) -> None:
    print(f"{timing}  {timing.p50_s / baseline.p50_s:6.2f} x  {name}")


if __name__ == "__main__":
    main()
