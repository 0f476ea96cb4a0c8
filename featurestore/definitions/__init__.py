"""Definitions of features: entities, fields, views, services, their types, and the encoding of a row."""

from featurestore.definitions.dtypes import Bool, DType, Float32, Float64, Int32, Int64, String, UnixTimestamp
from featurestore.definitions.expectations import Freshness, InRange, NullShare
from featurestore.definitions.fields import Entity, Field, RequestSource
from featurestore.definitions.on_demand import on_demand_feature_view
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
    "Definition",
    "Entity",
    "FeatureService",
    "FeatureView",
    "Field",
    "Float32",
    "Float64",
    "Freshness",
    "InRange",
    "Int32",
    "Int64",
    "NullShare",
    "OnDemandFeatureView",
    "Projection",
    "RequestSource",
    "String",
    "UnixTimestamp",
    "on_demand_feature_view",
]
