"""Features as functions: training sets with lineage, materialization to the online store, and health of views."""

from functions.features.jobs import (
    MaterializeResult,
    TrainingSetLineage,
    build_training_set,
    feature_health,
    materialize,
    record_feature_health,
    training_set_lineage,
)

__all__ = [
    "MaterializeResult",
    "TrainingSetLineage",
    "build_training_set",
    "feature_health",
    "materialize",
    "record_feature_health",
    "training_set_lineage",
]
