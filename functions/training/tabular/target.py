"""Targets of the tabular network: one of two classes, one of several, or a number.

Each target knows its loss, its calibration, what the exported graph answers, and the metrics of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from toque.functions.evaluation.metrics.classes import CLASS_METRICS
from toque.functions.evaluation.metrics.numbers import NUMBER_METRICS
from toque.functions.evaluation.metrics.probabilities import METRICS
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import Task
from toque.functions.training.tabular.calibration import fit_inverse_temperature
from toque.functions.training.tabular.dataset import TabularData, require_both_classes
from toque.registry.models import TensorSpec


class Target(Protocol):
    """Meaning of the network's outputs (rows, outputs): loss, calibration, answer and metrics."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def outputs(self) -> int:
        """Number of outputs that the network needs."""

    @property
    def spec(self) -> TensorSpec:
        """Tensor of the answer, as callers see it."""

    def code(self, label: Tensor) -> Tensor:
        """Convert labels (rows,) of the table to what `loss` takes."""

    def loss(self, outputs: Tensor, coded: Tensor, *, reduction: str = "mean") -> Tensor:
        """Loss that training lowers, the mean over rows or their "sum"."""

    def calibrate(self, outputs: Tensor, coded: Tensor) -> float:
        """Find the factor on outputs that lowers the loss of validation rows most."""

    def answer(self, outputs: Tensor) -> Tensor:
        """Convert calibrated outputs to the answer that is served."""

    def metrics(self, answer: Tensor, label: Tensor) -> dict[str, float]:
        """Measure answers against labels (rows,) of the table."""


@dataclass(frozen=True, slots=True)
class Binary:
    """Target for labels of 0 and 1: the answer is the probability of 1."""

    outputs: int = 1

    @property
    def spec(self) -> TensorSpec:
        """Tensor of one probability a row."""
        return TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])

    def code(self, label: Tensor) -> Tensor:
        """Return the labels unchanged, which are 0 and 1."""
        return label

    def loss(self, outputs: Tensor, coded: Tensor, *, reduction: str = "mean") -> Tensor:
        """Log loss of two classes, in nats."""
        return binary_cross_entropy_with_logits(outputs.squeeze(1), coded, reduction=reduction)

    def calibrate(self, outputs: Tensor, coded: Tensor) -> float:
        """Fit the factor of temperature scaling."""
        return fit_inverse_temperature(outputs.squeeze(1), coded)

    def answer(self, outputs: Tensor) -> Tensor:
        """Convert logits to probabilities (rows, 1)."""
        return torch.sigmoid(outputs)

    def metrics(self, answer: Tensor, label: Tensor) -> dict[str, float]:
        """Measure log loss, AUC, calibration error and Brier score."""
        found = answer.squeeze(1).numpy()
        return {name: metric(label.numpy(), found) for name, metric in METRICS.items()}


@dataclass(frozen=True, slots=True)
class Multiclass:
    """Target for labels of several classes: the answer is the probability of each, in the order of `classes`."""

    classes: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """One output for each class."""
        return len(self.classes)

    @property
    def spec(self) -> TensorSpec:
        """Tensor with a column of probabilities for each class."""
        return TensorSpec(
            name="probability", datatype="FP32", shape=[-1, len(self.classes)], columns=list(self.classes)
        )

    def code(self, label: Tensor) -> Tensor:
        """Return the labels unchanged, which are class indices, int64."""
        return label

    def loss(self, outputs: Tensor, coded: Tensor, *, reduction: str = "mean") -> Tensor:
        """Log loss of several classes, in nats."""
        return cross_entropy(outputs, coded, reduction=reduction)

    def calibrate(self, outputs: Tensor, coded: Tensor) -> float:
        """Fit the factor of temperature scaling."""
        return fit_inverse_temperature(outputs, coded)

    def answer(self, outputs: Tensor) -> Tensor:
        """Convert logits to probabilities (rows, classes)."""
        return torch.softmax(outputs, dim=1)

    def metrics(self, answer: Tensor, label: Tensor) -> dict[str, float]:
        """Measure log loss, accuracy, calibration error of the likeliest class and Brier score."""
        return {name: metric(label.numpy(), answer.numpy()) for name, metric in CLASS_METRICS.items()}


@dataclass(frozen=True, slots=True)
class Regression:
    """Target for numbers, learnt by squared error. center, scale: mean and deviation of the training labels."""

    center: float
    scale: float
    outputs: int = 1

    @property
    def spec(self) -> TensorSpec:
        """Tensor of one number a row, in the label's unit."""
        return TensorSpec(name="value", datatype="FP32", shape=[-1, 1])

    def code(self, label: Tensor) -> Tensor:
        """Convert labels to deviations from the mean."""
        return ((label - self.center) / self.scale).float()

    def loss(self, outputs: Tensor, coded: Tensor, *, reduction: str = "mean") -> Tensor:
        """Squared error of a number, in squared deviations."""
        return mse_loss(outputs.squeeze(1), coded, reduction=reduction)

    def calibrate(self, _: Tensor, __: Tensor) -> float:
        """Return 1, since a predicted mean needs no calibration."""
        return 1.0

    def answer(self, outputs: Tensor) -> Tensor:
        """Convert outputs to numbers (rows, 1) in the label's unit."""
        return outputs * self.scale + self.center

    def metrics(self, answer: Tensor, label: Tensor) -> dict[str, float]:
        """Measure root mean squared and mean absolute error, in the label's unit, and the share of variance explained."""
        found = answer.squeeze(1).numpy()
        return {name: metric(label.numpy(), found) for name, metric in NUMBER_METRICS.items()}


def target_of(task: Task, train: TabularData, valid: TabularData) -> Target:
    """Make the target of a task from the rows that are learnt from.

    Raises: TrainingDataError if the training or the validation rows have too few classes or values.
    """
    if task == "multiclass":
        _require_all_classes(train)
        return Multiclass(train.classes)
    for part, rows in (("training", train), ("validation", valid)):
        where = f"the {part} part ({len(rows)} rows)"
        if task == "binary":
            require_both_classes(rows.label, where)
        else:
            _require_spread(rows.label, where)
    if task == "binary":
        return Binary()
    return Regression(float(train.label.mean()), float(train.label.std(correction=0)))


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
