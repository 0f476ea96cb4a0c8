"""Definitions of features: entities, fields, views, services, their types, and the encoding of a row."""

from toque.featurestore.definitions.computed import Derived, on_demand_feature_view
from toque.featurestore.definitions.dtypes import (
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
from toque.featurestore.definitions.expectations import Freshness, InRange, NullShare
from toque.featurestore.definitions.fields import (
    Deprecation,
    Entity,
    Field,
    Metric,
    RequestSource,
    VectorIndex,
)
from toque.featurestore.definitions.views import (
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
