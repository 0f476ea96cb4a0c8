"""Batch sources that retrieved features came from, by the versions of the tables that were read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.offline.derived_refresh import consumed_as
from toque.featurestore.offline.pinned_retrieval import PinnedRetrieval, stored_view
from toque.featurestore.sources.load_log import SourceLineage

if TYPE_CHECKING:
    from toque.featurestore.store import FeatureStore


def sources_of(features: FeatureStore, job: PinnedRetrieval) -> dict[str, SourceLineage]:
    """Describe the part of each batch source that a retrieval's rows came from, by the source's name.

    Of a source that several views read, the loads up to the last that one of them has. Raises: UnknownDefinition.
    """
    loads: dict[str, int] = {}
    for lookup in job.retrieval.lookups:
        snapshot = job.versions[lookup.view.name]
        if snapshot is not None:
            _add_loads(features, stored_view(lookup), snapshot.version, loads)
    return {
        name: features.source_table(name).lineage(number) for name, number in sorted(loads.items()) if number
    }


def _add_loads(features: FeatureStore, view: FeatureView, version: int, loads: dict[str, int]) -> None:
    """Add the loads that a version of a view's table has the rows of, also through the views that it is derived from."""
    if view.events is not None:
        source = view.events.name
        consumed = features.offline.consumed(view, source, version=version)
        loads[source] = max(consumed, loads.get(source, 0))
    for each in view.inputs:
        given = stored_view(each)
        read = features.offline.consumed(view, consumed_as(given.name), version=version) - 1
        if read >= 0:
            _add_loads(features, given, read, loads)
