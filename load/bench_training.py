"""Benchmark training and scoring on one core: `python -m load.bench_training`.

Baselines, in the same process: a bare torch loop over the same encoded tensors with the same network and optimiser, and
the bare network on arrays that are already loaded. Start-up of Ray is not part of it.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from functions.training.artifact import tabular_signature, write_artifact
from functions.training.assembly import table_inputs
from functions.training.fitting import Columns, Fitted, Prepared, fit, new_trainer, prepare
from functions.training.params import TabularParams
from functions.training.scoring import ScoringModel
from load.timing import Timing, print_machine, timed

ROWS, FEATURES, CATEGORIES = 160_000, 25, 6
COLUMNS = Columns([f"x{n}" for n in range(FEATURES)], [f"c{n}" for n in range(CATEGORIES)], "y")
PARAMS = TabularParams(batch_size=4_096, epochs=1_000, patience=1_000)


def main() -> None:
    """Run every case and print one line for each."""
    torch.set_num_threads(1)
    print_machine("torch", "numpy", "pyarrow")
    table = synthetic_table()
    print(f"{'p20 / p50 / p80':>42}")
    preparing = timed(lambda: prepare(table, COLUMNS, PARAMS), repeats=3)
    _line(f"prepare {ROWS} rows x {FEATURES} + {CATEGORIES}", preparing, preparing)
    prepared = prepare(table, COLUMNS, PARAMS)
    _bench_epoch(prepared)
    _bench_scoring(table, prepared)


def synthetic_table() -> pa.Table:
    """Rows with gaps, skewed numbers and categories of 10 to 1,000 values."""
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
    """An epoch of the trainer, validation apart, against a bare loop of as many steps."""
    trainer = new_trainer(prepared, PARAMS)
    bare = timed(lambda: _bare_epoch(prepared), repeats=5)
    _line("bare torch loop, an epoch", bare, bare)
    ours = timed(trainer._pass_over_training_rows, repeats=5)  # noqa: SLF001 - what is compared
    _line("Trainer, an epoch", ours, bare)
    _line("Trainer, an epoch and validation", timed(trainer.run_epoch, repeats=5), bare)


def _bare_epoch(prepared: Prepared) -> None:
    net = new_trainer(prepared, PARAMS).net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=PARAMS.lr, fused=True)
    rows, label = prepared.train.rows, prepared.train.label
    order = torch.randperm(len(label))
    for start in range(0, len(label) - PARAMS.batch_size + 1, PARAMS.batch_size):
        index = order[start : start + PARAMS.batch_size]
        logits = net(rows.numeric[index], rows.missing[index], rows.category[index]).squeeze(1)
        optimizer.zero_grad(set_to_none=True)
        binary_cross_entropy_with_logits(logits, label[index]).backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()


def _bench_scoring(table: pa.Table, prepared: Prepared) -> None:
    """The saved program, from arrays and from a table, against the network in memory."""
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
    signature = tabular_signature(COLUMNS, table)
    with tempfile.TemporaryDirectory() as folder:
        return write_artifact(Path(folder), fitted, signature=signature, columns=COLUMNS, params=params)


def _line(name: str, timing: Timing, baseline: Timing) -> None:
    print(f"{timing}  {timing.p50_s / baseline.p50_s:6.2f} x  {name}")


if __name__ == "__main__":
    main()
