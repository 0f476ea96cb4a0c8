"""Targets of the tabular network: one of two classes, one of several, or a number.

Each target knows its loss, its calibration, what the exported graph answers, and the metrics of the answer.
Probabilities are calibrated by temperature scaling: one factor, learnt on the validation rows. There is deliberately no
intercept. A network trained on log loss already has the base rate of its training rows; the validation rows are a few days,
whose own base rate is weather, and an intercept would learn that (on the flights of January to June it cost 1.3 % of July's
log loss).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from toque.functions.evaluation.metrics.numbers import NUMBER_METRICS
from toque.functions.evaluation.metrics.probabilities import CLASS_METRICS, METRICS
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.tabular.preprocessing import TabularData, require_both_classes
from toque.functions.training.tabular.settings import Task
from toque.registry.models import TensorSpec

_STEPS = 50  # of Newton's method at most, to the factor of a calibration
_TOLERANCE = 1e-8
_RIDGE = 10.0  # pulls that factor towards 1 as some tens of rows would: few validation rows prove little


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


Target = Binary | Multiclass | Regression
"""Meaning of the network's outputs (rows, outputs): how labels are coded, the loss, the calibration, the answer that is served, metrics."""


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


def fit_inverse_temperature(logits: Tensor, label: Tensor) -> float:
    """Find the factor on logits that lowers the log loss of `label` (rows,) most, by Newton's method.

    logits: (rows, classes), with labels that are class indices; or (rows,), with labels of 0 and 1.
    Returns: a positive factor; 1.0 where no factor is better, so the order of predictions never changes.
    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    z, y = logits.double(), label.long()
    if z.ndim == 1:
        z = torch.stack([torch.zeros_like(z), z], dim=1)
    chosen = float(z.gather(1, y.unsqueeze(1)).sum())
    factor = 1.0
    for _ in range(_STEPS):
        p = torch.softmax(factor * z, dim=1)
        mean = (p * z).sum(dim=1, keepdim=True)
        gradient = float(mean.sum()) - chosen + _RIDGE * (factor - 1.0)
        curvature = float((p * (z - mean) ** 2).sum()) + _RIDGE
        step = max(-0.5, min(0.5, gradient / curvature))
        factor -= step
        if abs(step) < _TOLERANCE:
            break
    before, after = (float(cross_entropy(x, y)) for x in (z, factor * z))
    return factor if factor > 0 and after < before else 1.0


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
