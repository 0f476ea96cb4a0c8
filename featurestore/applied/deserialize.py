"""Applied definitions: a catalog of all versions as a pure fold of a journal, and each made anew from what it says.

A process needs no code that defined them, but the functions of on-demand and derived views.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from toque.featurestore.definitions.code import code_digest, same_code
from toque.featurestore.definitions.computed import Derived
from toque.featurestore.definitions.dtypes import parse_type
from toque.featurestore.definitions.expectations import deserialize_expectation
from toque.featurestore.definitions.fields import (
    Entity,
    Field,
    RequestSource,
    VectorIndex,
    deserialize_deprecation,
)
from toque.featurestore.definitions.stream_source import SchemaRegistry, StreamSource
from toque.featurestore.definitions.views import (
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Projection,
    Transform,
    Transformation,
)
from toque.featurestore.errors import UnknownDefinition
from toque.featurestore.sources import READERS, BatchSource
from toque.featurestore.streams.readers import STREAM_READERS
from toque.featurestore.windows.aggregations import Aggregation, Windows
from toque.registry.journal import Entry

FindTransform = Callable[[Mapping[str, Any]], Transform]


@dataclass(frozen=True, slots=True)
class Record:
    """One applied version of one definition.

    version: from 1; digest: of the part that decides the numbers; definition: all of it as JSON;
    entry, at, actor: the journal entry that applied it; removed: whether this version removes the definition.
    """

    kind: str
    name: str
    version: int
    digest: str
    definition: Mapping[str, Any] = field(hash=False)
    entry: int
    at: datetime
    actor: str
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Catalog:
    """All versions of all definitions by `kind/name`, oldest first."""

    records: Mapping[str, tuple[Record, ...]] = field(default_factory=dict, hash=False)

    def find(self, kind: str, name: str) -> Record | None:
        """Find the version in force, or None."""
        versions = self.records.get(f"{kind}/{name}", ())
        return versions[-1] if versions and not versions[-1].removed else None

    def get(self, kind: str, name: str) -> Record:
        """Get the version in force of a definition.

        Raises: UnknownDefinition.
        """
        found = self.find(kind, name)
        if found is None:
            raise UnknownDefinition(
                f"no {readable_kind(kind)} {name!r} is applied; applied are {self.names(kind)}"
            )
        return found

    def names(self, kind: str) -> list[str]:
        """Names of the definitions in force, in order."""
        return sorted(v[-1].name for v in self.records.values() if v[-1].kind == kind and not v[-1].removed)

    def in_force(self) -> dict[str, Mapping[str, Any]]:
        """Definitions in force, by `kind/name`."""
        return {
            key: versions[-1].definition
            for key, versions in self.records.items()
            if versions and not versions[-1].removed
        }

    def versions(self, kind: str, name: str) -> tuple[Record, ...]:
        """List all versions of a definition, oldest first; empty if the name was never applied."""
        return self.records.get(f"{kind}/{name}", ())


def step(catalog: Catalog, entry: Entry) -> Catalog:
    """Apply one more journal entry to a catalog."""
    records = dict(catalog.records)
    for body in entry.body["definitions"]:
        key = f"{body['kind']}/{body['name']}"
        versions = records.get(key, ())
        record = Record(
            body["kind"], body["name"], len(versions) + 1, body["digest"], body["definition"],
            entry.number, entry.at, entry.actor,
        )  # fmt: skip
        records[key] = (*versions, record)
    for key in entry.body["removed"]:
        last = records[key][-1]
        removal = replace(
            last, version=last.version + 1, entry=entry.number, at=entry.at, actor=entry.actor, removed=True
        )
        records[key] = (*records[key], removal)
    return Catalog(records)


def encode(catalog: Catalog) -> dict[str, Any]:
    """Convert a catalog to JSON for the journal's snapshots."""
    return {
        key: [{n: getattr(r, n) for n in Record.__slots__} | {"at": r.at.isoformat()} for r in versions]
        for key, versions in catalog.records.items()
    }


def decode(state: Mapping[str, Any]) -> Catalog:
    """Read a catalog from the JSON of `encode`."""
    return Catalog(
        {
            key: tuple(Record(**{**r, "at": datetime.fromisoformat(r["at"])}) for r in versions)
            for key, versions in state.items()
        }
    )


def readable_kind(kind: str) -> str:
    """Write a kind of definition for people, with spaces."""
    return kind.replace("_", " ")


def _fields(described: list[dict[str, Any]]) -> tuple[Field, ...]:
    return tuple(
        Field(f["name"], parse_type(f["dtype"]), nullable=f.get("nullable", True)) for f in described
    )


def _microseconds(value: int | None) -> timedelta | None:
    return None if value is None else timedelta(microseconds=value)


def view(described: Mapping[str, Any]) -> FeatureView:
    """Rebuild a feature view from its `describe()` or `semantics()`."""
    entities = [Entity(e["name"], _fields(e["join_keys"])) for e in described["entities"]]
    return FeatureView(
        described["name"],
        entities,
        _fields(described["schema"]),
        ttl=_microseconds(described["ttl_us"]),
        source=None if described["source"] is None else transformation(described["source"]),
        **{name: described[name] for name in ("tags", "owner", "description") if name in described},
        expectations=[deserialize_expectation(e) for e in described.get("expectations", ())],
        events=source(described["events"]) if "events" in described else None,
        deprecated=deserialize_deprecation(described["deprecated"]) if "deprecated" in described else None,
        indexes=[VectorIndex(**index) for index in described.get("indexes", ())],
        generation=described.get("generation", 1),
    )


def source(described: Mapping[str, Any]) -> BatchSource | StreamSource:
    """Rebuild a batch or stream source from its `describe()` or `semantics()`. Raises: UnknownDefinition."""
    return stream_source(described) if described["kind"] == "stream_source" else batch_source(described)


def _reader(described: Mapping[str, Any], readers: Mapping[str, Any]) -> Any:
    """Rebuild the reader of a source. Raises: UnknownDefinition."""
    how = dict(described["reads"])
    reader = readers.get(how.pop("type"))
    if reader is None:
        raise UnknownDefinition(
            f"source {described['name']!r}: a reader of type {described['reads']['type']!r} is not known here"
        )
    return reader(**how)


def _people(described: Mapping[str, Any]) -> dict[str, Any]:
    """Select what is said for people, which `semantics()` leaves out."""
    return {name: described[name] for name in ("tags", "owner", "description") if name in described}


def stream_source(described: Mapping[str, Any]) -> StreamSource:
    """Rebuild a stream source from its `describe()` or `semantics()`.

    Raises: UnknownDefinition for a reader of another type.
    """
    given = ("name", "timestamp", "timezone", "timestamp_unit", "columns", "unique", "partitioned_by")
    return StreamSource(
        **{name: described[name] for name in given},
        **_people(described),
        reads=_reader(described, STREAM_READERS),
        schema=_fields(described["schema"]),
        allowed_lateness=_microseconds(described["allowed_lateness_us"]),
        expectations=[deserialize_expectation(e) for e in described["expectations"]],
        commit_every=timedelta(microseconds=described["commit_every_us"]),
        schemas=SchemaRegistry(**described["schemas"]) if "schemas" in described else None,
        generation=described.get("generation", 1),
    )


def batch_source(described: Mapping[str, Any]) -> BatchSource:
    """Rebuild a batch source from its `describe()` or `semantics()`.

    Raises: UnknownDefinition for a reader of another type.
    """
    given = ("name", "timestamp", "timezone", "known_at", "columns", "unique", "bad_share")
    return BatchSource(
        **{name: described[name] for name in given},
        **_people(described),
        reads=_reader(described, READERS),
        schema=_fields(described["schema"]),
        expectations=[deserialize_expectation(e) for e in described["expectations"]],
        row_number=described.get("row_number", ""),  # earlier releases knew none
        generation=described.get("generation", 1),
    )


def transformation(described: Mapping[str, Any]) -> Transformation:
    """Rebuild a transformation from its `describe()`; the function of a derived view is found when it is refreshed.

    Raises: UnknownDefinition for a transformation of another type.
    """
    known: Mapping[str, Callable[[Mapping[str, Any]], Transformation]] = {
        "windows": windows,
        "derived": derived,
    }
    if described["type"] not in known:
        raise UnknownDefinition(f"a transformation of type {described['type']!r} is not known here")
    return known[described["type"]](described)


def derived(described: Mapping[str, Any]) -> Derived:
    """Rebuild the computation of a derived view from its `describe()`."""
    inputs = [
        Projection(
            view(each["definition"]),
            tuple(each["features"]),
            each["alias"],
            tuple(each["join_key_map"].items()),
        )
        for each in described["inputs"]
    ]
    return Derived(
        inputs, _fields(described["schema"]), None, code=described["code"], reference=described["reference"]
    )


def windows(described: Mapping[str, Any]) -> Windows:
    """Rebuild a windowed transformation from its `describe()`."""
    aggregations = [
        Aggregation(
            a["function"], timedelta(microseconds=a["window_us"]), a["column"], a["name"], k=a.get("k", 1)
        )
        for a in described["aggregations"]
    ]
    return Windows(
        aggregations,
        every=_microseconds(described["every_us"]),
        event_time=described["event_time"],
        known_at=described["known_at"],
        watermark=_microseconds(described.get("watermark_us")),
    )


def any_view(catalog: Catalog, name: str, *, transform: FindTransform) -> FeatureView | OnDemandFeatureView:
    """Rebuild the stored or on-demand view of this name.

    Raises: UnknownDefinition.
    """
    if catalog.find("on_demand_feature_view", name) is not None:
        return on_demand(catalog, name, transform=transform)
    return view(catalog.get("feature_view", name).definition)


def _projection(catalog: Catalog, described: Mapping[str, Any], transform: FindTransform) -> Projection:
    projection = Projection(
        any_view(catalog, described["view"], transform=transform),
        tuple(described["features"]),
        described["alias"],
    )
    return (
        projection.with_join_key_map(described["join_key_map"]) if described["join_key_map"] else projection
    )


def on_demand(catalog: Catalog, name: str, *, transform: FindTransform) -> OnDemandFeatureView:
    """Rebuild the on-demand view of this name, with its function.

    Raises: UnknownDefinition if it is not applied or its function cannot be found as it was.
    """
    described = catalog.get("on_demand_feature_view", name).definition
    sources = [
        RequestSource(s["request"], _fields(s["schema"]))
        if "request" in s
        else _projection(catalog, s, transform)
        for s in described["sources"]
    ]
    return OnDemandFeatureView(
        name,
        sources,
        _fields(described["schema"]),
        transform(described),
        form=described.get("form", "numpy"),
        code=described["code"],
        reference=described["reference"],
        tags=described["tags"],
        owner=described["owner"],
        description=described["description"],
    )


def service(catalog: Catalog, name: str, *, transform: FindTransform) -> FeatureService:
    """Rebuild the feature service of this name with all its views.

    Raises: UnknownDefinition.
    """
    described = catalog.get("feature_service", name).definition
    return FeatureService(
        name,
        [_projection(catalog, p, transform) for p in described["features"]],
        tags=described["tags"],
        owner=described["owner"],
        description=described["description"],
    )


def import_transform(described: Mapping[str, Any]) -> Transform:
    """Import the function of an on-demand view from its module when it was applied.

    Raises: UnknownDefinition if it is absent, or its code differs from the applied one.
    """
    where = f"on-demand feature view {described['name']!r}"
    module, _, qualname = described["reference"].partition(":")
    if not qualname or module == "__main__" or "<" in qualname:
        raise UnknownDefinition(
            f"{where}: {described['reference']!r} cannot be imported; move it to the top of a module"
        )
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UnknownDefinition(f"{where}: cannot import {described['reference']}: {error}") from error
    transform: Transform = found.transform if isinstance(found, OnDemandFeatureView) else found
    if not same_code(described["code"], code_digest(transform)):
        raise UnknownDefinition(
            f"{where}: {described['reference']} is not the code that was applied; apply it again"
        )
    return transform
