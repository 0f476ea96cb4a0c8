"""Catalogue of features: who owns and uses each, where it comes from, what it costs, and which nobody uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BaseModel, Field

from toque.featurestore import FeatureStore, FeatureView, Windows
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import Registry


class CatalogFeature(BaseModel, frozen=True):
    """Feature of a view, as the catalogue has it.

    comes_from: columns that it is made of; used_by: definitions that read it; deprecated: since when, and what to use instead.
    """

    name: str
    dtype: str
    comes_from: list[str] = []
    used_by: list[str] = []
    deprecated: str | None = None


class ModelUse(BaseModel, frozen=True):
    """Version of a model that was made with a view, and the aliases, arms and rules that point to it now."""

    model: str
    version: int
    uses: list[str]


class CatalogEntry(BaseModel, frozen=True):
    """View in force, as the catalogue has it.

    kind: feature_view or on_demand_feature_view; rows, bytes: of its offline table; newest_event: of its rows; ttl_s: for how long
    after its event a row is served, None for ever; services: that
    serve it, also through other views; models: versions made with it that something points to now; would_break: definitions
    and models that use a deprecated feature of it.
    """

    kind: str
    name: str
    owner: str
    description: str
    tags: dict[str, str]
    keys: list[str] = []
    features: list[CatalogFeature]
    services: list[str]
    models: list[ModelUse]
    rows: int = 0
    bytes: int = 0
    newest_event: datetime | None = None
    ttl_s: float | None = None
    would_break: list[str] = []

    @property
    def text(self) -> str:
        """All that a search by words looks at."""
        parts = [self.name, self.owner, self.description, *self.tags.values(), *self.keys, *self.services]
        parts += [text for each in self.features for text in (each.name, *each.comes_from)]
        return " ".join([*parts, *(each.model for each in self.models)]).lower()


@function(http=True, role="viewer", timeout_s=120, in_thread=True)
def feature_catalog(
    words: Annotated[
        list[str] | None,
        Field(
            description=(
                "Words that an entry must all have in its name, owner, description, tags, keys, features, columns, "
                "services or models."
            )
        ),
    ] = None,
    *,
    unused: Annotated[
        bool,
        Field(
            description="Whether only features that no service and no other view reads are listed, with their views."
        ),
    ] = False,
) -> list[CatalogEntry]:
    """List the views in force with owner, use, origin and cost; reads no rows."""
    features = context().features()
    entries = _entries(features, context().registry())
    found = [each for each in entries if all(word.lower() in each.text for word in words or ())]
    if not unused:
        return found
    idle = [
        each.model_copy(update={"features": [f for f in each.features if not f.used_by]}) for each in found
    ]
    return [each for each in idle if each.features]


def _entries(features: FeatureStore, registry: Registry) -> list[CatalogEntry]:
    defined = features.refresh().in_force()
    models = _models_by_view(registry)
    views = {view.name: view for view in features.list_feature_views()}
    entries = []
    for key, definition in sorted(defined.items()):
        kind, name = key.split("/", 1)
        if kind not in {"feature_view", "on_demand_feature_view"}:
            continue
        made = [
            CatalogFeature(
                name=each["name"],
                dtype=each["dtype"],
                comes_from=_origins(views.get(name), definition, each["name"]),
                used_by=sorted(_users(defined, name, each["name"])),
                deprecated=_deprecated(definition, each["name"]),
            )
            for each in definition["schema"]
        ]
        entry = CatalogEntry(
            kind=kind,
            name=name,
            owner=definition["owner"],
            description=definition["description"],
            tags=definition["tags"],
            keys=[key["name"] for entity in definition.get("entities", ()) for key in entity["join_keys"]],
            features=made,
            services=sorted(_services(defined, name)),
            models=models.get(name, []),
            **(_cost(features, views[name]) if kind == "feature_view" else {}),
        )
        entries.append(entry.model_copy(update={"would_break": _would_break(entry)}))
    return entries


def _would_break(entry: CatalogEntry) -> list[str]:
    """Name what uses a deprecated feature of a view: definitions, and versions of models in use."""
    users = {user for each in entry.features if each.deprecated for user in each.used_by}
    models = [f"{each.model}@{each.version} ({', '.join(each.uses)})" for each in entry.models]
    return [*sorted(users), *models] if users else []


def _deprecated(definition: Mapping[str, Any], feature: str) -> str | None:
    given = definition.get("deprecated")
    if given is None or (given["features"] and feature not in given["features"]):
        return None
    return f"since {given['since']}: {given['remedy']}"


def _reading(definition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Projections that a definition reads: of a service, an on-demand view or a derived view."""
    derived_from = (definition.get("source") or {}).get("inputs", [])
    every = [*definition.get("features", []), *definition.get("sources", []), *derived_from]
    return [each for each in every if "view" in each]


def _users(defined: Mapping[str, Mapping[str, Any]], view: str, feature: str) -> Iterable[str]:
    for key, definition in defined.items():
        if any(each["view"] == view and feature in each["features"] for each in _reading(definition)):
            kind, name = key.split("/", 1)
            yield f"{kind.replace('_', ' ')} {name}"


def _services(defined: Mapping[str, Mapping[str, Any]], view: str) -> set[str]:
    """Services that serve a view, also through views that are computed from it."""
    found, seen, waiting = set[str](), {view}, [view]
    while waiting:
        name = waiting.pop()
        for key, definition in defined.items():
            if any(each["view"] == name for each in _reading(definition)):
                kind, user = key.split("/", 1)
                if kind == "feature_service":
                    found.add(user)
                elif user not in seen:
                    seen.add(user)
                    waiting.append(user)
    return found


def _origins(view: FeatureView | None, definition: Mapping[str, Any], feature: str) -> list[str]:
    """Columns that a feature is made of; of a function all that it is given."""
    if view is None or view.inputs:
        return [f"{each['view']}:{name}" for each in _reading(definition) for name in each["features"]] + [
            f"request:{f['name']}" for s in definition.get("sources", []) for f in s.get("schema", [])
        ]
    columns = [feature]
    if isinstance(view.source, Windows):
        columns = [a.column for a in view.source.aggregations if a.name == feature and a.column is not None]
    if view.events is None:
        return columns if view.source is not None else []
    there = view.events.read_columns
    return [f"{view.events.name}.{there[column]}" for column in columns if column in there]


def _models_by_view(registry: Registry) -> dict[str, list[ModelUse]]:
    """Versions that something points to now, by each view that they were made with."""
    found: dict[str, list[ModelUse]] = {}
    for name in registry.list_models():
        state = registry.get_model(name)
        for version in state.versions.values():
            uses = state.uses(version.version) if version.deleted_at is None else []
            for view in version.lineage.features if uses else ():
                found.setdefault(view, []).append(ModelUse(model=name, version=version.version, uses=uses))
    return found


def _cost(features: FeatureStore, view: FeatureView) -> dict[str, Any]:
    """Rows, bytes and newest event of a view's table, by its log, and how long its rows are served."""
    table = features.offline.table(view)
    ttl_s = None if view.ttl is None else view.ttl.total_seconds()
    if not table.exists():
        return {"ttl_s": ttl_s}
    actions = pa.table(table.open().get_add_actions(flatten=True))
    return {
        "rows": sum(actions.column("num_records").to_pylist()),
        "bytes": sum(actions.column("size_bytes").to_pylist()),
        "newest_event": features.offline.newest(view),
        "ttl_s": ttl_s,
    }
