"""Definition of the digit reader: 64 pixels, ten classes, a pipeline of scikit-learn as its trainer."""

from typing import Any

from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import DriftMonitor, PerformanceMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import Sklearn

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
    rollout=ROLLOUT,
    retraining=RETRAINING,
    governance=GOVERNANCE,
)
FEATURES: list[Any] = []
MODELS = [digit_model]
