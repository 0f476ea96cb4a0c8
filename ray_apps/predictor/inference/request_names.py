"""Names that the rows of a request may use: those of the model's columns, of its feature service, and of the service's sources."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from toque.featurestore import BatchSource, FeatureService, FeatureView
from toque.featurestore.definitions import DType
from toque.featurestore.retrieval import plan_retrieval
from toque.ray_apps.predictor.protocol.errors import BadRequest, unknown_name

__all__ = ["RequestNames"]


@dataclass(frozen=True, slots=True)
class RequestNames:
    """Names of a version's request rows.

    known: the model's columns, the join keys of its feature service, and what the service's on-demand views take from the request;
    renamed: a name at a source, such as a file's own, to that of the column or key here. truths: columns that are declared as `Bool`.
    """

    known: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    truths: frozenset[str] = frozenset()

    @classmethod
    def of(cls, service: FeatureService) -> RequestNames:
        """Find the names of a feature service."""
        plan = plan_retrieval(service)
        renamed: dict[str, str] = {}
        for lookup in plan.lookups:
            view = lookup.view
            if not isinstance(view, FeatureView) or not isinstance(view.events, BatchSource):
                continue
            here = {key.name: column for key, column in zip(view.join_keys, lookup.key_columns, strict=True)}
            if view.source is None:  # else its columns are made of the source's, and are none of them
                here |= {column.name: name for name, column in lookup.columns.items()}
            there = view.events.columns
            renamed |= {there[name]: column for name, column in here.items() if name in there}
        keys = [column for lookup in plan.lookups for column in lookup.key_columns]
        known = frozenset([*plan.columns, *keys, *(each.name for each in plan.request)])
        fields = [item for each in (*plan.lookups, *plan.computed) for item in each.columns.items()]
        truths = frozenset(name for name, column in fields if column.dtype is DType.BOOL)
        return cls(known, {old: new for old, new in renamed.items() if old not in known}, truths)

    def with_columns(self, columns: Collection[str]) -> RequestNames:
        """Names of a version of the service that has these columns; any may come with the request."""
        return replace(self, known=self.known.union(columns))

    def translated(self, row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """Rename what a row calls by its source's names. Raises: BadRequest for a value that is given by both names."""
        if not self.renamed or self.renamed.keys().isdisjoint(row):
            return row
        made: dict[str, Any] = {}
        for name, value in row.items():
            here = self.renamed.get(name, name)
            if here in made or (here != name and here in row):
                raise BadRequest(f"{where}.{name}: the column {here!r} is given twice; leave one out")
            made[here] = value
        return made

    def refuse(self, name: str, where: str) -> BadRequest:
        """Make the error for a name that stands for nothing, with the nearest that does."""
        heading = "the model and its feature service know"
        return unknown_name(where, name, {*self.known, *self.renamed}, heading=heading)
