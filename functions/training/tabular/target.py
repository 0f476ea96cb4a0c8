"""What a label is to the network: one class or another, one of several, or a number.

Each kind knows its loss, its calibration, what the exported graph answers, and how that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from functions.evaluation.metrics.classes import CLASS_METRICS
from functions.evaluation.metrics.numbers import NUMBER_METRICS
from functions.evaluation.metrics.probabilities import METRICS
from functions.training.errors import TrainingDataError
from functions.training.params import Task
from functions.training.tabular.calibration import fit_inverse_temperature
from functions.training.tabular.dataset import TabularData, require_both_classes
from registry.models.signature import TensorSpec


class Target(Protocol):
    """What the network's outputs (rows, outputs) mean."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def outputs(self) -> int:
        """How many the network has."""

    @property
    def spec(self) -> TensorSpec:
        """The answer as callers see it."""

    def code(self, label: Tensor) -> Tensor:
        """Labels (rows,) of the table as `loss` takes them."""

    def loss(self, outputs: Tensor, coded: Tensor, *, reduction: str = "mean") -> Tensor:
        """What training lowers: the mean over rows, or their "sum"."""

    def calibrate(self, outputs: Tensor, coded: Tensor) -> float:
        """The factor on outputs that lowers the loss of rows held out."""

    def answer(self, outputs: Tensor) -> Tensor:
        """Calibrated outputs as the answer that is served."""

    def metrics(self, answer: Tensor, label: Tensor) -> dict[str, float]:
        """How good answers are for labels (rows,) of the table."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A label of 0 or 1: the probability of 1."""

    outputs: int = 1

    @property
    def spec(self) -> TensorSpec:
        """One probability a row."""
        return TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])

    def code(self, label: Tensor) -> Tensor:
        """The labels themselves."""
        return label

    def loss(self, outputs: Tensor, coded: Tensor, *, reduction: str = "mean") -> Tensor:
        """Log loss in nats."""
        return binary_cross_entropy_with_logits(outputs.squeeze(1), coded, reduction=reduction)

    def calibrate(self, outputs: Tensor, coded: Tensor) -> float:
        """Temperature scaling."""
        return fit_inverse_temperature(outputs.squeeze(1), coded)

    def answer(self, outputs: Tensor) -> Tensor:
        """Probabilities (rows, 1)."""
        return torch.sigmoid(outputs)

    def metrics(self, answer: Tensor, label: Tensor) -> dict[str, float]:
        """Log loss, AUC, calibration error, Brier score."""
        found = answer.squeeze(1).numpy()
        return {name: metric(label.numpy(), found) for name, metric in METRICS.items()}


@dataclass(frozen=True, slots=True)
class OneOf:
    """A label that is one of several classes: the probability of each, in the order of `classes`."""

    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """One a class."""
        return len(self.classes)

    @property
    def spec(self) -> TensorSpec:
        """A column of probabilities for each class."""
        return TensorSpec(
            name="probability", datatype="FP32", shape=[-1, len(self.classes)], columns=list(self.classes)
        )

    def code(self, label: Tensor) -> Tensor:
        """Places among the classes, int64."""
        return label

    def loss(self, outputs: Tensor, coded: Tensor, *, reduction: str = "mean") -> Tensor:
        """Log loss in nats."""
        return cross_entropy(outputs, coded, reduction=reduction)

    def calibrate(self, outputs: Tensor, coded: Tensor) -> float:
        """Temperature scaling."""
        return fit_inverse_temperature(outputs, coded)

    def answer(self, outputs: Tensor) -> Tensor:
        """Probabilities (rows, classes)."""
        return torch.softmax(outputs, dim=1)

    def metrics(self, answer: Tensor, label: Tensor) -> dict[str, float]:
        """Log loss, accuracy, calibration error of the likeliest class, Brier score."""
        return {name: metric(label.numpy(), answer.numpy()) for name, metric in CLASS_METRICS.items()}


@dataclass(frozen=True, slots=True)
class Number:
    """A label that is a number, learnt by squared error. center, scale: mean and deviation of the training labels."""

    center: float
    scale: float
    outputs: int = 1

    @property
    def spec(self) -> TensorSpec:
        """One number a row, in the label's unit."""
        return TensorSpec(name="value", datatype="FP32", shape=[-1, 1])

    def code(self, label: Tensor) -> Tensor:
        """Labels in deviations from the mean."""
        return ((label - self.center) / self.scale).float()

    def loss(self, outputs: Tensor, coded: Tensor, *, reduction: str = "mean") -> Tensor:
        """Squared error, in squared deviations."""
        return mse_loss(outputs.squeeze(1), coded, reduction=reduction)

    def calibrate(self, _: Tensor, __: Tensor) -> float:
        """A mean needs none."""
        return 1.0

    def answer(self, outputs: Tensor) -> Tensor:
        """Numbers (rows, 1) in the label's unit."""
        return outputs * self.scale + self.center

    def metrics(self, answer: Tensor, label: Tensor) -> dict[str, float]:
        """Root mean squared error and mean absolute error in the label's unit, and the share of variance explained."""
        found = answer.squeeze(1).numpy()
        return {name: metric(label.numpy(), found) for name, metric in NUMBER_METRICS.items()}


def target_of(task: Task, train: TabularData, valid: TabularData) -> Target:
    """What the label means, from the rows that are learnt from.

    Raises: TrainingDataError if one part of the rows cannot teach or judge it.
    """
    if task == "multiclass":
        _require_all_classes(train)
        return OneOf(train.classes)
    for part, rows in (("training", train), ("validation", valid)):
        where = f"the {part} part ({len(rows)} rows)"
        if task == "binary":
            require_both_classes(rows.label, where)
        else:
            _require_spread(rows.label, where)
    if task == "binary":
        return Binary()
    return Number(float(train.label.mean()), float(train.label.std(correction=0)))


def _require_spread(label: Tensor, where: str) -> None:
    if bool((label == label[0]).all()):
        raise TrainingDataError(
            f"{where} has one label only, {float(label[0])}: nothing can be learnt from it; widen the time range or "
            "check the label"
        )


def _require_all_classes(train: TabularData) -> None:
    counts = torch.bincount(train.label, minlength=len(train.classes)).tolist()
    unseen = [name for name, count in zip(train.classes, counts, strict=True) if count == 0]
    if unseen:
        raise TrainingDataError(
            f"classes {unseen[:5]} are absent from the training part ({len(train)} rows): give more rows of them, "
            "leave them out, or split by 'random'"
        )
