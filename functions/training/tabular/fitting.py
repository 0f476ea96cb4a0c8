"""From a table of examples to a fitted, calibrated scorer: the pure middle of a training function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
import torch
from torch import Tensor

from functions.training.checkpoints import Checkpoints
from functions.training.loop.parallel import Alone, World
from functions.training.loop.training_loop import Epoch, OnEpoch, Trainer, train
from functions.training.params import TabularParams
from functions.training.tabular.dataset import (
    TIME_COLUMN,
    TabularData,
    split_rows,
    tabular_data,
)
from functions.training.tabular.network import TabularNet
from functions.training.tabular.preprocessing import Preprocessing, fit_preprocessing
from functions.training.tabular.scorer import TabularScorer
from functions.training.tabular.target import Target, target_of
from functions.training.tabular.task import Examples, Rows, TabularLesson
from functions.training.tabular.warm_start import Start
from registry import Table, TableSnapshot

_SCORING_ROWS = 16_384  # rows scored at once: few enough for the cache of a core


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

    start: the version whose weights training begins with, or None; label: (rows,) of the rows held out, as in the table; sample: a few raw training rows, for the export and for the
    recorded example.
    """

    preprocessing: Preprocessing
    target: Target
    train: Examples
    valid: Examples
    label: Tensor
    sample: TabularData
    start: Start | None = None


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


def prepare(table: pa.Table, columns: Columns, params: TabularParams, start: Start | None = None) -> Prepared:
    """Split, learn the preprocessing from the training part (or take that of `start`), and encode both parts.

    Raises: TrainingDataError if the table cannot be learnt from.
    """
    data = tabular_data(
        table, numeric=columns.numeric, categorical=columns.categorical, label=columns.label, task=params.task
    )
    rows_train, rows_valid = split_rows(
        table, valid_fraction=params.valid_fraction, by=params.split, seed=params.seed
    )
    train, valid = data.take(rows_train), data.take(rows_valid)
    target = target_of(params.task, train, valid)
    if start is not None:
        target, preprocessing = start.kept(target), start.preprocessing()
    else:
        preprocessing = fit_preprocessing(
            train,
            bins=params.bins,
            min_category_rows=params.min_category_rows,
            max_categories=params.max_categories,
        )
    return Prepared(
        preprocessing,
        target,
        Examples(preprocessing.encode(train), target.code(train.label)),
        Examples(preprocessing.encode(valid), target.code(valid.label)),
        valid.label,
        data.take(torch.arange(min(64, len(data)))),
        start,
    )


def new_trainer(prepared: Prepared, params: TabularParams, world: World | None = None) -> Trainer:
    """A trainer of a fresh network, or one with the weights to start from; equal seeds give equal networks."""
    params = params.settled(len(prepared.train))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        net = TabularNet(prepared.preprocessing, params, outputs=prepared.target.outputs)
    if prepared.start is not None:
        prepared.start.load(net)
    offset = prepared.preprocessing.offset
    lesson = TabularLesson(prepared.train, prepared.valid, prepared.target, offset, params.unknown_rate)
    return Trainer(net, lesson, params, world)


def fit(
    prepared: Prepared,
    params: TabularParams,
    *,
    world: World | None = None,
    on_epoch: OnEpoch | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """Train until the schedule or patience ends, keep the best epoch, calibrate and measure it.

    on_epoch: told of each epoch, of those that were trained before an interruption too.
    checkpoints: where an interrupted training is taken up; the first worker saves each epoch.
    Raises: TrainingDiverged if a loss stops being a number.
    """
    world = world or Alone()
    trainer = new_trainer(prepared, params, world)
    train(trainer, world, on_epoch=on_epoch, checkpoints=checkpoints)
    net = cast("TabularNet", trainer.net)
    logits, target = score_logits(net, prepared.valid.rows), prepared.target
    factor = target.calibrate(logits, prepared.valid.label)
    return Fitted(
        scorer=TabularScorer(net, target, factor).eval(),
        inverse_temperature=factor,
        epochs=tuple(trainer.epochs),
        best_epoch=trainer.best_epoch,
        metrics=target.metrics(target.answer(logits * factor), prepared.label),
        rows_train=len(prepared.train),
        rows_valid=len(prepared.valid),
        sample=prepared.sample,
    )


def score_logits(net: TabularNet, rows: Rows) -> Tensor:
    """Logits (rows, outputs) of encoded rows, without dropout or gradients."""
    net.eval()
    pieces = []
    with torch.no_grad():
        for start in range(0, len(rows), _SCORING_ROWS):
            part = rows.take(torch.arange(start, min(start + _SCORING_ROWS, len(rows))))
            pieces.append(net(part.numeric, part.missing, part.category))
    return torch.cat(pieces) if pieces else torch.empty(0, net.outputs)
