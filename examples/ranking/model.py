"""Definition of the ranking of flights: four features of an item, the request as what is judged, XGBoost as its trainer."""

from datetime import timedelta
from typing import Any

from functions.evaluation import Gate
from functions.monitoring import DriftMonitor, PerformanceMonitor
from functions.project import ModelDefinition
from functions.retraining.policy import RetrainingPolicy, TrainingWindow
from functions.rollout import RolloutPolicy
from functions.training import XGBoost
from registry import AutomaticApproval, ModelPolicy

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
    rollout=RolloutPolicy(
        dependence="unit",
        planned_labels=600,
        shadow_min_labels=200,
        canary_share=0.3,
        mismatch_alpha=0.001,
    ),
    retraining=RetrainingPolicy(
        windows=(TrainingWindow(name="all"), TrainingWindow(name="recent", days=5)),
        holdout=timedelta(days=1),
        cooldown=timedelta(days=5),
        settle=timedelta(days=2),
    ),
    governance=ModelPolicy(
        guarded=frozenset({"champion"}),
        gates=("offline",),
        automatic_approval=AutomaticApproval(reason="an example without people"),
    ),
)
FEATURES: list[Any] = []
MODELS = [flight_order]
