"""Generations of a view's table: a new one where a feature of the same name would mean something else.

Rows of all versions of a view share a table as long as its features mean the same. When one is computed otherwise, the next
refresh fills a new table from all that was loaded, and the old one stays as it is, for who pinned it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from toque.featurestore.applied import deserialize
from toque.featurestore.applied.catalog import Catalog
from toque.featurestore.definitions.views import Definition, FeatureView


def with_generations(catalog: Catalog, wanted: Mapping[str, Definition]) -> dict[str, Definition]:
    """Number the views that are to be applied: as their last version, or the next if a feature gets another meaning."""
    return {key: _numbered(catalog, each) for key, each in wanted.items()}


def _numbered(catalog: Catalog, definition: Definition) -> Definition:
    if not isinstance(definition, FeatureView):
        return definition
    versions = catalog.versions("feature_view", definition.name)
    if not versions:
        return definition
    last = deserialize.view(versions[-1].definition)
    number = last.generation + (not same_meaning(last, definition))
    return replace(definition, generation=number)


def same_meaning(old: FeatureView, new: FeatureView) -> bool:
    """Whether each feature that two versions of a view share comes from the same events or views, computed the same way."""
    was, becomes = old.semantics(), new.semantics()
    if _origin(was) != _origin(becomes):
        return False
    before, after = _meanings(was), _meanings(becomes)
    return all(before[name] == after[name] for name in before.keys() & after.keys())


def _origin(described: Mapping[str, Any]) -> Any:
    """What the rows of a view follow from, and when there is one."""
    source, events = described["source"] or {}, described.get("events", {})
    rest = {name: value for name, value in source.items() if name not in _BY_FEATURE}
    return [events.get("kind"), events.get("name"), rest]


_BY_FEATURE = frozenset({"aggregations", "schema", "inputs", "code", "reference"})


def _meanings(described: Mapping[str, Any]) -> dict[str, Any]:
    """How each feature is computed."""
    source = described["source"] or {}
    names = [field["name"] for field in described["schema"]]
    if "aggregations" in source:
        return {each["name"]: each for each in source["aggregations"]}
    inputs = [
        {"projection": {name: each[name] for name in ("view", "features", "alias")}, "view": _of_input(each)}
        for each in source.get("inputs", ())
    ]
    return {name: [source.get("code"), inputs] for name in names}


def _of_input(described: Mapping[str, Any]) -> Any:
    """What an input of a derived view means to it: the features that it reads, and for how long."""
    view = described["definition"]
    read = {name: meaning for name, meaning in _meanings(view).items() if name in described["features"]}
    return [_origin(view), read, view["ttl_us"]]
