"""Fitting of the tabular network: from a table of examples to a calibrated scorer, without registry or run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import torch
from torch import Tensor

from toque.functions.training.loop.epoch import Epoch, OnEpoch
from toque.functions.training.loop.process_groups.process_group import ProcessGroup, SingleProcess
from toque.functions.training.loop.training_loop import Trainer, train
from toque.functions.training.params import TabularParams
from toque.functions.training.tabular.columns import Columns
from toque.functions.training.tabular.dataset import (
    TabularData,
    split_rows,
    tabular_data,
)
from toque.functions.training.tabular.network import TabularNet
from toque.functions.training.tabular.preprocessing import Preprocessing, fit_preprocessing
from toque.functions.training.tabular.scorer import TabularScorer
from toque.functions.training.tabular.target import Regression, Target, target_of
from toque.functions.training.tabular.task import Examples, LabelledRows, RowSource, TabularTask
from toque.functions.training.tabular.warm_start import WarmStart

if TYPE_CHECKING:
    from toque.functions.training.loop.keeping import Keeper

_SCORING_ROWS = 16_384  # rows scored at once: few enough for the cache of a core


@dataclass(frozen=True, slots=True)
class Prepared:
    """Encoded data and learnt preprocessing, made once before the first epoch.

    label: (rows,) of the validation rows, as in the table; sample: a few raw rows, for the export and the recorded
    example; warm_start: the version whose weights training begins with, or None.
    """

    preprocessing: Preprocessing
    target: Target
    train: Examples
    valid: Examples
    label: Tensor
    sample: TabularData
    warm_start: WarmStart | None = None


@dataclass(frozen=True, slots=True)
class Fitted:
    """Calibrated scorer with its epochs, and its metrics on the validation rows."""

    scorer: TabularScorer
    inverse_temperature: float
    epochs: tuple[Epoch, ...]
    best_epoch: int
    metrics: dict[str, float]
    rows_train: int
    rows_valid: int
    sample: TabularData


def prepare(
    table: pa.Table, columns: Columns, params: TabularParams, warm_start: WarmStart | None = None
) -> Prepared:
    """Split, learn the preprocessing from the training rows (or take that of `warm_start`), and encode all rows.

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
    if warm_start is not None:
        target, preprocessing = warm_start.target_for(target), warm_start.preprocessing()
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
        LabelledRows(preprocessing.encode(train), target.code(train.label)),
        LabelledRows(preprocessing.encode(valid), target.code(valid.label)),
        valid.label,
        data.take(torch.arange(min(64, len(data)))),
        warm_start,
    )


def new_trainer(prepared: Prepared, params: TabularParams, group: ProcessGroup | None = None) -> Trainer:
    """Make a trainer of a new network, or of one with the weights of the warm start; equal seeds give equal networks."""
    params = params.resolved(len(prepared.train))
    return Trainer(new_network(prepared, params), new_task(prepared, params), params, group)


def new_network(prepared: Prepared, params: TabularParams) -> TabularNet:
    """Make a new network, or one with the weights of the warm start; equal seeds give equal networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params.seed)
        line = isinstance(prepared.target, Regression)
        net = TabularNet(prepared.preprocessing, params, outputs=prepared.target.outputs, line=line)
    if prepared.warm_start is not None:
        prepared.warm_start.load(net)
    elif net.line is not None:
        net.line.fit(prepared.train, prepared.valid)
    return net


def new_task(prepared: Prepared, params: TabularParams) -> TabularTask:
    """Make the task of learning the prepared rows."""
    offset = prepared.preprocessing.offset
    return TabularTask(prepared.train, prepared.valid, prepared.target, offset, params.unknown_rate)


def fit(
    prepared: Prepared,
    params: TabularParams,
    *,
    group: ProcessGroup | None = None,
    on_epoch: OnEpoch | None = None,
    keeper: Keeper | None = None,
) -> Fitted:
    """Train until the schedule or patience ends, keep the best epoch, calibrate and measure it.

    on_epoch: called with each epoch, also with those trained before an interruption.
    keeper: writes checkpoints, from which an interrupted training resumes.
    Raises: TrainingDiverged if a loss stops being a number.
    """
    group = group or SingleProcess()
    trainer = new_trainer(prepared, params, group)
    train(trainer, group, on_epoch=on_epoch, keeper=keeper)
    net = cast("TabularNet", trainer.net)
    logits, target = score_logits(net, prepared.valid.rows, group.device), prepared.target
    net.to("cpu")  # what is exported and served needs no card
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


def score_logits(net: TabularNet, rows: RowSource, device: str = "cpu") -> Tensor:
    """Compute logits (rows, outputs) of encoded rows in host memory, without dropout or gradients. device: of the network."""
    net.eval()
    pieces = []
    with torch.no_grad():
        for start in range(0, len(rows), _SCORING_ROWS):
            part = rows.take(torch.arange(start, min(start + _SCORING_ROWS, len(rows))))
            inputs = (tensor.to(device) for tensor in (part.numeric, part.missing, part.category))
            pieces.append(net(*inputs).cpu())
    return torch.cat(pieces) if pieces else torch.empty(0, net.outputs)
