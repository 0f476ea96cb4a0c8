"""Definition of the digit reader: 64 pixels, ten classes, a pipeline of scikit-learn as its trainer."""

from datetime import timedelta
from typing import Any

from functions.evaluation import Gate
from functions.monitoring import DriftMonitor, PerformanceMonitor
from functions.project import ModelDefinition
from functions.retraining.policy import RetrainingPolicy, TrainingWindow
from functions.rollout import RolloutPolicy
from functions.training import Sklearn
from registry import AutomaticApproval, ModelPolicy

PIXELS = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
ENTITIES = "digits/images"


def classifier(c: float) -> Any:
    """Make a logistic regression on scaled pixels. c: inverse of its penalty."""
    from sklearn.linear_model import LogisticRegression  # late: only what trains needs it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=200))


digit_model = ModelDefinition(
    name="digit",
    entities=ENTITIES,
    label="digit",
    outcome="multiclass",
    numeric=PIXELS,
    trainer=Sklearn(make=classifier, values={"c": 1.0}, valid_fraction=0.2),
    gate=Gate(max_log_loss_ratio={"constant": 0.5}, max_ece=0.2, min_rows=100),
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
MODELS = [digit_model]
