"""Definitions of feature views, services and on-demand views, in Feast's words.

Every definition is a frozen value, checked when it is created. `semantics()` is the part that decides
which numbers come out (lineage records its digest); `describe()` adds what only people read.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from toque.featurestore.definitions.batch_source import KNOWN_AT, BatchSource
from toque.featurestore.definitions.code import code_digest
from toque.featurestore.definitions.dtypes import FeatureType
from toque.featurestore.definitions.expectations import Expectation, refuse_unknown
from toque.featurestore.definitions.fields import (
    EVENT_TIMESTAMP,
    Deprecation,
    Entity,
    Field,
    RequestSource,
    VectorIndex,
    check_indexes,
    check_name,
    refuse_doubles,
)
from toque.featurestore.definitions.stream_source import StreamSource
from toque.featurestore.errors import InvalidDefinition, UnknownDefinition
from toque.registry.code_digest import reference
from toque.registry.times import MICROSECOND


class Transformation(Protocol):
    """Says how a view's rows are computed."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """Features that the transformation computes."""

    def describe(self) -> dict[str, Any]:
        """Describe the transformation as JSON, with a `type`; part of the view's digest."""


@runtime_checkable
class FromEvents(Transformation, Protocol):
    """Computes a view's rows from raw events; `toque.featurestore.windows.aggregations.Windows` is one."""

    def compute(self, events: pa.Table, *, keys: Sequence[str], since: datetime | None = None) -> pa.Table:
        """Compute the view's rows; since: only rows that an earlier run up to that time has not settled."""


@runtime_checkable
class FromViews(Transformation, Protocol):
    """Computes a view's rows from those of other views; `toque.featurestore.definitions.computed.Derived` is one."""

    @property
    def projections(self) -> "tuple[Projection, ...]":
        """Inputs, each with the features that are read."""


@dataclass(frozen=True, slots=True)
class FeatureView:
    """A table of features over time for one set of entities.

    schema: the features (may be left out when `source` computes them); entities may be empty: one global row.
    ttl: how long after its event time a value may be used, inclusive; None means for ever.
    source: computes rows from raw events, for `compute_offline`, or from other views (`Derived`), for `refresh_view`.
    expectations: conditions that rows must meet to be written. deprecated: features that are to be given up.
    events: source that `FeatureStore.refresh_view` takes the raw events from or, without `source`, the rows themselves; a
        stream source also brings them online as they come.
    indexes: over vector fields, for `FeatureStore.search`.
    generation: of its table, which `apply` counts up when a feature gets another meaning; leave it out.
    Raises: InvalidDefinition.
    """

    name: str
    entities: Sequence[Entity] = ()
    schema: Sequence[Field] = ()
    ttl: timedelta | None = None
    source: Transformation | None = None
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    owner: str = ""
    description: str = ""
    expectations: Sequence[Expectation] = ()
    events: BatchSource | StreamSource | None = None
    deprecated: Deprecation | None = None
    indexes: Sequence[VectorIndex] = ()
    generation: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        check_name("feature view", self.name)
        object.__setattr__(self, "indexes", tuple(self.indexes))
        schema = tuple(self.schema) or (self.source.fields if self.source else ())
        object.__setattr__(self, "entities", tuple(self.entities))
        object.__setattr__(self, "schema", schema)
        object.__setattr__(self, "tags", dict(self.tags))
        object.__setattr__(self, "expectations", tuple(self.expectations))
        if not schema:
            raise InvalidDefinition(f"feature view {self.name!r} has no features; give it a schema")
        if self.ttl is not None and self.ttl <= timedelta(0):
            raise InvalidDefinition(
                f"feature view {self.name!r}: ttl must be positive or None, got {self.ttl}"
            )
        if self.source is not None and tuple(self.source.fields) != schema:
            raise InvalidDefinition(
                f"feature view {self.name!r}: schema differs from what its source computes"
            )
        fields = (*self.join_keys, *schema)
        refuse_doubles(f"feature view {self.name!r}", [f.name for f in fields])
        refuse_unknown(f"feature view {self.name!r}", tuple(self.expectations), {f.name: f for f in fields})
        self._check_inputs()
        unknown = sorted(set(self.deprecated.features) - set(self.features)) if self.deprecated else []
        if unknown:
            raise InvalidDefinition(
                f"feature view {self.name!r} has no feature {unknown[0]!r} to deprecate: {list(self.features)}"
            )
        check_indexes(f"feature view {self.name!r}", tuple(self.indexes), {f.name: f for f in schema})
        if self.events is not None:
            self._check_events(self.events, fields if self.source is None else self.join_keys)

    def _check_inputs(self) -> None:
        for each in self.inputs:
            keys = each.view.join_keys if isinstance(each.view, FeatureView) else ()
            if each.join_key_map or keys != self.join_keys:
                raise InvalidDefinition(
                    f"feature view {self.name!r}: its join keys differ from those of its input {each.view.name!r}; a derived view "
                    "has the keys of its inputs"
                )
        if self.inputs and self.events is not None:
            raise InvalidDefinition(
                f"feature view {self.name!r} is derived from views, so it takes no events"
            )

    def _check_events(self, events: BatchSource | StreamSource, needed: Sequence[Field]) -> None:
        given = {f.name: f for f in events.schema}
        kind = "stream" if isinstance(events, StreamSource) else "batch"
        for f in needed:
            if f.name not in given or given[f.name].dtype != f.dtype:
                has = f"{given[f.name].dtype}" if f.name in given else "no such column"
                raise InvalidDefinition(
                    f"feature view {self.name!r}: column {f.name!r} ({f.dtype}) comes from {kind} source {events.name!r}, which has {has}; "
                    "declare it there, with `columns` if it is called otherwise"
                )
        if isinstance(events, StreamSource):
            self._check_stream(events)

    def _check_stream(self, events: StreamSource) -> None:
        where = f"feature view {self.name!r}"
        apart = sorted(set(events.partitioned_by) - {key.name for key in self.join_keys})
        if self.source is not None and apart:
            raise InvalidDefinition(
                f"{where}: stream source {events.name!r} is partitioned by {apart[0]!r}, which is no join key of the view, so events of "
                "one key come in several partitions; let the producers partition by the view's keys"
            )
        described = {} if self.source is None else self.source.describe()
        for what, name in (("event_time", EVENT_TIMESTAMP), ("known_at", KNOWN_AT)):
            if described.get(what, name) != name:
                raise InvalidDefinition(
                    f"{where}: {what}={described[what]!r}; events of a stream have their times in {name!r}, leave {what} out"
                )
        if self.expectations:
            raise InvalidDefinition(
                f"{where}: events of a stream are judged one by one; declare its expectations on {events.name!r}"
            )

    @property
    def join_keys(self) -> tuple[Field, ...]:
        """Columns that identify a row's entity, in the order of the entities."""
        return tuple(key for entity in self.entities for key in entity.keys)

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns without whose values an event is no row of the view: its keys and, without a transformation, features that are not nullable."""
        whole = () if self.source is not None else (f.name for f in self.schema if not f.nullable)
        return (*(key.name for key in self.join_keys), *whole)

    @property
    def stored_as(self) -> str:
        """Name under which its rows are stored; a new one in each generation, so that no two meanings share a table."""
        return self.name if self.generation == 1 else f"{self.name}.{self.generation}"

    @property
    def inputs(self) -> "tuple[Projection, ...]":
        """Other views that the view's rows are computed from."""
        return self.source.projections if isinstance(self.source, FromViews) else ()

    def takes_from(self, source: BatchSource | StreamSource) -> bool:
        """Whether the view takes its rows or events from the source of this kind and name, in whatever generation."""
        return type(self.events) is type(source) and self.events.name == source.name

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the view's features."""
        return tuple(f.name for f in self.schema)

    def reads_from(self, source: BatchSource | StreamSource) -> bool:
        """Whether the view takes its rows or events from this source, in the same generation."""
        return type(self.events) is type(source) and self.events.stored_as == source.stored_as

    def __getitem__(self, features: Sequence[str]) -> "Projection":
        """Select some features: `view[["a", "b"]]`."""
        return Projection(self, tuple(features))

    def with_name(self, name: str) -> "Projection":
        """Give the view another name; its columns come out as `name__feature`."""
        return Projection(self, self.features, alias=name)

    def with_join_key_map(self, mapping: Mapping[str, str]) -> "Projection":
        """Find rows by other columns of the entity table: `{"airport": "origin"}`."""
        return Projection(self, self.features).with_join_key_map(mapping)

    def semantics(self) -> dict[str, Any]:
        """Describe as JSON what decides the numbers: keys, schema, ttl, source."""
        return {
            "kind": "feature_view",
            "name": self.name,
            "entities": [
                {"name": e.name, "join_keys": [k.describe() for k in e.keys]} for e in self.entities
            ],
            "schema": [f.describe() for f in self.schema],
            "ttl_us": None if self.ttl is None else self.ttl // MICROSECOND,
            "source": None if self.source is None else self.source.describe(),
            **({} if self.events is None else {"events": self.events.semantics()}),
        }

    def describe(self) -> dict[str, Any]:
        """Describe the whole definition as JSON."""
        people = {"tags": dict(self.tags), "owner": self.owner, "description": self.description}
        given = {} if self.deprecated is None else {"deprecated": self.deprecated.describe()}
        indexes = {"indexes": [index.describe() for index in self.indexes]} if self.indexes else {}
        generation = {} if self.generation == 1 else {"generation": self.generation}
        expectations = {"expectations": [e.describe() for e in self.expectations]}
        later = self.events is not None and self.events.generation > 1
        events = (
            {"events": self.events.semantics() | {"generation": self.events.generation}}
            if self.events and later
            else {}
        )
        return self.semantics() | people | expectations | given | indexes | generation | events


Transform = Callable[[Mapping[str, np.ndarray[Any, Any]]], Mapping[str, Any]] | Callable[[Any], Any]
Form = Literal["numpy", "polars"]
FORMS: tuple[Form, ...] = ("numpy", "polars")


@dataclass(frozen=True, slots=True)
class OnDemandFeatureView:
    """Features computed on request by the same vectorised code in training and in serving.

    sources: views, projections and request sources whose columns the function gets.
    transform: columns in, columns out, all of one length, and each row by itself: a training set is refused if a row comes out
        otherwise among others than alone.
    form: of the columns. "polars": a frame in, with exactly the declared types, and a frame out. "numpy": arrays by name. Numbers and booleans come as float64 with NaN for
        null, times as datetime64[us] with NaT, vectors as float32 of (rows, length) with rows of NaN, all others as
        object arrays with None; a NaN, or a vector of NaN, that it returns is null. Its exceptions become InvalidRows.
    code, reference: digest of the function's text and where to import it from; derived from it by default.
    Raises: InvalidDefinition.
    """

    name: str
    sources: Sequence["FeatureView | Projection | RequestSource"]
    schema: Sequence[Field]
    transform: Transform = field(compare=False)
    code: str = ""
    reference: str = ""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    owner: str = ""
    description: str = ""
    form: Form = "numpy"

    def __post_init__(self) -> None:
        check_name("on-demand feature view", self.name)
        if self.form not in FORMS:
            raise InvalidDefinition(
                f"on-demand feature view {self.name!r}: form={self.form!r} is none of {FORMS}"
            )
        sources = tuple(projection(s) if isinstance(s, FeatureView) else s for s in self.sources)
        object.__setattr__(self, "sources", sources)
        object.__setattr__(self, "schema", tuple(self.schema))
        object.__setattr__(self, "tags", dict(self.tags))
        object.__setattr__(self, "code", self.code or code_digest(self.transform))
        object.__setattr__(self, "reference", self.reference or reference(self.transform))
        object.__setattr__(self, "description", self.description or inspect.getdoc(self.transform) or "")
        if not self.schema or not sources:
            raise InvalidDefinition(f"on-demand feature view {self.name!r} needs sources and a schema")
        refuse_doubles(f"on-demand feature view {self.name!r} inputs", self.inputs)
        refuse_doubles(f"on-demand feature view {self.name!r}", self.features)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the view computes."""
        return tuple(f.name for f in self.schema)

    @property
    def projections(self) -> "tuple[Projection, ...]":
        """Projections of stored views that the function reads."""
        return tuple(s for s in self.sources if isinstance(s, Projection))

    @property
    def request_fields(self) -> tuple[Field, ...]:
        """Fields that the request must contain."""
        return tuple(f for s in self.sources if isinstance(s, RequestSource) for f in s.schema)

    @property
    def inputs(self) -> dict[str, FeatureType]:
        """Input columns of the function with their types."""
        stored = {name: f.dtype for p in self.projections for name, f in p.columns.items()}
        return stored | {f.name: f.dtype for f in self.request_fields}

    def __getitem__(self, features: Sequence[str]) -> "Projection":
        """Select some of the features."""
        return Projection(self, tuple(features))

    def semantics(self) -> dict[str, Any]:
        """Describe as JSON what decides the numbers: sources, schema and the digest of the code."""
        return {
            "kind": "on_demand_feature_view",
            "name": self.name,
            "sources": [s.describe() for s in self.sources if not isinstance(s, FeatureView)],
            "schema": [f.describe() for f in self.schema],
            "code": self.code,
            **({} if self.form == "numpy" else {"form": self.form}),
        }

    def describe(self) -> dict[str, Any]:
        """Describe the whole definition as JSON; `reference` says where the function is imported from."""
        people = {"tags": dict(self.tags), "owner": self.owner, "description": self.description}
        return self.semantics() | people | {"reference": self.reference}


@dataclass(frozen=True, slots=True)
class Projection:
    """Selected features of a view, optionally under another name or found by other columns."""

    view: FeatureView | OnDemandFeatureView
    features: tuple[str, ...]
    alias: str | None = None
    join_key_map: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.features, str):
            raise InvalidDefinition(f"write view[[{self.features!r}]], with a list of names")
        unknown = [name for name in self.features if name not in self.view.features]
        if unknown or not self.features:
            msg = f"view {self.view.name!r} has no feature {unknown}; it has {list(self.view.features)}"
            raise UnknownDefinition(msg)
        refuse_doubles(f"projection of {self.view.name!r}", self.features)
        if self.alias is not None:
            check_name("view alias", self.alias)

    def with_name(self, name: str) -> "Projection":
        """Give the projection another name; columns come out as `name__feature`."""
        return replace(self, alias=name)

    def with_join_key_map(self, mapping: Mapping[str, str]) -> "Projection":
        """Find rows by other columns of the entity table.

        mapping: join key of the view to column of the entity table.
        Raises: InvalidDefinition if a key is not the view's.
        """
        keys = {key.name for key in self.view.join_keys} if isinstance(self.view, FeatureView) else set()
        if not set(mapping) <= keys:
            msg = f"view {self.view.name!r} has join keys {sorted(keys)}, cannot map {sorted(set(mapping) - keys)}"
            raise InvalidDefinition(msg)
        return replace(self, join_key_map=tuple(sorted(mapping.items())))

    @property
    def columns(self) -> dict[str, Field]:
        """Map output columns to the view's fields, in order."""
        fields = {f.name: f for f in self.view.schema}
        prefix = f"{self.alias}__" if self.alias else ""
        return {prefix + name: fields[name] for name in self.features}

    @property
    def key_columns(self) -> tuple[str, ...]:
        """Columns of the entity table that find the row, in the order of the view's join keys."""
        mapping = dict(self.join_key_map)
        keys = self.view.join_keys if isinstance(self.view, FeatureView) else ()
        return tuple(mapping.get(key.name, key.name) for key in keys)

    def describe(self) -> dict[str, Any]:
        """Describe the projection as JSON, with the view by name."""
        return {
            "view": self.view.name,
            "features": list(self.features),
            "alias": self.alias,
            "join_key_map": dict(self.join_key_map),
        }


FeatureLike = FeatureView | OnDemandFeatureView | Projection
ViewOrName = FeatureView | str


def projection(features: FeatureLike) -> Projection:
    """Convert a view to the projection to all its features; return a projection as it is."""
    return features if isinstance(features, Projection) else Projection(features, features.features)


@dataclass(frozen=True, slots=True)
class FeatureService:
    """Features of one model by name, for its training and its serving.

    Raises: InvalidDefinition if two features would come out under one column name.
    """

    name: str
    features: Sequence[FeatureLike]
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_name("feature service", self.name)
        object.__setattr__(self, "features", tuple(projection(f) for f in self.features))
        object.__setattr__(self, "tags", dict(self.tags))
        if not self.features:
            raise InvalidDefinition(f"feature service {self.name!r} has no features")
        refuse_doubles(f"feature service {self.name!r} (rename one with view.with_name)", self.columns)

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Views of the service, each with the features it uses."""
        return tuple(p for p in self.features if isinstance(p, Projection))

    @property
    def columns(self) -> list[str]:
        """Names of all output columns, in order."""
        return [name for p in self.projections for name in p.columns]

    def semantics(self) -> dict[str, Any]:
        """Describe as JSON what decides the columns."""
        return {
            "kind": "feature_service",
            "name": self.name,
            "features": [p.describe() for p in self.projections],
        }

    def describe(self) -> dict[str, Any]:
        """Describe the whole definition as JSON."""
        people = {"tags": dict(self.tags), "owner": self.owner, "description": self.description}
        return self.semantics() | people


Definition = Entity | BatchSource | StreamSource | FeatureView | OnDemandFeatureView | FeatureService


def digest(semantics: Mapping[str, Any]) -> str:
    """Hash a definition's canonical JSON: `sha256:` and 64 hexadecimal digits."""
    text = json.dumps(semantics, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
