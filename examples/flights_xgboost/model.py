"""Definition of the model of late flights: what is known at take-off, XGBoost as its trainer."""

from datetime import timedelta
from typing import Any

from functions.evaluation import Gate
from functions.monitoring import AnswerMonitor, DriftMonitor, EstimateMonitor, PerformanceMonitor
from functions.project import ModelDefinition
from functions.retraining.policy import RetrainingPolicy, TrainingWindow
from functions.rollout import RolloutPolicy
from functions.training import XGBoost
from registry import AutomaticApproval, ModelPolicy

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
MODELS = [late_flights]
