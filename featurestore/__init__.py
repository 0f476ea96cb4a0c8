"""The prep station: features defined once, read as of any moment for training and as of now for serving.

Holds definitions (in Feast's words), the offline store (tables in the object store), the point-in-time join, the
online store (Redis), materialization and on-demand views. Must not know what a model, a function or a deployment is;
Ray only in `featurestore.distributed`.
"""

from featurestore.aggregations import Aggregation, Windows, aggregate_windows, aggregations
from featurestore.definitions import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    OnDemandFeatureView,
    Projection,
    RequestSource,
)
from featurestore.dtypes import Bool, DType, Float32, Float64, Int32, Int64, String, UnixTimestamp

__all__ = [
    "Aggregation",
    "Bool",
    "DType",
    "Entity",
    "FeatureService",
    "FeatureView",
    "Field",
    "Float32",
    "Float64",
    "Int32",
    "Int64",
    "OnDemandFeatureView",
    "Projection",
    "RequestSource",
    "String",
    "UnixTimestamp",
    "Windows",
    "aggregate_windows",
    "aggregations",
]
