"""Features as functions: training sets with lineage, materialization to the online store, and health of views."""

from toque.functions.features.catalog import CatalogEntry, feature_catalog
from toque.functions.features.jobs import (
    MaterializeResult,
    TrainingSetLineage,
    build_training_set,
    feature_health,
    materialize,
    record_feature_health,
    training_set_lineage,
)
from toque.functions.features.origins import DatasetOrigin, VersionOrigins, version_origins
from toque.functions.features.sources import (
    FeatureRefresh,
    LoadedRows,
    RefreshError,
    SourceStatus,
    load_declared,
    load_rows,
    load_source,
    refresh_features,
    refresh_service,
    source_status,
)
from toque.functions.features.streams import (
    StreamPartition,
    StreamReplay,
    StreamStatus,
    replay_stream,
    stream_status,
)
from toque.functions.features.vectors import (
    IndexRefreshError,
    VectorIndexStatus,
    refresh_vector_indexes,
    vector_indexes,
)
from toque.functions.features.view_figures import (
    HealthPoint,
    feature_course,
    feature_health_history,
    feature_statistics,
)

__all__ = [
    "CatalogEntry",
    "DatasetOrigin",
    "FeatureRefresh",
    "HealthPoint",
    "IndexRefreshError",
    "LoadedRows",
    "MaterializeResult",
    "RefreshError",
    "SourceStatus",
    "StreamPartition",
    "StreamReplay",
    "StreamStatus",
    "TrainingSetLineage",
    "VectorIndexStatus",
    "VersionOrigins",
    "build_training_set",
    "feature_catalog",
    "feature_course",
    "feature_health",
    "feature_health_history",
    "feature_statistics",
    "load_declared",
    "load_rows",
    "load_source",
    "materialize",
    "record_feature_health",
    "refresh_features",
    "refresh_service",
    "refresh_vector_indexes",
    "replay_stream",
    "source_status",
    "stream_status",
    "training_set_lineage",
    "vector_indexes",
    "version_origins",
]
