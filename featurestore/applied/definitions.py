"""Definitions of a project: applied as one journal entry, and deserialized by every process that uses them.

Rows of all versions of a view share a table as long as its features mean the same. When one is computed otherwise,
the next refresh fills a new table (a generation) from all that was loaded, and the old one stays as it is, for who
pinned it. So it is with a source: one whose columns mean something else is read anew, into a table of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from toque.featurestore.applied import deserialize
from toque.featurestore.applied.deserialize import Catalog, Record
from toque.featurestore.applied.plan import Plan, closure, entry_body, names_of, plan_changes
from toque.featurestore.definitions.batch_source import BatchSource
from toque.featurestore.definitions.code import as_recorded
from toque.featurestore.definitions.computed import Derived
from toque.featurestore.definitions.stream_source import StreamSource
from toque.featurestore.definitions.views import (
    Definition,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Transform,
    ViewOrName,
)
from toque.featurestore.errors import UnknownDefinition
from toque.registry.journal import Fold, Journal

_BY_FEATURE = frozenset({"aggregations", "schema", "inputs", "code", "reference"})
_PLACES = frozenset(
    {"pattern", "uri", "url", "servers", "catalog", "endpoint", "region", "partitions", "settings"}
)
"""Options of readers that say where a source is and how it is reached; all others change what is read there."""
_logger = logging.getLogger(__name__)
Source: TypeAlias = BatchSource | StreamSource
D = TypeVar("D", FeatureView, Source)


class Definitions:
    """Applies and reads the definitions of a project.

    journal: records the project's definitions.
    """

    def __init__(self, journal: Journal) -> None:
        self._catalog: Fold[Catalog] = Fold(
            journal, Catalog(), deserialize.step, encode=deserialize.encode, decode=deserialize.decode
        )
        self._transforms: dict[str, Transform] = {}
        self._services: dict[str, tuple[int, FeatureService]] = {}

    def follow(self) -> Fold[Catalog]:
        """Follow the definitions in force: `.refresh()` is one read and gives all of them."""
        return self._catalog

    def plan(self, definitions: Iterable[Definition], *, remove: Sequence[str] = ()) -> Plan:
        """Plan what `apply` would change.

        remove: definitions to take out of force, as `kind/name` (`feature_view/weather`).
        Raises: InvalidDefinition, IncompatibleChange, UnknownDefinition.
        """
        state = self._catalog.refresh()
        return plan_changes(state, with_generations(state, closure(definitions)), prune=remove)

    def apply(self, definitions: Iterable[Definition], *, remove: Sequence[str] = ()) -> Plan:
        """Apply definitions, and all they depend on, as one journal entry; returns what changed.

        Raises: InvalidDefinition, IncompatibleChange, UnknownDefinition.
        """
        wanted = closure(definitions)
        plans: list[Plan] = []

        def decide(state: Catalog) -> dict[str, Any] | None:
            numbered = with_generations(state, wanted)
            plans.append(plan_changes(state, numbered, prune=remove))
            return entry_body(plans[-1], numbered)

        self._catalog.transact(decide)
        for definition in wanted.values():
            if isinstance(definition, OnDemandFeatureView):
                self._transforms[definition.code] = definition.transform
            elif isinstance(definition, FeatureView) and isinstance(definition.source, Derived):
                source = definition.source
                if source.transform is not None:
                    self._transforms[source.code] = source.transform
        for each in plans[-1].warnings:
            _logger.warning("%s", each)
        return plans[-1]

    def refresh(self) -> Catalog:
        """Read definitions that others have applied; one request when nothing is new."""
        return self._catalog.refresh()

    def _state(self, kind: str, name: str) -> Catalog:
        """Catalog as last read, or read again if it lacks the name."""
        state = self._catalog.state
        return state if state.find(kind, name) else self._catalog.refresh()

    def _transform(self, described: Mapping[str, Any]) -> Transform:
        known = self._transforms.get(described["code"])
        return known if known is not None else deserialize.import_transform(described)

    def get_feature_view(self, name: str) -> FeatureView:
        """Get the view in force under this name; like every `get`, one request when nothing is new.

        Raises: UnknownDefinition.
        """
        return deserialize.view(self._catalog.refresh().get("feature_view", name).definition)

    def get_batch_source(self, name: str) -> BatchSource:
        """Get the batch source in force under this name.

        Raises: UnknownDefinition.
        """
        return deserialize.batch_source(self._catalog.refresh().get("batch_source", name).definition)

    def list_batch_sources(self) -> list[str]:
        """List names of all batch sources in force."""
        return self._catalog.refresh().names("batch_source")

    def get_stream_source(self, name: str) -> StreamSource:
        """Get the stream source in force under this name.

        Raises: UnknownDefinition.
        """
        return deserialize.stream_source(self._catalog.refresh().get("stream_source", name).definition)

    def list_stream_sources(self) -> list[str]:
        """List names of all stream sources in force."""
        return self._catalog.refresh().names("stream_source")

    def get_on_demand_feature_view(self, name: str) -> OnDemandFeatureView:
        """Get the on-demand view in force under this name, with its function.

        Raises: UnknownDefinition.
        """
        return deserialize.on_demand(self._catalog.refresh(), name, transform=self._transform)

    def get_feature_service(self, name: str) -> FeatureService:
        """Get the service in force under this name.

        Raises: UnknownDefinition.
        """
        state = self._catalog.refresh()
        cached = self._services.get(name)
        if cached is None or cached[0] != self._catalog.next:
            cached = self._catalog.next, deserialize.service(state, name, transform=self._transform)
            self._services[name] = cached
        return cached[1]

    def list_feature_views(self) -> list[FeatureView]:
        """List all views in force, by name."""
        state = self._catalog.refresh()
        return [
            deserialize.view(state.get("feature_view", name).definition)
            for name in state.names("feature_view")
        ]

    def list_generations(self) -> list[FeatureView]:
        """List the views in force, and those of earlier generations, whose rows are still stored."""
        state = self._catalog.refresh()
        found: dict[str, FeatureView] = {}
        for name in {key.partition("/")[2] for key in state.records if key.startswith("feature_view/")}:
            for record in state.versions("feature_view", name):
                view = deserialize.view(record.definition)
                found[view.stored_as] = view
        return [found[name] for name in sorted(found)]

    def in_generation(self, view: FeatureView) -> FeatureView:
        """Give a view the newest generation in which its features mean what it says; the first, if it was never applied."""
        records = self._state("feature_view", view.name).versions("feature_view", view.name)
        if not any("generation" in record.definition for record in records):
            return view
        versions = (deserialize.view(record.definition) for record in reversed(records))
        match = next((version for version in versions if same_meaning(version, view)), view)
        return replace(view, generation=match.generation, events=_in_generation_of(match.events, view.events))

    def list_feature_services(self) -> list[str]:
        """List names of all services in force."""
        return self._catalog.refresh().names("feature_service")

    def history(self, kind: str, name: str) -> tuple[Record, ...]:
        """List every applied version of a definition, oldest first.

        kind: entity, batch_source, stream_source, feature_view, on_demand_feature_view or feature_service.
        """
        return self._catalog.refresh().versions(kind, name)

    def definitions_digest(self, service: FeatureService | str) -> dict[str, str]:
        """Digests, for lineage, of every view that a service uses, sources of on-demand views included.

        Raises: UnknownDefinition if one is not applied.
        """
        found = self.get_feature_service(service) if isinstance(service, str) else service
        state = self._catalog.refresh()
        views = [key.split("/") for key in names_of(found) if key.split("/")[0].endswith("feature_view")]
        return {name: state.get(kind, name).digest for kind, name in sorted(views, key=lambda v: v[1])}

    def _applied(self, view: ViewOrName) -> FeatureView:
        """Get the view in force; a view given as a value must be the same.

        Raises: UnknownDefinition.
        """
        name = view if isinstance(view, str) else view.name
        in_force = deserialize.view(self._state("feature_view", name).get("feature_view", name).definition)
        if isinstance(view, FeatureView) and view.semantics() != in_force.semantics():
            in_force = self.get_feature_view(name)
            if view.semantics() != in_force.semantics():
                raise UnknownDefinition(
                    f"feature view {name!r} differs from the one in force; apply it first"
                )
        return in_force


def with_generations(catalog: Catalog, wanted: Mapping[str, Definition]) -> dict[str, Definition]:
    """Number the sources and views that are to be applied: as their last version, or the next if a column or feature gets another meaning."""
    sources = {
        key: _numbered_source(catalog, key, each)
        for key, each in wanted.items()
        if isinstance(each, BatchSource | StreamSource)
    }
    views = {
        key: _numbered_view(catalog, each, [source for source in sources.values() if each.takes_from(source)])
        for key, each in wanted.items()
        if isinstance(each, FeatureView)
    }
    return {key: sources.get(key) or views.get(key) or each for key, each in wanted.items()}


def _numbered_source(catalog: Catalog, key: str, source: Source) -> Source:
    versions = [deserialize.source(each.definition) for each in catalog.records.get(key, ())]
    return replace(source, generation=_next(versions, source, _same_columns))


def _numbered_view(catalog: Catalog, view: FeatureView, sources: Sequence[Source]) -> FeatureView:
    versions = [deserialize.view(each.definition) for each in catalog.versions("feature_view", view.name)]
    number = _next(versions, view, same_meaning)
    return replace(view, generation=number, events=sources[0] if sources else None)


def _next(versions: Sequence[D], new: D, same: Callable[[D, D], bool]) -> int:
    """Number the generation of a definition: the last, whose table it shares with versions of one meaning, or the next."""
    if not versions:
        return 1
    last = versions[-1]
    if last.semantics() == new.semantics():
        return last.generation
    # Not the last version alone: a column may have been left out meanwhile, and its rows are still in the table.
    sharing = [each for each in versions if each.generation == last.generation]
    return last.generation + (not all(same(each, new) for each in sharing))


def _in_generation_of(known: Source | None, source: Source | None) -> Source | None:
    """Give the source of a view the generation of another version of it."""
    return None if source is None or known is None else replace(source, generation=known.generation)


def _same_columns(old: Source, new: Source) -> bool:
    """Whether each column that two versions of a source share is read from the same place, in the same way."""
    was, becomes = old.semantics(), _in_zone_of(old.semantics(), new.semantics())
    shared = {field["name"] for field in was["schema"]} & {field["name"] for field in becomes["schema"]}
    return _reading(was, shared) == _reading(becomes, shared)


def same_meaning(old: FeatureView, new: FeatureView) -> bool:
    """Whether each feature that two versions of a view share comes from the same columns or views, computed the same way."""
    was = old.semantics()
    becomes = _as_hashed(new.semantics(), list(_codes(was)))
    if "events" in was and "events" in becomes:
        becomes["events"] = _in_zone_of(was["events"], becomes["events"])
    if _origin(was) != _origin(becomes):
        return False
    before, after = _meanings(was), _meanings(becomes)
    return all(before[name] == after[name] for name in before.keys() & after.keys())


def _codes(described: Any) -> Iterator[str]:
    """Yield the digests of code in a description, at any depth."""
    children = described.values() if isinstance(described, Mapping) else described
    for each in children if isinstance(described, Mapping | list) else ():
        yield from _codes(each)
    if isinstance(described, Mapping) and described.get("code"):
        yield described["code"]


def _as_hashed(described: Any, recorded: Collection[str]) -> Any:
    """Describe code by the recorded digest of the same text where that is of a form of before, as version 0.1 wrote it."""
    if isinstance(described, list):
        return [_as_hashed(each, recorded) for each in described]
    if not isinstance(described, Mapping):
        return described
    found = {name: _as_hashed(each, recorded) for name, each in described.items()}
    return found | {"code": as_recorded(found["code"], recorded)} if found.get("code") else found


def _in_zone_of(was: Mapping[str, Any], becomes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Describe a source without its zone, if it had none: all times that were read named theirs, so they mean the same."""
    return {**becomes, "timezone": ""} if was["timezone"] == "" else becomes


def _reading(source: Mapping[str, Any], columns: Collection[str]) -> list[Any]:
    """Describe how rows of a source are read: whatever changes the values of these columns, or when they count."""
    reads = {name: value for name, value in source["reads"].items() if name not in _PLACES}
    times = [source.get(name) for name in ("timestamp", "timezone", "timestamp_unit", "known_at")]
    return [reads, "schemas" in source, times, {name: _place_of(source, name) for name in columns}]


def _place_of(source: Mapping[str, Any], column: str) -> Any:
    """Name a source's column there; None for the number of the row."""
    return None if source.get("row_number") == column else source["columns"].get(column, column)


def _origin(described: Mapping[str, Any]) -> Any:
    """Describe what the rows of a view follow from, and when there is one."""
    source, events = described["source"] or {}, described.get("events")
    rest = {name: value for name, value in source.items() if name not in _BY_FEATURE}
    if events is None:
        return [None, None, rest]
    keys = [key["name"] for entity in described["entities"] for key in entity["join_keys"]]
    # Windows sum the rows that `unique` tells apart; without them of rows with one key and time the last counts anyhow.
    unique = sorted(events["unique"]) if source else []
    return [events["kind"], events["name"], rest, _reading(events, keys), unique]


def _meanings(described: Mapping[str, Any]) -> dict[str, Any]:
    """Describe how each feature is computed, and of which column of the view's source."""
    source, events = described["source"] or {}, described.get("events", {"columns": {}})
    names = [field["name"] for field in described["schema"]]
    if "aggregations" in source:
        return {each["name"]: [each, _place_of(events, each["column"])] for each in source["aggregations"]}
    inputs = [
        {"projection": {name: each[name] for name in ("view", "features", "alias")}, "view": _of_input(each)}
        for each in source.get("inputs", ())
    ]
    return {name: [source.get("code"), inputs, _place_of(events, name)] for name in names}


def _of_input(described: Mapping[str, Any]) -> Any:
    """What an input of a derived view means to it: the features that it reads, and for how long."""
    view = described["definition"]
    read = {name: meaning for name, meaning in _meanings(view).items() if name in described["features"]}
    return [_origin(view), read, view["ttl_us"]]
