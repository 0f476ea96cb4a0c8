"""Definition of the text classifier: one column of text, five classes, words weighted and a linear model as its trainer."""

from typing import Any

from examples.policies import GOVERNANCE, RETRAINING, ROLLOUT
from toque.functions.evaluation import Gate
from toque.functions.monitoring import PerformanceMonitor, VectorMonitor
from toque.functions.project import ModelDefinition
from toque.functions.training import Sklearn

ENTITIES = "texts/descriptions"


def classifier(c: float) -> Any:
    """Make a logistic regression on the words of the column `text`. c: inverse of its penalty."""
    from sklearn.compose import make_column_transformer  # late: only what trains needs it
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = make_column_transformer((TfidfVectorizer(max_features=5_000), "text"))
    return make_pipeline(words, LogisticRegression(C=c, max_iter=200))


package_model = ModelDefinition(
    name="package",
    entities=ENTITIES,
    label="package",
    outcome="multiclass",
    categorical=("text",),
    trainer=Sklearn(make=classifier, values={"c": 10.0}, valid_fraction=0.2),
    gate=Gate(max_log_loss_ratio={"constant": 0.8}, max_ece=0.3, min_rows=100),
    monitors=(PerformanceMonitor(min_labels=30), VectorMonitor(texts=("text",))),
    rollout=ROLLOUT,
    retraining=RETRAINING,
    governance=GOVERNANCE,
)
FEATURES: list[Any] = []
MODELS = [package_model]
