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
from functions.features.load_rows import LoadedRows, load_rows

__all__ = [
    "LoadedRows",
    "MaterializeResult",
    "TrainingSetLineage",
    "build_training_set",
    "feature_health",
    "load_rows",
    "materialize",
    "record_feature_health",
    "training_set_lineage",
]
