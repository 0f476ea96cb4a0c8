"""Definition of features that are computed from the rows of other views, kept by the same refresh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from toque.featurestore.definitions.code import code_digest, code_reference
from toque.featurestore.definitions.fields import Field, refuse_doubles
from toque.featurestore.definitions.views import FeatureView, Projection, projection
from toque.featurestore.errors import InvalidDefinition

Compute = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Derived:
    """Rows of a view from the rows of other stored views with the same join keys, which may be derived themselves.

    inputs: views or projections of them. schema: the features that are computed.
    transform: a frame in, with a row for each moment at which one of the inputs changed and the columns of all of them as they
        were then (null where there was no row within its ttl), and a frame out with the features, row by row.
    A row's event time is that of its latest input, and it became known when the last of them did.
    code, reference: digest of the function's text and where to import it from; derived from it by default.
    Raises: InvalidDefinition.
    """

    inputs: Sequence[FeatureView | Projection]
    schema: Sequence[Field]
    transform: Compute | None = field(compare=False)
    code: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(projection(each) for each in self.inputs))
        object.__setattr__(self, "schema", tuple(self.schema))
        if not self.inputs or not self.schema:
            raise InvalidDefinition("Derived needs views to compute from, and a schema")
        for each in self.projections:
            if not isinstance(each.view, FeatureView):
                raise InvalidDefinition(
                    f"Derived: {each.view.name!r} is computed on demand and has no rows; compute from its sources instead"
                )
        refuse_doubles("Derived: columns of its inputs (rename with view.with_name)", self.columns)
        if self.transform is not None:
            object.__setattr__(self, "code", self.code or code_digest(self.transform))
            object.__setattr__(self, "reference", self.reference or code_reference(self.transform))

    @property
    def projections(self) -> tuple[Projection, ...]:
        """Inputs, each with the features that are read."""
        return tuple(each for each in self.inputs if isinstance(each, Projection))

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the transform gets."""
        return [name for each in self.projections for name in each.columns]

    @property
    def fields(self) -> tuple[Field, ...]:
        """Features that the transform computes."""
        return tuple(self.schema)

    def describe(self) -> dict[str, Any]:
        """Describe the computation as JSON, its input views with it."""
        return {
            "type": "derived",
            "inputs": [each.describe() | {"definition": each.view.semantics()} for each in self.projections],
            "schema": [each.describe() for each in self.schema],
            "code": self.code,
            "reference": self.reference,
        }
