"""Plans of retrievals: stored rows to look up, on-demand features to compute, and the order of output columns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toque.featurestore.definitions.fields import Field
from toque.featurestore.definitions.on_demand import Column, compute
from toque.featurestore.definitions.on_demand_inputs import Inputs
from toque.featurestore.definitions.views import (
    FeatureLike,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Projection,
)
from toque.featurestore.errors import InvalidDefinition

Features = FeatureService | FeatureLike | str | Sequence[FeatureLike | str]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Plan of a retrieval, which training and serving share.

    lookups: projections of stored views, each (view, alias, join keys) once; computed: projections of on-demand views;
    request: fields that the caller must give; columns: of the output, in order.
    """

    lookups: tuple[Projection, ...]
    computed: tuple[Projection, ...]
    request: tuple[Field, ...]
    columns: tuple[str, ...]

    def compute(self, inputs: Inputs, *, rows: int) -> dict[str, tuple[Field, Column]]:
        """Compute on-demand columns from columns of all lookups and request fields, each of length `rows`."""
        computed: dict[str, tuple[Field, Column]] = {}
        for projection in self.computed:
            view = projection.view
            if isinstance(view, OnDemandFeatureView):
                results = compute(view, inputs, rows=rows)
                computed |= {column: (f, results[f.name]) for column, f in projection.columns.items()}
        return computed


def plan_retrieval(features: FeatureService | Iterable[Projection]) -> Retrieval:
    """Plan a service or a list of projections.

    Raises: InvalidDefinition if two different features would have one column name.
    """
    wanted = features.projections if isinstance(features, FeatureService) else tuple(features)
    if not wanted:
        raise InvalidDefinition("no features were asked for; name a service, views or 'view:feature'")
    columns = [name for p in wanted for name in p.columns]
    if len(set(columns)) < len(columns):
        double = next(name for name in columns if columns.count(name) > 1)
        raise InvalidDefinition(f"two features would come out as {double!r}; rename one with view.with_name")
    computed = tuple(p for p in wanted if isinstance(p.view, OnDemandFeatureView))
    views = [p.view for p in computed if isinstance(p.view, OnDemandFeatureView)]
    sources = [source for view in views for source in view.projections]
    lookups = _merged([p for p in wanted if isinstance(p.view, FeatureView)] + sources)
    request = {f.name: f for view in views for f in view.request_fields}
    _refuse_collisions(lookups, computed, request)
    return Retrieval(lookups, computed, tuple(request.values()), tuple(columns))


def _merged(projections: Sequence[Projection]) -> tuple[Projection, ...]:
    merged: dict[Any, Projection] = {}
    for p in projections:
        key = (p.view.name, p.alias, p.join_key_map)
        before = merged.get(key)
        features = (*before.features, *p.features) if before else p.features
        merged[key] = replace(p, features=tuple(dict.fromkeys(features)))
    return tuple(merged.values())


def _refuse_collisions(
    lookups: Sequence[Projection], computed: Sequence[Projection], request: Mapping[str, Field]
) -> None:
    names = [name for p in (*lookups, *computed) for name in p.columns] + list(request)
    for name in names:
        if names.count(name) > 1:
            msg = f"column {name!r} comes from two places (views, sources of on-demand views or the request); rename one"
            raise InvalidDefinition(msg)
