"""Definitions of features: entities, fields, views, services, their types, and the encoding of a row."""

from featurestore.definitions.deprecation import Deprecation
from featurestore.definitions.derived import Derived
from featurestore.definitions.dtypes import (
    Bool,
    Decimal,
    DType,
    FeatureType,
    Float32,
    Float64,
    Int32,
    Int64,
    List,
    Map,
    String,
    UnixTimestamp,
    Vector,
)
from featurestore.definitions.expectations import Freshness, InRange, NullShare
from featurestore.definitions.fields import Entity, Field, RequestSource
from featurestore.definitions.on_demand import on_demand_feature_view
from featurestore.definitions.vector_index import Metric, VectorIndex
from featurestore.definitions.views import (
    Definition,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Projection,
)

__all__ = [
    "Bool",
    "DType",
    "Decimal",
    "Definition",
    "Deprecation",
    "Derived",
    "Entity",
    "FeatureService",
    "FeatureType",
    "FeatureView",
    "Field",
    "Float32",
    "Float64",
    "Freshness",
    "InRange",
    "Int32",
    "Int64",
    "List",
    "Map",
    "Metric",
    "NullShare",
    "OnDemandFeatureView",
    "Projection",
    "RequestSource",
    "String",
    "UnixTimestamp",
    "Vector",
    "VectorIndex",
    "on_demand_feature_view",
]
