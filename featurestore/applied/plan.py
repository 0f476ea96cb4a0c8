"""Plans of changes to definitions: what is added, changed and removed, and what would damage stored rows.

`plan_changes` only decides; `Definitions.apply` appends its decision as one journal entry.
"""

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toque.featurestore.applied.deserialize import Catalog, Record, readable_kind
from toque.featurestore.definitions.batch_source import BatchSource
from toque.featurestore.definitions.fields import Entity
from toque.featurestore.definitions.stream_source import StreamSource
from toque.featurestore.definitions.views import (
    Definition,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Projection,
    digest,
)
from toque.featurestore.errors import IncompatibleChange, InvalidDefinition
from toque.featurestore.windows.aggregations import Windows

KINDS = {
    "entity": Entity,
    "batch_source": BatchSource,
    "stream_source": StreamSource,
    "feature_view": FeatureView,
    "on_demand_feature_view": OnDemandFeatureView,
    "feature_service": FeatureService,
}
SOURCES = frozenset({"batch_source", "stream_source"})
_ANEW = {
    "feature_view": "feature view {!r}: features mean something else than before, so generation {} of its table begins empty; "
    "refresh_features fills it from its source, and materialize brings it online",
    "batch_source": "batch source {!r}: columns mean something else than before, so generation {} of its table begins empty; the next "
    "load reads all that is there now, and what is no longer there is in the earlier table alone",
    "stream_source": "stream source {!r}: fields mean something else than before, so generation {} of its table begins empty; its "
    "consumers read all that the log still has, and what it has no more is in the earlier table alone",
}


@dataclass(frozen=True, slots=True)
class Change:
    """Change that applying would make to one definition.

    action: added, changed, removed or unchanged; version: its current or next number; details: what differs.
    """

    action: str
    kind: str
    name: str
    version: int
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        sign = {"added": "+", "changed": "~", "removed": "-", "unchanged": " "}[self.action]
        differs = f": {'; '.join(self.details)}" if self.details else ""
        return f"{sign} {readable_kind(self.kind)} {self.name} (version {self.version}){differs}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes that applying would make, one for each definition; warnings: of deprecated features in use, and of tables that begin anew."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...] = ()

    def of(self, action: str) -> list[str]:
        """List names of the definitions with this action."""
        return [change.name for change in self.changes if change.action == action]

    @property
    def is_empty(self) -> bool:
        """Whether applying would change nothing."""
        return all(change.action == "unchanged" for change in self.changes)

    def __str__(self) -> str:
        return "\n".join([*(str(change) for change in self.changes), *self.warnings])


def kind_of(definition: Definition) -> str:
    """Kind under which a definition is recorded. Raises: InvalidDefinition for a value that is not applied by itself."""
    kind = next((kind for kind, cls in KINDS.items() if isinstance(definition, cls)), None)
    if kind is None:
        name = getattr(definition, "name", definition)
        raise InvalidDefinition(
            f"{type(definition).__name__} {name!r} is not applied by itself: leave it out of FEATURES; a request source "
            "comes with the on-demand view that reads it"
        )
    return kind


def digest_of(definition: Definition) -> str:
    """Digest of the part of a definition that decides the numbers."""
    semantics = definition.describe() if isinstance(definition, Entity) else definition.semantics()
    return digest(semantics)


def closure(definitions: Iterable[Definition]) -> dict[str, Definition]:
    """Collect definitions with all that they depend on, by `kind/name`.

    Raises: InvalidDefinition if one name stands for two different definitions.
    """
    found: dict[str, Definition] = {}
    for definition in definitions:
        for each in (*_dependencies(definition), definition):
            part = _unnumbered(each)
            key = f"{kind_of(part)}/{part.name}"
            if key in found and found[key].describe() != part.describe():
                raise InvalidDefinition(
                    f"{readable_kind(kind_of(part))} {part.name!r} is defined twice, differently"
                )
            found[key] = part
    return found


def _unnumbered(definition: Definition) -> Definition:
    """Take the generations off a definition: the catalog numbers it."""
    if isinstance(definition, FeatureView):
        events = None if definition.events is None else replace(definition.events, generation=1)
        return replace(definition, generation=1, events=events)
    return (
        replace(definition, generation=1)
        if isinstance(definition, BatchSource | StreamSource)
        else definition
    )


def names_of(definition: Definition) -> set[str]:
    """Names of a definition and of all that it depends on, as `kind/name`."""
    return {f"{kind_of(part)}/{part.name}" for part in (*_dependencies(definition), definition)}


def _dependencies(definition: Definition) -> Sequence[Definition]:
    if isinstance(definition, FeatureView):
        events = [] if definition.events is None else [definition.events]
        return (*definition.entities, *events, *_of_projections(definition.inputs))
    if isinstance(definition, OnDemandFeatureView):
        return _of_projections(definition.projections)
    if isinstance(definition, FeatureService):
        return _of_projections(definition.projections)
    return ()


def _of_projections(projections: Iterable[Projection]) -> list[Definition]:
    parts: list[Definition] = []
    for p in projections:
        parts += [*_dependencies(p.view), p.view]
    return parts


def plan_changes(catalog: Catalog, wanted: Mapping[str, Definition], *, prune: Sequence[str] = ()) -> Plan:
    """Plan the changes that put `wanted` in force.

    wanted: by `kind/name`, as `closure` returns it; prune: `kind/name` of definitions to remove.
    Raises: IncompatibleChange if rows already stored would become unreadable or wrong, or if something still in
        force needs what is removed.
    """
    changes = [_change(catalog, key, definition) for key, definition in wanted.items()]
    _refuse_missing_features(catalog, wanted, frozenset(prune))
    _refuse_missing_columns(catalog, wanted, frozenset(prune))
    new = _new_generations(catalog, wanted)
    _refuse_other_inputs(catalog, new.keys(), frozenset({*wanted, *prune}))
    for key in prune:
        kind, name = key.split("/", 1)
        record = catalog.get(kind, name)
        _refuse_if_used(catalog, record, frozenset(prune), wanted)
        changes.append(Change("removed", kind, name, record.version + 1))
    empty = tuple(
        _ANEW[key.partition("/")[0]].format(key.partition("/")[2], number) for key, number in new.items()
    )
    return Plan(tuple(changes), (*_deprecated_uses(catalog, wanted, frozenset(prune)), *empty))


def _new_generations(catalog: Catalog, wanted: Mapping[str, Definition]) -> dict[str, int]:
    """Find the sources and views that would get a new generation, as `kind/name`."""
    found: dict[str, int] = {}
    for key, each in wanted.items():
        if isinstance(each, FeatureView | BatchSource | StreamSource):
            versions = catalog.records.get(key, ())
            if versions and each.generation != versions[-1].definition.get("generation", 1):
                found[key] = each.generation
    return found


def _refuse_other_inputs(catalog: Catalog, new: Collection[str], changed: frozenset[str]) -> None:
    """Refuse another meaning of a source or view while a view of its rows stays: that would go on from rows which nobody adds to."""
    for name in catalog.names("feature_view"):
        view = catalog.get("feature_view", name).definition
        used = {
            f"{kind}/{each}"
            for kind in (*SOURCES, "feature_view")
            for each in _uses("feature_view", kind, view)
        }
        if used & {*new} and f"feature_view/{name}" not in changed:
            kind, _, read = min(used & {*new}).partition("/")
            what = (
                f"is derived from {read!r}, whose features"
                if kind == "feature_view"
                else f"takes its rows from {readable_kind(kind)} {read!r}, whose columns"
            )
            raise IncompatibleChange(f"feature view {name!r} {what} would mean something else; apply it too")


def _change(catalog: Catalog, key: str, definition: Definition) -> Change:
    kind, name = key.split("/", 1)
    versions = catalog.versions(kind, name)
    for record in versions:
        if kind == "feature_view":
            _refuse_corruption(record, definition.describe())
        elif kind in SOURCES:
            _refuse_other_types(record, definition.describe())
    now = catalog.find(kind, name)
    differences = () if now is None else _differences(now.definition, definition.describe())
    if now is not None and not differences:
        return Change("unchanged", kind, name, now.version)
    if isinstance(definition, StreamSource):
        _refuse_unknown_partition(definition)
    if isinstance(definition, FeatureView):
        _refuse_unknown_columns(definition)
    if now is None:
        return Change("added", kind, name, len(versions) + 1)
    return Change("changed", kind, name, now.version + 1, differences)


def _refuse_unknown_partition(source: StreamSource) -> None:
    """Refuse a source that no consumer can begin. Where the reader does not say how many partitions there are, the consumer does.

    It is refused here and not where it is declared, so that one which an earlier release took can still be read.
    """
    partitions = source.reads.describe().get("partitions", 1)
    if partitions > 1 and not source.partitioned_by:
        raise InvalidDefinition(
            f"stream source {source.name!r} has {partitions} partitions; say by which fields the producers choose one: "
            "partitioned_by=[…]"
        )


def _refuse_unknown_columns(view: FeatureView) -> None:
    """Refuse windows over columns that the view's source lacks, or cannot sum: its rows could never be computed.

    Here and not where it is declared, so that a view which an earlier release took can still be read.
    """
    if isinstance(view.source, Windows) and view.events is not None:
        columns = {field.name: field for field in view.events.schema}
        view.source.check_columns(f"feature view {view.name!r}", columns)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    changed = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    return tuple(f"{key}: {_shortened(old.get(key))} -> {_shortened(new.get(key))}" for key in changed)


def _shortened(value: Any) -> str:
    text = ",".join(f"{f['name']}:{f['dtype']}" for f in value) if _is_schema(value) else str(value)
    return textwrap.shorten(text, width=200, placeholder="...")


def _is_schema(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and "dtype" in item for item in value)


def _refuse_corruption(old: Record, new: Mapping[str, Any]) -> None:
    """Refuse changes of keys or feature types, since rows of all versions share one table."""
    where = f"feature view {old.name!r} (version {old.version})"
    remedy = f"define {old.name}_v{old.version + 1} and fill it"
    old_keys = [key for entity in old.definition["entities"] for key in entity["join_keys"]]
    new_keys = [key for entity in new["entities"] for key in entity["join_keys"]]
    if old_keys != new_keys:
        raise IncompatibleChange(
            f"{where} is keyed by {_shortened(old_keys)}, not {_shortened(new_keys)}; {remedy}"
        )
    _refuse_other_types(old, new)


def _refuse_other_types(old: Record, new: Mapping[str, Any]) -> None:
    """Refuse another type for a column that is stored."""
    types = {f["name"]: f["dtype"] for f in old.definition["schema"]}
    for f in new["schema"]:
        if types.get(f["name"], f["dtype"]) != f["dtype"]:
            raise IncompatibleChange(
                f"{readable_kind(old.kind)} {old.name!r} (version {old.version}): column {f['name']!r} is stored as "
                f"{types[f['name']]}, not {f['dtype']}; define {old.name}_v{old.version + 1} and fill it"
            )


def _deprecated_uses(
    catalog: Catalog, wanted: Mapping[str, Definition], pruned: frozenset[str]
) -> tuple[str, ...]:
    """Tell which definitions would use deprecated features, and what to use instead."""
    found = catalog.in_force() | {key: definition.describe() for key, definition in wanted.items()}
    uses = []
    for key, definition in sorted(found.items()):
        for used in _references(definition) if key not in pruned else ():
            given = found.get(f"feature_view/{used['view']}", {}).get("deprecated")
            concerned = [
                n for n in used["features"] if given and (not given["features"] or n in given["features"])
            ]
            if given and concerned:
                kind, name = key.split("/", 1)
                names = ", ".join(f"{used['view']}:{n}" for n in concerned)
                uses.append(
                    f"{readable_kind(kind)} {name!r} uses {names}, deprecated since "
                    f"{given['since']}: {given['remedy']}"
                )
    return tuple(uses)


def _refuse_missing_features(
    catalog: Catalog, wanted: Mapping[str, Definition], pruned: frozenset[str]
) -> None:
    """Refuse changes that take away a feature which another definition in force uses."""
    views = {d.name: d.features for d in wanted.values() if isinstance(d, FeatureView | OnDemandFeatureView)}
    for key, versions in catalog.records.items():
        user = versions[-1]
        if user.removed or key in pruned or key in wanted:
            continue
        for used in _references(user.definition):
            gone = sorted(set(used["features"]) - set(views.get(used["view"], used["features"])))
            if gone:
                msg = f"{readable_kind(user.kind)} {user.name!r} uses {used['view']}:{gone[0]}, which would go; change it too"
                raise IncompatibleChange(msg)


def _refuse_missing_columns(
    catalog: Catalog, wanted: Mapping[str, Definition], pruned: frozenset[str]
) -> None:
    """Refuse a source that loses a column which a view in force takes from it."""
    for source in wanted.values():
        if not isinstance(source, BatchSource | StreamSource):
            continue
        columns = {field.name for field in source.schema}
        for name in catalog.names("feature_view"):
            view = catalog.get("feature_view", name).definition
            reads = _uses("feature_view", kind_of(source), view) == {source.name}
            gone = sorted(_taken(view) - columns) if reads else []
            if gone and not {f"feature_view/{name}"} & {*wanted, *pruned}:
                raise IncompatibleChange(
                    f"feature view {name!r} takes column {gone[0]!r} from {readable_kind(kind_of(source))} {source.name!r}, which "
                    "would go; change the view too"
                )


def _taken(view: Mapping[str, Any]) -> set[str]:
    """Columns that a view takes from its source, apart from times."""
    keys = {key["name"] for entity in view["entities"] for key in entity["join_keys"]}
    if view["source"] is None:
        return keys | {field["name"] for field in view["schema"]}
    aggregations = view["source"].get("aggregations", [])
    before = {field["name"] for field in view["events"]["schema"]}  # others it never had
    return keys | ({each["column"] for each in aggregations if each["column"]} & before)


def _references(definition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Projections in the description of a service, an on-demand view or a derived one."""
    derived_from = (definition.get("source") or {}).get("inputs", [])
    sources = definition.get("sources", []) + definition.get("features", []) + derived_from
    return [source for source in sources if "view" in source]


def _refuse_if_used(
    catalog: Catalog, record: Record, pruned: frozenset[str], wanted: Mapping[str, Definition]
) -> None:
    for versions in catalog.records.values():
        user = versions[-1]
        key = f"{user.kind}/{user.name}"
        if user.removed or key in pruned:
            continue
        definition = wanted[key].describe() if key in wanted else user.definition
        if record.name in _uses(user.kind, record.kind, definition):
            msg = f"{readable_kind(record.kind)} {record.name!r} is used by {readable_kind(user.kind)} {user.name!r}; change that first"
            raise IncompatibleChange(msg)


def _uses(user_kind: str, used_kind: str, definition: Mapping[str, Any]) -> set[str]:
    if user_kind == "feature_view" and used_kind == "entity":
        return {entity["name"] for entity in definition["entities"]}
    if user_kind == "feature_view" and used_kind in SOURCES:
        events = definition.get("events", {})
        return {events["name"]} if events.get("kind") == used_kind else set()
    if used_kind in {"feature_view", "on_demand_feature_view"}:
        return {source["view"] for source in _references(definition)}
    return set()


def entry_body(plan: Plan, wanted: Mapping[str, Definition]) -> dict[str, Any] | None:
    """Build the journal entry that carries out a plan, or None if nothing changes."""
    if plan.is_empty:
        return None
    changed = [c for c in plan.changes if c.action in {"added", "changed"}]
    return {
        "type": "apply",
        "definitions": [_recorded(wanted[f"{c.kind}/{c.name}"]) for c in changed],
        "removed": [f"{c.kind}/{c.name}" for c in plan.changes if c.action == "removed"],
    }


def _recorded(definition: Definition) -> dict[str, Any]:
    return {
        "kind": kind_of(definition),
        "name": definition.name,
        "digest": digest_of(definition),
        "definition": definition.describe(),
    }
