"""Definition of the model of late flights: what is known at take-off, XGBoost as its trainer."""

from typing import Any

from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import AnswerMonitor, DriftMonitor, EstimateMonitor, PerformanceMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import XGBoost

ENTITIES = "flights_xgboost/entities"

late_flights = ModelDefinition(
    name="flights-xgboost",
    entities=ENTITIES,
    label="late",
    numeric=("hour", "dep_delay", "distance"),
    categorical=("carrier", "origin"),
    trainer=XGBoost(rounds=60, early_stopping=10, max_depth=3, split="random", valid_fraction=0.2),
    gate=Gate(max_log_loss_ratio={"constant": 0.9}, max_ece=0.2, min_rows=100),
    monitors=(
        PerformanceMonitor(min_labels=30),
        DriftMonitor(),
        AnswerMonitor(),
        EstimateMonitor(min_labels=500),
    ),
    rollout=ROLLOUT,
    retraining=RETRAINING,
    governance=GOVERNANCE,
)
FEATURES: list[Any] = []
MODELS = [late_flights]
