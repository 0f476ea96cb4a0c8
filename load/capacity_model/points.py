"""Points that a capacity model is fitted to: what a request of a model cost in one configuration.

A point is either measured by the processor time of a platform's processes, or is a knee: the rate that so many replicas held.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

__all__ = ["Point", "read_points", "write_points"]


class Point(BaseModel):
    """Point of a model: what one request of `rows` rows takes with `replicas` replicas.

    replica_s: core-seconds of the replicas; door_s, redis_s: of HAProxy and Redis, None where they were not measured. knee:
    requests/s that all replicas held together, in place of replica_s. message_bytes: of request and answer together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=1)
    replicas: int = Field(default=1, ge=1)
    replica_s: float | None = Field(default=None, gt=0)
    knee: float | None = Field(default=None, gt=0)
    door_s: float | None = Field(default=None, ge=0)
    redis_s: float | None = Field(default=None, ge=0)
    message_bytes: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_cost(self) -> Self:
        if (self.replica_s is None) == (self.knee is None):
            raise ValueError(
                "give replica_s (core-seconds of a request) or knee (requests/s held), one of the two"
            )
        return self

    def busy_s(self, utilisation: float) -> float:
        """Core-seconds of a request in its replica. utilisation: of a replica at its knee."""
        if self.replica_s is not None:
            return self.replica_s
        assert self.knee is not None  # noqa: S101 - one of the two is there
        return self.replicas * utilisation / self.knee


_POINTS = TypeAdapter(list[Point])


def read_points(path: Path) -> list[Point]:
    """Read points from a JSON file. Raises: ValueError naming the field, FileNotFoundError."""
    return _POINTS.validate_json(path.read_bytes())


def write_points(path: Path, points: list[Point]) -> None:
    """Write points to a JSON file, as `read_points` takes them."""
    path.write_bytes(_POINTS.dump_json(points, indent=1, exclude_none=True))
