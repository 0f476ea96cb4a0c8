"""Retraining of models: an alarm leads, under a policy, to challengers, and the best of them to a rollout."""

from typing import TYPE_CHECKING

from functions.renamed import old_names
from functions.retraining.jobs import (
    InspectionResult,
    RetrainResult,
    inspect_model,
    inspect_models,
    inspections,
    request_retrain,
    retrain,
    retrains,
)
from functions.retraining.policy import RetrainingPolicy
from functions.retraining.windows import TrainingWindow

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

if not TYPE_CHECKING:  # a type checker must not take every name as there
    __getattr__ = old_names(__name__, {"Inspected": "InspectionResult", "Retrained": "RetrainResult"})
