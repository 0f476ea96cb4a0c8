"""From a table of examples to a fitted, calibrated scorer: the pure middle of a training function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch

from functions.evaluation.metrics import METRICS
from functions.training.calibration import fit_inverse_temperature
from functions.training.dataset import (
    TIME_COLUMN,
    TabularData,
    require_both_classes,
    split_rows,
    tabular_data,
)
from functions.training.loop import Epoch, Examples, Trainer, World, score_logits
from functions.training.network import TabularNet
from functions.training.params import TabularParams
from functions.training.preprocessing import Preprocessing, fit_preprocessing
from functions.training.scorer import TabularScorer
from registry import Table, TableSnapshot

OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table are what."""

    numeric: Sequence[str]
    categorical: Sequence[str]
    label: str

    def read(self, table: Table, snapshot: TableSnapshot) -> pa.Table:
        """What training reads of a snapshot, the time of the row included; what is absent is named later, by use."""
        rows = table.read(version=snapshot.version)
        wanted = {*self.numeric, *self.categorical, self.label, TIME_COLUMN}
        return rows.select([name for name in rows.column_names if name in wanted])


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is done once before the first epoch.

    sample: a few raw training rows, for the export and for the recorded example.
    """

    preprocessing: Preprocessing
    train: Examples
    valid: Examples
    sample: TabularData


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted scorer and what is known about it.

    metrics: of the calibrated scorer on the rows held out.
    """

    scorer: TabularScorer
    inverse_temperature: float
    epochs: tuple[Epoch, ...]
    best_epoch: int
    metrics: dict[str, float]
    rows_train: int
    rows_valid: int
    sample: TabularData


def prepare(table: pa.Table, columns: Columns, params: TabularParams) -> Prepared:
    """Split, learn the preprocessing from the training part, and encode both parts.

    Raises: TrainingDataError if the table cannot be learnt from.
    """
    data = tabular_data(table, numeric=columns.numeric, categorical=columns.categorical, label=columns.label)
    rows_train, rows_valid = split_rows(
        table, valid_fraction=params.valid_fraction, by=params.split, seed=params.seed
    )
    train, valid = data.take(rows_train), data.take(rows_valid)
    for part, rows in (("training", train), ("validation", valid)):
        require_both_classes(rows.label, f"the {part} part ({len(rows)} rows)")
    preprocessing = fit_preprocessing(
        train,
        bins=params.bins,
        min_category_rows=params.min_category_rows,
        max_categories=params.max_categories,
    )
    return Prepared(
        preprocessing,
        Examples(preprocessing.encode(train), train.label),
        Examples(preprocessing.encode(valid), valid.label),
        data.take(torch.arange(min(64, len(data)))),
    )


def new_trainer(prepared: Prepared, params: TabularParams, world: World | None = None) -> Trainer:
    """A trainer of a fresh network; equal seeds give equal networks."""
    params = params.settled(len(prepared.train))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        net = TabularNet(prepared.preprocessing, params)
    return Trainer(net, prepared.train, prepared.valid, params, world)


def fit(
    prepared: Prepared,
    params: TabularParams,
    *,
    world: World | None = None,
    on_epoch: OnEpoch | None = None,
) -> Fitted:
    """Train until the schedule or patience ends, keep the best epoch, calibrate and measure it.

    Raises: TrainingDiverged if a loss stops being a number.
    """
    trainer = new_trainer(prepared, params, world)
    while not trainer.finished:
        epoch = trainer.run_epoch()
        if on_epoch is not None:
            on_epoch(epoch)
    trainer.restore_best()
    logits = score_logits(trainer.net, prepared.valid.rows)
    factor = fit_inverse_temperature(logits, prepared.valid.label)
    return Fitted(
        scorer=TabularScorer(trainer.net, factor).eval(),
        inverse_temperature=factor,
        epochs=tuple(trainer.epochs),
        best_epoch=trainer.best_epoch,
        metrics=_metrics(logits, prepared.valid.label, factor),
        rows_train=len(prepared.train),
        rows_valid=len(prepared.valid),
        sample=prepared.sample,
    )


def _metrics(logits: torch.Tensor, label: torch.Tensor, factor: float) -> dict[str, float]:
    probability = torch.sigmoid(logits * factor).numpy()
    return {name: metric(label.numpy(), probability) for name, metric in METRICS.items()}
