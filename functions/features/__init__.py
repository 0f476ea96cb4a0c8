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
from functions.features.sources import (
    FeatureRefresh,
    RefreshError,
    SourceStatus,
    load_source,
    refresh_features,
    source_status,
)

__all__ = [
    "FeatureRefresh",
    "LoadedRows",
    "MaterializeResult",
    "RefreshError",
    "SourceStatus",
    "TrainingSetLineage",
    "build_training_set",
    "feature_health",
    "load_rows",
    "load_source",
    "materialize",
    "record_feature_health",
    "refresh_features",
    "source_status",
    "training_set_lineage",
]
