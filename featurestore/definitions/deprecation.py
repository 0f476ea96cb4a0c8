"""Deprecation of a view or some of its features: since when, and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from toque.featurestore.errors import InvalidDefinition


@dataclass(frozen=True, slots=True)
class Deprecation:
    """A view's features that are to be given up; applying warns who uses them, and after its date no new training set may.

    since: from when on training sets are refused, with a time zone. remedy: what to use instead. features: by default all.
    Raises: InvalidDefinition.
    """

    since: datetime
    remedy: str
    features: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if self.since.tzinfo is None:
            raise InvalidDefinition(
                f"Deprecation: since={self.since} names no time zone; give one, as in UTC"
            )
        if not self.remedy:
            raise InvalidDefinition("Deprecation: say in `remedy` what to use instead")

    def concerns(self, feature: str) -> bool:
        """Whether a feature of the view is to be given up."""
        return not self.features or feature in self.features

    def describe(self) -> dict[str, Any]:
        """Describe the deprecation as JSON."""
        return {"since": self.since.isoformat(), "remedy": self.remedy, "features": list(self.features)}


def deserialize_deprecation(described: Mapping[str, Any]) -> Deprecation:
    """Rebuild a deprecation from its `describe()`."""
    return Deprecation(
        datetime.fromisoformat(described["since"]), described["remedy"], tuple(described["features"])
    )
