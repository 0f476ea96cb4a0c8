"""Records of runs: segments of logged events, and the experiment's index folded from its journal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from toque.registry.errors import Damaged
from toque.registry.journal import Entry
from toque.registry.models.versions import finite
from toque.registry.store import Blob, TableSnapshot
from toque.registry.times import from_text, to_text

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "LOST"]
SCHEMA = "1"


class Point(NamedTuple):
    """One value of a metric, with step and time."""

    step: int
    value: float
    at: datetime


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything known of a run from the index or its segments.

    metrics: name -> its last value (highest step, then latest); artifacts: path -> content; facts: code
    digest, environment, resources used, parent run and whatever else was recorded once.
    """

    id: str
    experiment: str
    name: str
    status: Status
    actor: str
    started_at: datetime
    ended_at: datetime | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, Blob] = field(default_factory=dict)
    datasets: tuple[TableSnapshot, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert the record to JSON values."""
        return {
            "id": self.id,
            "experiment": self.experiment,
            "name": self.name,
            "status": self.status,
            "actor": self.actor,
            "started_at": to_text(self.started_at),
            "ended_at": None if self.ended_at is None else to_text(self.ended_at),
            "params": dict(self.params),
            "metrics": finite(self.metrics),
            "tags": dict(self.tags),
            "artifacts": {path: [blob.sha256, blob.size] for path, blob in self.artifacts.items()},
            "datasets": [[snapshot.name, snapshot.version] for snapshot in self.datasets],
            "facts": finite(self.facts),
        }

    def brief(self) -> dict[str, Any]:
        """Convert the record for the index, without the environment, which is most of the bytes and rarely read."""
        facts = {fact: value for fact, value in self.facts.items() if fact != "environment"}
        return replace(self, facts=facts).to_json()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunRecord:
        """Read a record from the JSON values of `to_json`."""
        ended = data["ended_at"]
        return cls(
            id=data["id"],
            experiment=data["experiment"],
            name=data["name"],
            status=data["status"],
            actor=data["actor"],
            started_at=from_text(data["started_at"]),
            ended_at=None if ended is None else from_text(ended),
            params=data["params"],
            metrics={name: float(value) for name, value in data["metrics"].items()},
            tags=data["tags"],
            artifacts={path: Blob(sha256=sha, size=size) for path, (sha, size) in data["artifacts"].items()},
            datasets=tuple(TableSnapshot(name=name, version=version) for name, version in data["datasets"]),
            facts=data["facts"],
        )


@dataclass(slots=True)
class Segment:
    """Events of one run, buffered and then stored as one object; a tag of None removes the tag."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str | None] = field(default_factory=dict)
    points: list[tuple[str, Point]] = field(default_factory=list)
    artifacts: dict[str, Blob] = field(default_factory=dict)
    datasets: list[TableSnapshot] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.params or self.tags or self.points or self.artifacts or self.datasets)

    def to_bytes(self, *, nonce: str = "") -> bytes:
        """Encode the segment as stored, with NaN and infinities as JSON's extensions.

        nonce: makes the bytes unique, so that a writer can tell its own segment from another's.
        """
        names = list(dict.fromkeys(name for name, _ in self.points))
        index = {name: number for number, name in enumerate(names)}
        content = {
            "nonce": nonce,
            "params": self.params,
            "tags": self.tags,
            "names": names,
            "points": [
                [index[name], point.step, point.value, to_text(point.at)] for name, point in self.points
            ],
            "artifacts": {path: [blob.sha256, blob.size] for path, blob in self.artifacts.items()},
            "datasets": [[snapshot.name, snapshot.version] for snapshot in self.datasets],
        }
        return json.dumps(content, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Segment:
        """Read a segment from the bytes of `to_bytes`. Raises: Damaged, naming `where`."""
        try:
            content = json.loads(data)
            names = content["names"]
            return cls(
                params=content["params"],
                tags=content["tags"],
                points=[
                    (names[name], Point(step, value, from_text(at)))
                    for name, step, value, at in content["points"]
                ],
                artifacts={p: Blob(sha256=sha, size=size) for p, (sha, size) in content["artifacts"].items()},
                datasets=[TableSnapshot(name=name, version=version) for name, version in content["datasets"]],
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise Damaged(f"{where} is not readable: {error}") from error


def with_segments(record: RunRecord, segments: Iterable[Segment]) -> RunRecord:
    """Apply the events of segments to a record, in their order."""
    params: dict[str, str] = dict(record.params)
    tags: dict[str, str | None] = dict(record.tags)
    artifacts, datasets = dict(record.artifacts), list(record.datasets)
    last: dict[str, Point] = {}
    for segment in segments:
        params |= segment.params
        tags |= segment.tags
        artifacts |= segment.artifacts
        datasets += segment.datasets
        for name, point in segment.points:
            if name not in last or (point.step, point.at) >= (last[name].step, last[name].at):
                last[name] = point
    return replace(
        record,
        params=params,
        tags={name: value for name, value in tags.items() if value is not None},
        artifacts=artifacts,
        datasets=tuple(dict.fromkeys(datasets)),
        metrics={**record.metrics, **{name: point.value for name, point in last.items()}},
    )


def new_run_id() -> str:
    """Make a run id of 32 hex digits, beginning with the time, so that ids sort by start."""
    return f"{time.time_ns() // 1_000_000:012x}{uuid4().hex[:20]}"


Index = Mapping[str, RunRecord]


def step(index: Index, entry: Entry) -> Index:
    """Apply an entry to an experiment's index: each entry holds one run's current record. Pure."""
    record = RunRecord.from_json(entry.body["run"])
    return {**index, record.id: record}


def encode(index: Index) -> list[dict[str, Any]]:
    """Convert the index to JSON values."""
    return [record.to_json() for record in index.values()]


def decode(data: list[dict[str, Any]]) -> Index:
    """Read an index from the JSON values of `encode`."""
    return {item["id"]: RunRecord.from_json(item) for item in data}
