"""Training sets and model versions that were made from rows before they were erased."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from deltalake import DeltaTable

from toque.functions.maintenance.erasure.record import TableErasure
from toque.registry import Dependent, Registry, Table, TableSnapshot
from toque.registry.store import table_names

_NEVER_TRAINING_SETS = ("predictions/", "features/", "monitoring/", "labels", "scores/")


def affected(
    registry: Registry, tables: Mapping[str, TableErasure]
) -> tuple[list[TableSnapshot], list[Dependent]]:
    """List the training sets that had erased rows, or were joined from tables that had, and the versions made of them."""
    sets = {
        snapshot
        for snapshot, sources in _training_sets(registry)
        if _any_touched({snapshot, *sources}, tables)
    }
    datasets = {
        dataset
        for model in registry.list_models()
        for version in registry.list_versions(model)
        for dataset in version.lineage.datasets
        if dataset in sets or _any_touched({dataset}, tables)
    }
    found = sorted(sets | datasets, key=str)
    dependents = {
        (each.model, each.version): each for source in found for each in registry.dependents(source)
    }
    return found, [dependents[key] for key in sorted(dependents)]


def _any_touched(snapshots: set[TableSnapshot], tables: Mapping[str, TableErasure]) -> bool:
    return any(each.name in tables and tables[each.name].touches(each.version) for each in snapshots)


def _training_sets(registry: Registry) -> Iterator[tuple[TableSnapshot, set[TableSnapshot]]]:
    """Yield each stored training set with the snapshots that its lineage names."""
    for name in table_names(registry.store):
        if name.startswith(_NEVER_TRAINING_SETS):
            continue
        table = Table(registry.store, name)
        for commit in DeltaTable(table.uri, storage_options=table.storage_options or None).history():
            kept = json.loads(commit.get("toque", "{}"))
            if "training_set" in kept:
                yield (
                    TableSnapshot(name=name, version=commit["version"]),
                    set(_snapshots_in(json.loads(kept["training_set"]))),
                )


def _snapshots_in(value: Any) -> Iterator[TableSnapshot]:
    """Yield every table snapshot in a lineage, at any depth."""
    if isinstance(value, dict):
        if value.keys() == {"name", "version"}:
            yield TableSnapshot.model_validate(value)
        for each in value.values():
            yield from _snapshots_in(each)
