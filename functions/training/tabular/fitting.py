"""Fitting of the tabular network: from a table of examples to a calibrated scorer, without registry or run.

The scorer is the torch module that is exported: preprocessing, network and calibration in one graph. A warm start begins with
network, preprocessing and target of a registered version.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from toque.functions.model_formats.load import DESCRIPTION_FILE, PROGRAM_FILE
from toque.functions.model_formats.program import load_program
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.loop.process_group import ProcessGroup, SingleProcess
from toque.functions.training.loop.training_loop import Trainer, train
from toque.functions.training.tabular.network import (
    Examples,
    LabelledRows,
    RowSource,
    TabularNet,
    TabularTask,
)
from toque.functions.training.tabular.preprocessing import (
    Preprocessing,
    TabularData,
    fit_preprocessing,
    split_rows,
    tabular_data,
)
from toque.functions.training.tabular.settings import Columns, TabularSettings
from toque.functions.training.tabular.target import Multiclass, Regression, Target, target_of
from toque.functions.training.trainer import Epoch, OnEpoch
from toque.registry import Registry

if TYPE_CHECKING:
    from toque.functions.training.loop.keeping import Keeper


_SHAPE = ("task", "hidden", "embedding_dim", "bins")  # settings that the shapes of the weights follow from
_PREPROCESSING = ("center", "inverse_scale", "left", "inverse_width", "vocabulary")
_SCORING_ROWS = 16_384  # rows scored at once: few enough for the cache of a core


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Weights of `version` by their names in the network, and the fields of its target."""

    version: int
    weights: dict[str, Tensor]
    target: dict[str, Any]

    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the version, which its weights depend on; a category that it does not know stays unknown."""
        return Preprocessing(*(self.weights[f"preprocessing.{name}"].clone() for name in _PREPROCESSING))

    def load(self, net: TabularNet) -> None:
        """Put the weights into a network of the same shape; one of before has no line, which then stays at zero."""
        unlined = {name: value for name, value in net.state_dict().items() if name.startswith("line.")}
        net.load_state_dict({**unlined, **self.weights})

    def target_for(self, target: Target) -> Target:
        """Target of the version, to train on rows whose own target is `target`.

        Raises: TrainingDataError if the two have different classes.
        """
        if isinstance(target, Regression):
            return Regression(self.target["center"], self.target["scale"])
        if isinstance(target, Multiclass) and list(target.classes) != list(self.target["classes"]):
            raise TrainingDataError(
                f"the label has the classes {list(target.classes)[:20]}, version {self.version} those of "
                f"{list(self.target['classes'])[:20]}: a warm start needs the same; train without start_from"
            )
        return target


def load_warm_start(
    registry: Registry, model: str, version: int, *, columns: Columns, params: TabularSettings
) -> WarmStart:
    """Read the version that a training begins with.

    Raises: NotFound; TrainingDataError if it is no tabular model, or of other columns or another shape; ArtifactRefused.
    """
    with tempfile.TemporaryDirectory(prefix="toque-start-") as folder:
        registry.download(model, version, to=folder)
        description, before = _description(
            Path(folder) / DESCRIPTION_FILE, f"{model}@{version}", type(params)
        )
        program = load_program((Path(folder) / PROGRAM_FILE).read_bytes())
    inputs = {spec["name"]: spec["columns"] for spec in description["signature"]["inputs"]}
    given = {"numeric": list(columns.numeric), "categorical": list(columns.categorical)}
    differ = {
        name: (getattr(before, name), getattr(params, name))
        for name in _SHAPE
        if getattr(before, name) != getattr(params, name)
    }
    if inputs != given or differ:
        raise TrainingDataError(
            f"{model}@{version} reads {inputs}, asked for {given}; settings that differ, as (there, here): {differ}: a warm "
            "start keeps columns and shape; ask for the same or train without start_from"
        )
    weights = {
        name.removeprefix("net."): value.detach().clone()
        for name, value in program.state_dict().items()
        if name.startswith("net.")
    }
    return WarmStart(version, weights, description.get("target", {}))


class TabularScorer(nn.Module):
    """Module from raw rows to calibrated answers, which is exported and served."""

    inverse_temperature: Tensor

    def __init__(self, net: TabularNet, target: Target, inverse_temperature: float) -> None:
        super().__init__()
        self.net, self.target = net, target
        self.register_buffer("inverse_temperature", torch.tensor(inverse_temperature, dtype=torch.float32))

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """Compute answers (rows, outputs) float32 from `numeric` (rows, F) float32, `categorical` (rows, C) int64."""
        scaled, missing, category = self.net.preprocessing(numeric, categorical)
        return self.target.answer(self.net(scaled, missing, category) * self.inverse_temperature)


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
    table: pa.Table, columns: Columns, params: TabularSettings, warm_start: WarmStart | None = None
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
    target, preprocessing = target_and_preprocessing(target, params, warm_start, lambda: train)
    return Prepared(
        preprocessing,
        target,
        LabelledRows(preprocessing.encode(train), target.code(train.label)),
        LabelledRows(preprocessing.encode(valid), target.code(valid.label)),
        valid.label,
        data.take(torch.arange(min(64, len(data)))),
        warm_start,
    )


def target_and_preprocessing(
    target: Target, params: TabularSettings, warm_start: WarmStart | None, rows: Callable[[], TabularData]
) -> tuple[Target, Preprocessing]:
    """Choose those of the warm start, or this target and what is learnt from training rows."""
    if warm_start is not None:
        return warm_start.target_for(target), warm_start.preprocessing()
    learnt = fit_preprocessing(
        rows(),
        bins=params.bins,
        min_category_rows=params.min_category_rows,
        max_categories=params.max_categories,
    )
    return target, learnt


def fit(
    prepared: Prepared,
    params: TabularSettings,
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


def new_trainer(prepared: Prepared, params: TabularSettings, group: ProcessGroup | None = None) -> Trainer:
    """Make a trainer of a new network, or of one with the weights of the warm start; equal seeds give equal networks."""
    settings = params.for_loop(len(prepared.train))
    return Trainer(new_network(prepared, params), new_task(prepared, params), settings, group)


def new_network(prepared: Prepared, params: TabularSettings) -> TabularNet:
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


def new_task(prepared: Prepared, params: TabularSettings) -> TabularTask:
    """Make the task of learning the prepared rows."""
    offset = prepared.preprocessing.offset
    return TabularTask(prepared.train, prepared.valid, prepared.target, offset, params.unknown_rate)


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


def _description(
    path: Path, name: str, kind: type[TabularSettings]
) -> tuple[dict[str, Any], TabularSettings]:
    if not path.is_file():
        raise TrainingDataError(
            f"{name} has no {path.name}: a warm start needs a version that train_tabular made"
        )
    description: dict[str, Any] = json.loads(path.read_text())
    try:
        return description, kind.model_validate(description["params"])
    except (KeyError, ValidationError) as error:
        raise TrainingDataError(
            f"{path.name} of {name} is not one that train_tabular wrote: {error}"
        ) from error
