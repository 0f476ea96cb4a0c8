"""Features defined once, read as of any moment for training and as of now for serving.

Holds definitions (in Feast's words), the offline store (tables in the object store), the point-in-time join, the
online store (Redis), materialization and on-demand views. Must not know what a model, a function or a deployment is;
Ray only in `toque.featurestore.offline.distributed` and its `store_catalog`.
"""

from toque.featurestore.applied import Change, Plan
from toque.featurestore.definitions import (
    Bool,
    Decimal,
    Deprecation,
    Derived,
    DType,
    Entity,
    FeatureService,
    FeatureType,
    FeatureView,
    Field,
    Float32,
    Float64,
    Freshness,
    InRange,
    Int32,
    Int64,
    List,
    Map,
    Metric,
    NullShare,
    OnDemandFeatureView,
    Projection,
    RequestSource,
    String,
    UnixTimestamp,
    Vector,
    VectorIndex,
    on_demand_feature_view,
)
from toque.featurestore.errors import (
    FeatureStoreError,
    IncompatibleChange,
    InvalidDefinition,
    InvalidRows,
    OnlineStoreUnavailable,
    UnexpectedRows,
    UnknownDefinition,
    UnreadableRow,
    UnreadableSource,
)
from toque.featurestore.health import ViewHealth, newest_event, view_health
from toque.featurestore.online import Materialized, OnlineFeatures, Status
from toque.featurestore.row_times import RowTime, row_times
from toque.featurestore.skew import SkewReport, skew_report
from toque.featurestore.sources import (
    BatchSource,
    CsvFiles,
    DeltaRows,
    IcebergRows,
    ParquetFiles,
    SourceLoad,
    SqlTable,
)
from toque.featurestore.sources.refresh import Refreshed
from toque.featurestore.statistics import FeatureStatistics, PartStatistics, view_course, view_statistics
from toque.featurestore.store import FeatureStore
from toque.featurestore.streams import KafkaTopic, RedisStream, SchemaRegistry, StreamSource
from toque.featurestore.upkeep import Upkeep, compact, erase, expire
from toque.featurestore.vectors import IndexBuild, Neighbour, Neighbours, RecallTooLow
from toque.featurestore.windows.aggregations import (
    Aggregation,
    Windows,
    aggregate_windows,
    aggregations,
    last_k,
)
from toque.featurestore.windows.distinct import DistinctSketch

__all__ = [
    "Aggregation",
    "BatchSource",
    "Bool",
    "Change",
    "CsvFiles",
    "DType",
    "Decimal",
    "DeltaRows",
    "Deprecation",
    "Derived",
    "DistinctSketch",
    "Entity",
    "FeatureService",
    "FeatureStatistics",
    "FeatureStore",
    "FeatureStoreError",
    "FeatureType",
    "FeatureView",
    "Field",
    "Float32",
    "Float64",
    "Freshness",
    "IcebergRows",
    "InRange",
    "IncompatibleChange",
    "IndexBuild",
    "Int32",
    "Int64",
    "InvalidDefinition",
    "InvalidRows",
    "KafkaTopic",
    "List",
    "Map",
    "Materialized",
    "Metric",
    "Neighbour",
    "Neighbours",
    "NullShare",
    "OnDemandFeatureView",
    "OnlineFeatures",
    "OnlineStoreUnavailable",
    "ParquetFiles",
    "PartStatistics",
    "Plan",
    "Projection",
    "RecallTooLow",
    "RedisStream",
    "Refreshed",
    "RequestSource",
    "RowTime",
    "SchemaRegistry",
    "SkewReport",
    "SourceLoad",
    "SqlTable",
    "Status",
    "StreamSource",
    "String",
    "UnexpectedRows",
    "UnixTimestamp",
    "UnknownDefinition",
    "UnreadableRow",
    "UnreadableSource",
    "Upkeep",
    "Vector",
    "VectorIndex",
    "ViewHealth",
    "Windows",
    "aggregate_windows",
    "aggregations",
    "compact",
    "erase",
    "expire",
    "last_k",
    "newest_event",
    "on_demand_feature_view",
    "row_times",
    "skew_report",
    "view_course",
    "view_health",
    "view_statistics",
]

if __name__ != "toque.featurestore":  # under a second name, each class would be there twice
    raise ImportError(f"{__name__} is imported as toque.featurestore")
