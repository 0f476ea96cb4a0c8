"""Names that the rows of a request may use: those of the model's columns, of its feature service, and of the service's sources."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from featurestore import BatchSource, FeatureService, FeatureView
from featurestore.retrieval import plan_retrieval
from ray_apps.predictor.protocol.errors import BadRequest

__all__ = ["RequestNames"]

_SHOWN = 12  # names that an error lists


@dataclass(frozen=True, slots=True)
class RequestNames:
    """Names of a version's request rows.

    known: the model's columns, the join keys of its feature service, and what the service's on-demand views take from the request;
    renamed: a name at a source, such as a file's own, to that of the column or key here.
    """

    known: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)

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
        return cls(known, {old: new for old, new in renamed.items() if old not in known})

    def with_columns(self, columns: Collection[str]) -> RequestNames:
        """Names of a version of the service that has these columns; any may come with the request."""
        return RequestNames(self.known.union(columns), self.renamed)

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
        names = sorted({*self.known, *self.renamed})
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        shown = f"{names[:_SHOWN]}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
        return BadRequest(
            f"{where}.{name[:80]}: no such name; {hint}the model and its feature service know {shown}"
        )
