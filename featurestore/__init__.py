"""The prep station: features defined once, read as of any moment for training and as of now for serving.

Holds definitions (in Feast's words), the offline store (tables in the object store), the point-in-time join, the
online store (Redis), materialization and on-demand views. Must not know what a model, a function or a deployment is;
Ray only in `featurestore.distributed`.
"""

from featurestore.aggregations import Aggregation, Windows, aggregate_windows, aggregations
from featurestore.definitions import (
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Projection,
)
from featurestore.dtypes import Bool, DType, Float32, Float64, Int32, Int64, String, UnixTimestamp
from featurestore.errors import (
    FeatureStoreError,
    IncompatibleChange,
    InvalidDefinition,
    InvalidRows,
    OnlineStoreUnavailable,
    UnknownDefinition,
    UnreadableRow,
)
from featurestore.fields import (
    Entity,
    Field,
    RequestSource,
)
from featurestore.materialize import Materialized
from featurestore.ondemand import on_demand_feature_view
from featurestore.planning import (
    Change,
    Plan,
)
from featurestore.serving import OnlineFeatures, Status
from featurestore.skew import SkewReport, skew_report
from featurestore.store import FeatureStore

__all__ = [
    "Aggregation",
    "Bool",
    "Change",
    "DType",
    "Entity",
    "FeatureService",
    "FeatureStore",
    "FeatureStoreError",
    "FeatureView",
    "Field",
    "Float32",
    "Float64",
    "IncompatibleChange",
    "Int32",
    "Int64",
    "InvalidDefinition",
    "InvalidRows",
    "Materialized",
    "OnDemandFeatureView",
    "OnlineFeatures",
    "OnlineStoreUnavailable",
    "Plan",
    "Projection",
    "RequestSource",
    "SkewReport",
    "Status",
    "String",
    "UnixTimestamp",
    "UnknownDefinition",
    "UnreadableRow",
    "Windows",
    "aggregate_windows",
    "aggregations",
    "on_demand_feature_view",
    "skew_report",
]
