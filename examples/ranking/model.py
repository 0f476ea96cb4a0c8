"""Definition of the ranking of flights: four features of an item, the request as what is judged, XGBoost as its trainer."""

from typing import Any

from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import DriftMonitor, PerformanceMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import XGBoost

ENTITIES = "ranking/items"

flight_order = ModelDefinition(
    name="flight-order",
    entities=ENTITIES,
    label="relevance",
    outcome="ranking",
    group="request",
    numeric=("hour", "distance"),
    categorical=("carrier", "origin"),
    trainer=XGBoost(rounds=60, early_stopping=10, max_depth=3, split="random", valid_fraction=0.2),
    gate=Gate(max_log_loss_ratio={"constant": 0.97, "popularity": 1.05}, item="carrier", min_rows=50),
    monitors=(PerformanceMonitor(min_labels=30), DriftMonitor()),
    rollout=ROLLOUT,
    retraining=RETRAINING,
    governance=GOVERNANCE,
)
FEATURES: list[Any] = []
MODELS = [flight_order]
