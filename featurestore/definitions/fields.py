"""Fields and their vector indexes, entities, values that only a request has, and the deprecation of features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from toque.featurestore.definitions.dtypes import DType, FeatureType, Vector, parse_type
from toque.featurestore.errors import InvalidDefinition

EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"
EVENT_DAY = "event_day"
KNOWN_TIMESTAMP = "_known_timestamp"  # no field can have this name
RESERVED = frozenset({EVENT_TIMESTAMP, CREATED_TIMESTAMP, EVENT_DAY})

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def check_name(what: str, name: str) -> None:
    """Refuse a name that could not be a column, a table folder and a Redis key part.

    Raises: InvalidDefinition.
    """
    if not _NAME.fullmatch(name):
        msg = f"{what} {name!r}: use letters, digits and underscores, starting with a letter"
        raise InvalidDefinition(msg)


def refuse_doubles(what: str, names: Iterable[str]) -> None:
    """Refuse a name that appears twice.

    Raises: InvalidDefinition.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidDefinition(f"{what}: {name!r} appears twice; names must be unique")
        seen.add(name)


@dataclass(frozen=True, slots=True)
class Field:
    """Named, typed column: a feature, a join key or a value sent with the request.

    nullable: whether a row may be written without a value; rows written before the column was there have none either way.
    Raises: InvalidDefinition for a name that is no identifier or is kept for the store's own columns.
    """

    name: str
    dtype: FeatureType
    nullable: bool = True

    def __post_init__(self) -> None:
        check_name("field", self.name)
        if self.name in RESERVED:
            raise InvalidDefinition(
                f"field {self.name!r} is one of the store's own columns {sorted(RESERVED)}"
            )
        object.__setattr__(self, "dtype", parse_type(self.dtype))

    def describe(self) -> dict[str, Any]:
        """Describe the field as JSON."""
        return {
            "name": self.name,
            "dtype": self.dtype.value,
            **({} if self.nullable else {"nullable": False}),
        }


@dataclass(frozen=True, slots=True)
class Entity:
    """Kind of object that features describe, with the columns that identify one.

    join_keys: column names (of type `dtype`) or Fields; by default the entity's own name.
    Raises: InvalidDefinition.
    """

    name: str
    join_keys: Sequence[str | Field] = ()
    dtype: DType = DType.STRING
    description: str = ""

    def __post_init__(self) -> None:
        check_name("entity", self.name)
        given = self.join_keys or (self.name,)
        keys = tuple(key if isinstance(key, Field) else Field(key, self.dtype) for key in given)
        refuse_doubles(f"entity {self.name!r} join keys", (key.name for key in keys))
        for key in keys:
            if not key.dtype.is_key:
                msg = f"entity {self.name!r}: join key {key.name!r} is {key.dtype}; use String, Int64, Int32 or Bool"
                raise InvalidDefinition(msg)
        object.__setattr__(self, "join_keys", keys)

    @property
    def keys(self) -> tuple[Field, ...]:
        """Join keys of the entity as fields."""
        return tuple(key for key in self.join_keys if isinstance(key, Field))

    def describe(self) -> dict[str, Any]:
        """Describe the entity as JSON."""
        return {
            "name": self.name,
            "join_keys": [key.describe() for key in self.keys],
            "description": self.description,
        }


@dataclass(frozen=True, slots=True)
class RequestSource:
    """Values that only the request has; training reads them from columns of the entity table."""

    name: str
    schema: Sequence[Field]

    def __post_init__(self) -> None:
        check_name("request source", self.name)
        object.__setattr__(self, "schema", tuple(self.schema))
        refuse_doubles(f"request source {self.name!r}", (f.name for f in self.schema))

    def describe(self) -> dict[str, Any]:
        """Describe the request source as JSON."""
        return {"request": self.name, "schema": [f.describe() for f in self.schema]}


class Metric(StrEnum):
    """Measure of how far two vectors are apart; a smaller distance is nearer.

    COSINE: 1 less the cosine of the angle, 1 where a vector is zero; DOT: the negative inner product; L2: Euclidean.
    """

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """Index for nearest neighbours over a vector field of a view.

    least_recall: share of the ten nearest that the index must find, measured against exact search; below it an index is
    refused when it is built, and searches stay exact. text_model: registered model that makes a vector of a text.
    Raises: InvalidDefinition.
    """

    field: str
    metric: Metric = Metric.COSINE
    least_recall: float = 0.95
    text_model: str = ""

    def __post_init__(self) -> None:
        if self.metric not in set(Metric):
            raise InvalidDefinition(
                f"VectorIndex({self.field!r}): metric {self.metric!r} is not known; use {', '.join(Metric)}"
            )
        object.__setattr__(self, "metric", Metric(self.metric))
        if not 0 < self.least_recall <= 1:
            raise InvalidDefinition(
                f"VectorIndex({self.field!r}): least_recall is a share above 0 and up to 1, got {self.least_recall}"
            )

    def describe(self) -> dict[str, Any]:
        """Describe the index as JSON."""
        return {
            "field": self.field,
            "metric": self.metric.value,
            "least_recall": self.least_recall,
            "text_model": self.text_model,
        }


def check_indexes(where: str, indexes: Sequence[VectorIndex], fields: Mapping[str, Field]) -> None:
    """Check that indexes name vector fields, each once. Raises: InvalidDefinition."""
    refuse_doubles(f"{where} indexes", (index.field for index in indexes))
    for index in indexes:
        if index.field not in fields:
            raise InvalidDefinition(f"{where} indexes {index.field!r}; it has {list(fields)}")
        dtype = fields[index.field].dtype
        if not isinstance(dtype, Vector) or not dtype.finite:
            raise InvalidDefinition(
                f"{where} indexes {index.field!r}, which is {dtype}; declare it as Vector(length) of finite numbers"
            )


@dataclass(frozen=True, slots=True)
class Deprecation:
    """A view's features that are to be given up; applying warns who uses them, and after its date no new training set may.

    since: from when on training sets are refused, with a time zone. remedy: what to use instead. features: by default all.
    Raises: InvalidDefinition.
    """

    since: datetime
    remedy: str
    features: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if self.since.tzinfo is None:
            raise InvalidDefinition(
                f"Deprecation: since={self.since} names no time zone; give one, as in UTC"
            )
        if not self.remedy:
            raise InvalidDefinition("Deprecation: say in `remedy` what to use instead")

    def concerns(self, feature: str) -> bool:
        """Whether a feature of the view is to be given up."""
        return not self.features or feature in self.features

    def describe(self) -> dict[str, Any]:
        """Describe the deprecation as JSON."""
        return {"since": self.since.isoformat(), "remedy": self.remedy, "features": list(self.features)}


def deserialize_deprecation(described: Mapping[str, Any]) -> Deprecation:
    """Rebuild a deprecation from its `describe()`."""
    return Deprecation(
        datetime.fromisoformat(described["since"]), described["remedy"], tuple(described["features"])
    )
