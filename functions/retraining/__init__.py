"""Retraining of models: an alarm leads, under a policy, to challengers, and the best of them to a rollout."""

from toque.functions.retraining.jobs import (
    InspectionResult,
    RetrainResult,
    inspect_model,
    inspect_models,
    inspections,
    request_retrain,
    retrain,
    retrains,
)
from toque.functions.retraining.policy import RetrainingPolicy
from toque.functions.retraining.windows import TrainingWindow

__all__ = [
    "InspectionResult",
    "RetrainResult",
    "RetrainingPolicy",
    "TrainingWindow",
    "inspect_model",
    "inspect_models",
    "inspections",
    "request_retrain",
    "retrain",
    "retrains",
]
