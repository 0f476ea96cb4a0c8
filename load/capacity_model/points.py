"""Points that a capacity model is fitted to: what a request of a model cost in one configuration, at one rate.

A point is either measured by the processor time of a platform's processes, or is a knee: the rate that so many replicas held.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

__all__ = ["Point", "read_points", "write_points"]


class Point(BaseModel):
    """Point of a model: `replicas` replicas that answer `rate` requests/s of `rows` rows.

    replica_s, door_s, redis_s: core-seconds of replicas, HAProxy and Redis for each request, what they do anyway included. Without
    replica_s the rate is a knee: all that the replicas could hold. message_bytes: of request and answer together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(ge=1)
    replicas: int = Field(default=1, ge=1)
    rate: float = Field(gt=0)
    replica_s: float | None = Field(default=None, gt=0)
    door_s: float | None = Field(default=None, ge=0)
    redis_s: float | None = Field(default=None, ge=0)
    message_bytes: float | None = Field(default=None, gt=0)

    def busy_s(self, utilisation: float) -> float:
        """Core-seconds of the replicas for a request. utilisation: of a replica at its knee."""
        return self.replica_s if self.replica_s is not None else self.replicas * utilisation / self.rate


_POINTS = TypeAdapter(list[Point])


def read_points(path: Path) -> list[Point]:
    """Read points from a JSON file. Raises: ValueError naming the field, FileNotFoundError."""
    return _POINTS.validate_json(path.read_bytes())


def write_points(path: Path, points: list[Point]) -> None:
    """Write points to a JSON file, as `read_points` takes them."""
    path.write_bytes(_POINTS.dump_json(points, indent=1, exclude_none=True))
