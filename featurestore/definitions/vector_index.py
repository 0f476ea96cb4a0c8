"""Declaration of an index over a vector field of a view: how near is measured, and how good the index must be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from toque.featurestore.definitions.dtypes import Vector
from toque.featurestore.definitions.fields import Field, refuse_doubles
from toque.featurestore.errors import InvalidDefinition


class Metric(StrEnum):
    """Measure of how far two vectors are apart; a smaller distance is nearer.

    COSINE: 1 less the cosine of the angle, 1 where a vector is zero; DOT: the negative inner product; L2: Euclidean.
    """

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """Index for nearest neighbours over a vector field of a view.

    least_recall: share of the ten nearest that the index must find, measured against exact search; below it an index is
    refused when it is built, and searches stay exact. text_model: registered model that makes a vector of a text.
    Raises: InvalidDefinition.
    """

    field: str
    metric: Metric = Metric.COSINE
    least_recall: float = 0.95
    text_model: str = ""

    def __post_init__(self) -> None:
        if self.metric not in set(Metric):
            raise InvalidDefinition(
                f"VectorIndex({self.field!r}): metric {self.metric!r} is not known; use {', '.join(Metric)}"
            )
        object.__setattr__(self, "metric", Metric(self.metric))
        if not 0 < self.least_recall <= 1:
            raise InvalidDefinition(
                f"VectorIndex({self.field!r}): least_recall is a share above 0 and up to 1, got {self.least_recall}"
            )

    def describe(self) -> dict[str, Any]:
        """Describe the index as JSON."""
        return {
            "field": self.field,
            "metric": self.metric.value,
            "least_recall": self.least_recall,
            "text_model": self.text_model,
        }


def check_indexes(where: str, indexes: Sequence[VectorIndex], fields: Mapping[str, Field]) -> None:
    """Check that indexes name vector fields, each once. Raises: InvalidDefinition."""
    refuse_doubles(f"{where} indexes", (index.field for index in indexes))
    for index in indexes:
        if index.field not in fields:
            raise InvalidDefinition(f"{where} indexes {index.field!r}; it has {list(fields)}")
        dtype = fields[index.field].dtype
        if not isinstance(dtype, Vector) or not dtype.finite:
            raise InvalidDefinition(
                f"{where} indexes {index.field!r}, which is {dtype}; declare it as Vector(length) of finite numbers"
            )
