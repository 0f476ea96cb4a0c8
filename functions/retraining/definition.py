"""Protocols of a model's definition as retraining and inspections read it; `toque.functions.project.ModelDefinition` has all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from toque.functions.alerting import AlertPolicy
from toque.functions.evaluation import Gate
from toque.functions.monitoring import (
    AnswerMonitor,
    DriftMonitor,
    EstimateMonitor,
    OperationsMonitor,
    PerformanceMonitor,
    QualityMonitor,
    SkewMonitor,
    VectorMonitor,
)
from toque.functions.retraining.policy import RetrainingPolicy
from toque.functions.rollout import RolloutPolicy
from toque.functions.training.model import TrainableModel


# ruff: noqa: D102 — the attributes are those of ModelDefinition, which explains them
class TrainedModel(TrainableModel, Protocol):
    """Definition of how a model is trained, judged and retrained."""

    @property
    def entities(self) -> str: ...
    @property
    def gate(self) -> Gate: ...
    @property
    def rollout(self) -> RolloutPolicy: ...
    @property
    def retraining(self) -> RetrainingPolicy | None: ...


class InspectedModel(TrainedModel, Protocol):
    """Definition of how a model is trained, monitored and inspected."""

    @property
    def inspect(self) -> str: ...
    @property
    def alerts(self) -> AlertPolicy | None: ...
    @property
    def performance(self) -> PerformanceMonitor | None: ...
    @property
    def drift(self) -> DriftMonitor | None: ...
    @property
    def quality(self) -> QualityMonitor | None: ...
    @property
    def estimate(self) -> EstimateMonitor | None: ...
    @property
    def skew(self) -> SkewMonitor | None: ...
    @property
    def operations(self) -> OperationsMonitor | None: ...
    @property
    def vectors(self) -> VectorMonitor | None: ...
    @property
    def answers(self) -> AnswerMonitor | None: ...


class InspectedProject(Protocol):
    """Project whose models are inspected."""

    @property
    def models(self) -> Mapping[str, InspectedModel]: ...
